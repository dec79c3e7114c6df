"""発表の図: 流れ、LoRA、RLHF と DPO、段階。箱と矢印だけを matplotlib で描く。"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from lib.show.plots import BLUE, GREEN, GREY, ORANGE, RED

Point = tuple[float, float]


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """座標がそのままインチの、枠の無い紙。"""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    plt.close(figure)
    return figure, axes


def _ink(colour: str, fill: bool) -> str:
    """読める字の色。橙の上の白は読みにくい。"""
    return "white" if fill and colour != ORANGE else "#1b1f24"


def _box(axes: Axes, centre: Point, size: Point, text: str, colour: str = BLUE, fill: bool = False) -> None:
    x, y, (width, height) = *centre, size
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.08"
    face = colour if fill else "white"
    axes.add_patch(FancyBboxPatch(corner, width, height, style, facecolor=face, edgecolor=colour, linewidth=2))
    axes.text(x, y, text, ha="center", va="center", fontsize=13, color=_ink(colour, fill), linespacing=1.5)


def _arrow(axes: Axes, start: Point, end: Point, text: str = "", colour: str = GREY) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2, "mutation_scale": 18})
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        axes.text(middle[0], middle[1] + 0.12, text, ha="center", va="bottom", fontsize=11, color=colour)


def workflow(steps: Sequence[tuple[str, str]], demonstrated: int) -> Figure:
    """左から右への流れ。

    Args:
        steps: (段の名前, 使う道具) の列。
        demonstrated: 今日の実演が、左から何番目までか。
    """
    figure, axes = _canvas(11.2, 2.6)
    pitch = 11.2 / len(steps)
    for index, (name, tool) in enumerate(steps):
        x = pitch * (index + 0.5)
        _box(axes, (x, 1.55), (pitch - 0.4, 0.9), name, BLUE if index < demonstrated else GREY, index < demonstrated)
        axes.text(x, 0.75, tool, ha="center", va="center", fontsize=11, color="#1b1f24", linespacing=1.4)
        if index:
            _arrow(axes, (x - pitch / 2 - 0.19, 1.55), (x - pitch / 2 + 0.19, 1.55))
    axes.text(0.2, 2.3, "青: 今日の実演", fontsize=12, color=BLUE)
    return figure


def lora(width: int, rank: int) -> Figure:
    """凍った W と、学習する細い A・B。数は幅 `width`・ランク `rank` から計算する。"""
    figure, axes = _canvas(11.2, 4.2)
    _box(axes, (0.8, 2.1), (0.9, 0.8), "入力 x")
    _box(axes, (4.2, 3.1), (2.6, 1.7), f"W（凍らせる）\n{width:,} × {width:,}\n= {width * width:,} 個", GREY)
    _box(axes, (3.0, 0.8), (1.9, 0.7), f"A  {rank} × {width:,}", ORANGE, fill=True)
    _box(axes, (5.6, 0.8), (1.9, 0.7), f"B  {width:,} × {rank}", ORANGE, fill=True)
    _box(axes, (7.6, 2.1), (0.7, 0.7), "＋", GREEN)
    _box(axes, (10.0, 2.1), (2.0, 0.9), "出力\nW x + (α / r) B A x", GREEN)
    for start, end in (
        ((1.25, 2.3), (2.9, 3.1)),
        ((1.25, 1.9), (2.05, 0.9)),
        ((3.95, 0.8), (4.65, 0.8)),
        ((5.5, 3.1), (7.25, 2.3)),
        ((6.55, 0.9), (7.3, 1.75)),
        ((7.95, 2.1), (9.0, 2.1)),
    ):
        _arrow(axes, start, end)
    small = 2 * rank * width
    axes.text(
        4.3,
        0.2,
        f"学習するのは A と B だけ: {small:,} 個（W の {small / width**2:.2%}）",
        ha="center",
        fontsize=13,
        color=RED,
    )
    return figure


def rlhf_and_dpo() -> Figure:
    """RLHF（PPO）と DPO で、動かすモデルと手本の違い。"""
    figure, axes = _canvas(11.2, 4.4)
    axes.text(0.2, 4.05, "RLHF（PPO）: 点数を付けるモデルを先に作り、試しながら上げる", fontsize=14, color=BLUE)
    for x, name, colour in (
        (1.4, "選好の組", GREY),
        (4.0, "報酬モデル", ORANGE),
        (6.6, "方策\n（学ぶモデル）", BLUE),
        (9.2, "価値モデル", ORANGE),
    ):
        _box(axes, (x, 3.2), (1.9, 0.8), name, colour, fill=colour == BLUE)
    _arrow(axes, (2.35, 3.2), (3.05, 3.2), "学習")
    _arrow(axes, (4.95, 3.2), (5.65, 3.2), "点数")
    _arrow(axes, (8.25, 3.2), (7.55, 3.2), "見込み")
    _box(axes, (6.6, 2.2), (1.9, 0.55), "参照（元の重み）", GREY)
    _arrow(axes, (6.6, 2.48), (6.6, 2.8))
    axes.text(9.2, 2.2, "動かすモデルは 4 つ", ha="center", va="center", fontsize=13, color=RED)
    axes.plot([0.2, 11.0], [1.8, 1.8], color="#d9dde3", lw=1)
    axes.text(0.2, 1.45, "DPO: 良い答えと悪い答えの差を、直接ひらく", fontsize=14, color=BLUE)
    _box(axes, (1.4, 0.7), (1.9, 0.8), "選好の組", GREY)
    _box(axes, (4.9, 0.7), (2.6, 0.8), "方策（LoRA あり）", BLUE, fill=True)
    _box(axes, (8.3, 0.7), (2.6, 0.8), "参照 = LoRA を\n外した同じモデル", GREY)
    _arrow(axes, (2.35, 0.7), (3.6, 0.7), "学習")
    _arrow(axes, (7.0, 0.7), (6.2, 0.7))
    axes.text(10.4, 0.7, "1 つで\n足りる", ha="center", va="center", fontsize=13, color=RED, linespacing=1.4)
    return figure


def staircase(steps: Sequence[tuple[str, str]]) -> Figure:
    """下から上がる段。

    Args:
        steps: (やり方, 準備するもの) の列。下の段から。
    """
    figure, axes = _canvas(11.2, 4.2)
    width, rise = 10.8 / len(steps), 3.0 / len(steps)
    for index, (name, needs) in enumerate(steps):
        height = 0.9 + rise * index
        centre = (0.2 + width * (index + 0.5), height / 2 + 0.15)
        _box(axes, centre, (width - 0.12, height), "", BLUE, fill=True)
        axes.text(centre[0], height - 0.1, name, ha="center", va="center", fontsize=14, color="white")
        axes.text(centre[0], height - 0.32, needs, ha="center", va="top", fontsize=11, color="white", linespacing=1.4)
    axes.text(0.3, 3.9, "上がる前に、今の段を同じ質問で測る", fontsize=14, color=RED)
    return figure
