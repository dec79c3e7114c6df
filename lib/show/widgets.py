"""触って確かめる部品。画面の無い実行では何も出さない（部品を待って止まることがあるため）。"""

import base64
import html
import inspect
import io
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from IPython.display import HTML
from matplotlib.figure import Figure

from lib.score.judge import Ballot
from lib.score.pairs import HandRanking
from lib.talk.demo import Demo
from lib.talk.plan import Clock, bar_html


def _control(name: str, limits: Any, start: Any) -> Any:
    """引数一つの部品。範囲ならつまみ、列なら選ぶ欄、文なら書く欄（その文は、空のときの薄い字）。"""
    import ipywidgets

    look = {"description": name, "style": {"description_width": "7em"}, "layout": {"width": "min(42em, 95%)"}}
    if isinstance(limits, str):
        return ipywidgets.Text(start, placeholder=limits, **look)
    if isinstance(limits, list):
        return ipywidgets.Dropdown(options=limits, value=start, **look)
    low, high = limits
    if isinstance(low, int) and isinstance(high, int):
        return ipywidgets.IntSlider(start, min=low, max=high, **look)
    if low > 0 and high / low > 100:  # 学習率のように桁で動く値
        ends = {"min": math.log10(low), "max": math.log10(high)}
        return ipywidgets.FloatLogSlider(start, **ends, step=0.05, readout_format=".1e", **look)
    return ipywidgets.FloatSlider(start, min=low, max=high, step=(high - low) / 100, **look)


def _markup(shown: Any) -> str:
    """表や図を HTML にする。"""
    if not isinstance(shown, Figure):
        return str(shown._repr_html_())
    picture = io.BytesIO()
    shown.savefig(picture, format="png", bbox_inches="tight")
    return f'<img alt="図" src="data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}">'


def sliders(show: Callable[..., Any], **controls: Any) -> Any:
    """引数を部品（つまみ、選ぶ欄、書く欄）にして、動かすたびに `show` の表や図を描き直す。

    結果は HTML の部品に入れる。Output の部品は、画面の無い papermill を止めることがあるので使わない。

    Args:
        show: 表（`_repr_html_` を持つもの）か図を返す関数。初めの値は、引数の既定値。
        controls: 引数の名前 → (最小, 最大)、選ぶものの列、または書く欄の薄い字。

    Returns:
        部品。画面の無い実行（`make run`）では None。
    """
    if os.environ.get("WORKSHOP_HEADLESS"):
        return None
    import ipywidgets

    start = inspect.signature(show).parameters
    parts = {name: _control(name, limits, start[name].default) for name, limits in controls.items()}
    page = ipywidgets.HTML(_markup(show()))
    page.add_class("jp-RenderedHTMLCommon")  # JupyterLab の表の見た目

    def redraw(_: Any) -> None:
        page.value = _markup(show(**{name: part.value for name, part in parts.items()}))

    for part in parts.values():
        part.observe(redraw, names="value")
    return ipywidgets.VBox([*parts.values(), page])


def blind_vote(ballot: Ballot) -> Any:
    """目隠し投票の部品。左・右・引き分けを押すたびに保存し、終わると勝率と区間を出す。

    画面の無い実行（`make run`）では None。
    """
    if os.environ.get("WORKSHOP_HEADLESS"):
        return None
    import ipywidgets

    page = ipywidgets.HTML()
    buttons = [ipywidgets.Button(description=side) for side in ("左", "引き分け", "右")]

    def show() -> None:
        number = ballot.next()
        if number is None:
            for button in buttons:
                button.disabled = True
            one, two = ballot.names
            page.value = f"{html.escape(one)} に対する {html.escape(two)} の勝率 {ballot.win_rate().as_percent()}"
            return
        left, right = map(html.escape, ballot.sides(number))
        question = html.escape(ballot.rows[number][0])
        page.value = f"<b>{number + 1}/{len(ballot.rows)} {question}</b><br>左: {left}<br>右: {right}"

    def press(button: Any) -> None:
        number = ballot.next()
        if number is not None:
            ballot.vote(number, button.description)
        show()

    for button in buttons:
        button.on_click(press)
    show()
    return ipywidgets.VBox([page, ipywidgets.HBox(buttons)])


def rank_by_hand(ranking: HandRanking) -> Any:
    """人が良い答えと悪い答えを選ぶ部品。「決める」を押すたびに、選好ペアのファイルに書く。

    画面の無い実行（`make run`）では None。
    """
    if os.environ.get("WORKSHOP_HEADLESS"):
        return None
    import ipywidgets

    page = ipywidgets.HTML()
    best, worst = (ipywidgets.RadioButtons(description=name) for name in ("良い", "悪い"))
    decide, skip = (ipywidgets.Button(description=name) for name in ("決める", "飛ばす"))

    def show() -> None:
        found = ranking.next()
        for part in (best, worst, decide, skip):
            part.disabled = found is None
        if found is None:
            page.value = f"終わりました。{len(ranking.rows)} 組を書きました。"
            return
        example, answers = found
        page.value = f"<b>{html.escape(example.question)}</b>"
        best.options, worst.options = answers, answers
        best.value, worst.value = answers[0], answers[-1]

    def press(button: Any) -> None:
        if ranking.next() is not None:
            ranking.skip() if button is skip else ranking.choose(best.value, worst.value)
        show()

    for button in (decide, skip):
        button.on_click(press)
    show()
    return ipywidgets.VBox([page, best, worst, ipywidgets.HBox([decide, skip])])


def presenter_bar(clock: Clock, demo: Demo) -> Any:
    """発表者のバー。節の残り・全体の残り・遅れ・次の言葉を 1 秒ごとに描き直し、録画に切り替えるボタンを置く。

    画面の無い実行では、止まらない静かな文（始める前の様子）を返す。
    """
    if os.environ.get("WORKSHOP_HEADLESS"):
        return HTML(bar_html(clock.standing()))
    import ipywidgets

    page = ipywidgets.HTML(bar_html(clock.standing()))
    back, forward, replay = (
        ipywidgets.Button(description=name) for name in ("◀ 前の節", "次の節 ▶", "録画に切り替える")
    )
    replay.button_style = "warning"

    def draw() -> None:
        mark = f'<b style="color:#D55E00">録画に替わりました: {html.escape(demo.reason)}</b>' if demo.reason else ""
        page.value = bar_html(clock.standing()) + mark

    back.on_click(lambda _: clock.enter(clock.number - 1))
    forward.on_click(lambda _: clock.enter(clock.number + 1))
    replay.on_click(lambda _: demo.switch())
    for button in (back, forward, replay):
        button.on_click(lambda _: draw())

    def tick() -> None:
        while threading.main_thread().is_alive():
            time.sleep(1)
            draw()

    threading.Thread(target=tick, daemon=True).start()
    return ipywidgets.VBox([page, ipywidgets.HBox([back, forward, replay])])
