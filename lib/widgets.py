"""触って確かめる部品。画面の無い実行では何も出さない（部品を待って止まることがあるため）。"""

import inspect
import os
from collections.abc import Callable
from typing import Any


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
