"""触って確かめる部品。画面の無い実行では出さない。Output は papermill を止めることがあるので、HTML に描く。"""

import inspect
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.core.pylabtools import print_figure

from lib.files import read_json, write_json

TIE = "引き分け"


def sliders(show: Callable[..., Any], **controls: Any) -> Any:
    """スライダーなどを動かすたびに、`show` の表（`_repr_html_` を持つもの）か図を描き直す。初めの値は引数の既定値。

    `controls` は、引数の名前 → (最小, 最大[, 刻み])、選ぶものの列、または部品を作る関数。
    """
    if os.environ.get("WORKSHOP_HEADLESS"):
        return None
    made, parts = ipywidgets.interactive.widget_from_abbrev, dict[str, Any]()
    page = ipywidgets.HTML().add_class("jp-RenderedHTMLCommon")  # JupyterLab の表の見た目

    def redraw(_: Any = None) -> None:
        shown = show(**{name: part.value for name, part in parts.items()})
        figure = hasattr(shown, "savefig") and print_figure(shown, base64=True)
        page.value = f'<img alt="図" src="data:image/png;base64,{figure}">' if figure else shown._repr_html_()

    for name, given in controls.items():
        parts[name] = part = given() if callable(given) else made(given)
        part.value, part.description = inspect.signature(show).parameters[name].default, name
        part.style.description_width, part.layout.width = "7em", "min(42em, 95%)"
        part.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*parts.values(), page])


class Ballot:
    """人のブラインド評価。左右は無作為。`votes`（行の番号 → 選ばれた名前か「引き分け」）は一票ごとに `path` に残す。"""

    def __init__(self, names: tuple[str, str], rows: Sequence[tuple[str, str, str]], path: Path, seed: int = 0) -> None:
        """`rows` は (質問, 一つ目の答え, 二つ目の答え) の列。前の票があれば、続きから始める。"""
        self.names, self.rows, self.path = names, rows, path
        self.swapped = [random.Random(f"{seed}-{number}").random() < 0.5 for number in range(len(rows))]
        self.votes: dict[str, str] = read_json(path, {"votes": {}})["votes"]

    def next(self) -> int | None:
        """まだ投票していない行の番号。全部済んだら None。"""
        return next((number for number in range(len(self.rows)) if str(number) not in self.votes), None)

    def sides(self, number: int) -> tuple[str, ...]:
        """左と右に見せる答え。開き直しても変わらない。"""
        return self.rows[number][:0:-1] if self.swapped[number] else self.rows[number][1:]

    def vote(self, number: int, side: str) -> None:
        """「左」「右」「引き分け」のどれかを残す。"""
        self.votes[str(number)] = TIE if side == TIE else self.names[(side == "右") != self.swapped[number]]
        write_json(self.path, {"names": self.names, "votes": self.votes})
