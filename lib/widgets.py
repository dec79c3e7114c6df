"""触って確かめる部品。画面の無い実行では何も出さない（部品を待って止まることがあるため）。"""

import html
import inspect
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from IPython.display import HTML

from lib.demo import Demo
from lib.judge import Ballot
from lib.pairs import HandRanking
from lib.talk import Clock, bar_html


def sliders(show: Callable[..., Any], **ranges: tuple[float, float]) -> Any:
    """数の引数をつまみにして、動かすたびに `show` の表を描き直す。

    結果は HTML の部品に入れる。Output の部品は、画面の無い papermill を止めることがあるので使わない。

    Args:
        show: 表（`_repr_html_` を持つもの）を返す関数。初めの値は、引数の既定値。
        ranges: 引数の名前 → (最小, 最大)。

    Returns:
        部品。画面の無い実行（`make run`）では None。
    """
    if os.environ.get("WORKSHOP_HEADLESS"):
        return None
    import ipywidgets

    start = {name: inspect.signature(show).parameters[name].default for name in ranges}
    controls = {
        name: ipywidgets.FloatSlider(start[name], min=low, max=high, step=(high - low) / 20, description=name)
        for name, (low, high) in ranges.items()
    }
    page = ipywidgets.HTML(show()._repr_html_())

    def redraw(_: Any) -> None:
        page.value = show(**{name: control.value for name, control in controls.items()})._repr_html_()

    for control in controls.values():
        control.observe(redraw, names="value")
    return ipywidgets.VBox([*controls.values(), page])


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
