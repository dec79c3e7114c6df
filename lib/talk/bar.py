"""発表者のバー。"""

import html
import os
import threading
import time
from typing import Any

from IPython.display import HTML

from lib.talk.demo import Demo
from lib.talk.plan import Clock, bar_html


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
