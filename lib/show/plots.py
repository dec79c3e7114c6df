"""図と HTML の部品。日本語の字を出し、headless でも同じ絵になる静止画だけを描く。"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import matplotlib_fontja  # noqa: F401  （import すると日本語のフォントが登録される）
import pandas as pd
from IPython.display import HTML
from jinja2 import Environment, FileSystemLoader, select_autoescape
from matplotlib.figure import Figure

from lib.data.facts import DATA, read_jsonl
from lib.text.quantities import located

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8f98"  # Okabe & Ito 2008: 色覚に強い
plt.rcParams.update({"figure.figsize": (8, 3.6), "axes.spines.top": False, "axes.spines.right": False})
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=(BLUE, ORANGE, GREEN, RED, GREY, "#56B4E9", "#CC79A7"))
_FOLDER = FileSystemLoader([DATA / "templates", DATA / "pictures"])
_TEMPLATES = Environment(loader=_FOLDER, autoescape=select_autoescape(), trim_blocks=True)


def _pairs(english: Any, japanese: Any) -> Iterator[tuple[str, str]]:
    if isinstance(english, str):
        yield english, japanese
        yield re.split(r"(?<=\.)\s", english)[0], re.split(r"(?<=。)", japanese)[0]  # 長い答えは、初めの一文だけ
    else:
        both = english.items() if isinstance(english, dict) else enumerate(english[: len(japanese)])
        for key, text in both:
            yield from _pairs(text, japanese[key])


@cache
def twins() -> dict[str, str]:
    """英語の質問と正解 → 日本語の対訳（data/support と data/general の en と ja）。"""
    files = [*(DATA / "support").glob("*.jsonl"), *(DATA / "general").glob("*.jsonl")]
    return dict(pair for path in files for row in read_jsonl(path) for pair in _pairs(row["en"], row["ja"]))


def picture(template: str, **values: Any) -> HTML:
    """雛形（data/templates、data/pictures）に値を入れる。.html では、値の中の HTML を文字として見せる。"""
    return HTML(_TEMPLATES.get_template(template).render(values, twins=twins(), located=located))


def answers_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> HTML:
    """答えを並べた表。columns は列の鍵 → 見出し。`*_ok` があれば塗り、数値に印。英語の質問と正解には対訳を添える。"""
    return picture("answers.html", rows=rows, columns=columns)


def bars(values: Mapping[str, Any], title: str, unit: str = "", digits: str = ",.4g", **style: Any) -> Figure:
    """横棒の図。値は、見出し → 値、または 見出し → {凡例: 値}。値を棒の端に書く。"""
    frame = pd.DataFrame({name: v if isinstance(v, Mapping) else {"": v} for name, v in values.items()}).T
    height = (0.4 + 0.15 * frame.shape[1]) * len(frame) + 1.1
    axes = frame.plot.barh(title=title, width=0.8, legend=False, figsize=(8, height), **style)
    for drawn in axes.containers:
        axes.bar_label(drawn, fmt=f"{{:{digits}}}{unit}", padding=4)  # type: ignore[arg-type]
    axes.invert_yaxis()
    axes.margins(x=0.18)
    if frame.shape[1] > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    plt.close(axes.figure)
    return axes.figure


def sweep(results: Mapping[str, Mapping[str, float]], parts: Mapping[str, str], title: str) -> Figure:
    """設定ごとの割合（0–1）を、部分ごとに色を変えた横棒で並べる。parts は、部分の鍵 → 凡例。"""
    shares = {name: {parts[part]: 100 * found[part] for part in parts} for name, found in results.items()}
    return bars(shares, title, "%", ".0f", xlim=(0, 112))


def curve(history: Sequence[Mapping[str, float]], keys: Sequence[str], title: str, xlabel: str = "ステップ") -> Figure:
    """Trainer の記録から折れ線を描く。"""
    figure, axes = plt.subplots()
    for key in keys:
        points = pd.Series({row["step"]: row[key] for row in history if key in row}, name=key, dtype=float)
        points.plot(ax=axes, marker="o", ms=3, legend=True, xlabel=xlabel, title=title)
    plt.close(figure)
    return figure
