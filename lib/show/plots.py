"""図。日本語の字を出し、headless でも同じ絵になる静止画だけを描く。"""

import html
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # 古い API への警告は matplotlib-fontja のもので、教材のものではない
    import matplotlib_fontja  # noqa: F401  （import すると日本語の字形が登録される）

# 色覚の違いに強い配色（Okabe & Ito 2008）。
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8f98"
plt.rcParams.update({"figure.figsize": (8, 3.6), "axes.spines.top": False, "axes.spines.right": False})


def bars(values: Mapping[str, float], title: str, unit: str = "", log: bool = False) -> Figure:
    """横棒の図。値を棒の端に書く。"""
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(values) + 1.0))
    names = list(values)[::-1]
    drawn = axes.barh(names, [values[name] for name in names], color=BLUE)
    axes.bar_label(drawn, [f"{values[name]:,.4g}{unit}" for name in names], padding=4)
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.18)
    axes.set_title(title)
    plt.close(figure)
    return figure


def rates(values: Mapping[str, tuple[float, float, float]], title: str) -> Figure:
    """割合と 95% 区間の横棒。値は (点, 下, 上)、いずれも 0–1。"""
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(values) + 1.0))
    names = list(values)[::-1]
    points = [100 * values[name][0] for name in names]
    # 丸めで 0 をわずかに下回ることがあるので、0 で止める。
    below = [max(0.0, 100 * (values[name][0] - values[name][1])) for name in names]
    above = [max(0.0, 100 * (values[name][2] - values[name][0])) for name in names]
    axes.barh(names, points, color=BLUE, xerr=[below, above], capsize=4, ecolor=GREY)
    axes.set_xlim(0, 108)
    axes.set_xlabel("%（線は 95% 区間）")
    axes.set_title(title)
    plt.close(figure)
    return figure


def quality_against_cost(
    cost: Mapping[str, float],
    quality: Mapping[str, Mapping[str, tuple[float, float, float]]],
    xlabel: str,
    ylabel: str = "正答率（%）",
) -> Figure:
    """費用と割合の散布図を、部分ごとに一枚ずつ横に並べる。

    Args:
        cost: 段 → 費用（横軸、対数）。
        quality: 部分の見出し → {段: (割合, 区間の下, 区間の上)}。割合は 0–1。
    """
    figure, row = plt.subplots(1, len(quality), figsize=(4.2 * len(quality), 4), sharey=True, squeeze=False)
    colours = (GREY, ORANGE, RED, GREEN, BLUE, "#56B4E9", "#CC79A7")
    for axes, (title, points) in zip(row[0], quality.items(), strict=True):
        for (name, (value, low, high)), colour in zip(points.items(), colours, strict=False):
            around = [[max(0.0, 100 * (value - low))], [max(0.0, 100 * (high - value))]]
            axes.errorbar(cost[name], 100 * value, yerr=around, fmt="o", capsize=3, color=colour, label=name)
        axes.set_xscale("log")
        for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatter("{x:g}")  # 既定の 6×10⁻¹ のような書き方は読みにくい
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.set_ylim(-4, 104)
    row[0][0].set_ylabel(ylabel)
    figure.legend(*row[0][0].get_legend_handles_labels(), loc="lower center", ncols=7, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    plt.close(figure)
    return figure


def curve(history: Sequence[Mapping[str, float]], keys: Sequence[str], title: str, xlabel: str = "ステップ") -> Figure:
    """Trainer の記録から折れ線を描く。"""
    figure, axes = plt.subplots()
    for key, colour in zip(keys, (BLUE, ORANGE, GREEN, RED), strict=False):
        points = [(row["step"], row[key]) for row in history if key in row]
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, color=colour, label=key)
    axes.set_xlabel(xlabel)
    axes.set_title(title)
    axes.legend()
    plt.close(figure)
    return figure


def sweep(results: Mapping[str, Mapping[str, float]], parts: Mapping[str, str], title: str) -> Figure:
    """設定ごとの割合を、部分ごとに色を変えた横棒で並べる。

    Args:
        results: 見出し → {部分の鍵: 0–1 の割合}。
        parts: 部分の鍵 → 凡例。
    """
    figure, axes = plt.subplots(figsize=(8, 0.7 * len(results) + 1.2))
    height = 0.8 / len(parts)
    for number, (part, label) in enumerate(parts.items()):
        places = [-(row + number * height) for row in range(len(results))]
        values = [100 * result[part] for result in results.values()]
        drawn = axes.barh(places, values, height, color=(BLUE, ORANGE)[number], label=label)
        axes.bar_label(drawn, fmt="%.0f%%", padding=3, fontsize=9)
    axes.set_yticks([-(row + height * (len(parts) - 1) / 2) for row in range(len(results))], list(results))
    axes.set_xlim(0, 112)
    axes.set_title(title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
    plt.close(figure)
    return figure


def token_strip(tokens: Sequence[str], weights: Sequence[bool], caption: str) -> HTML:
    """トークンを 1 つずつ箱にし、損失の掛かるものに色を付ける。"""
    boxes = "".join(
        f'<span style="background:{"#ffd59e" if on else "#eef0f3"};color:#1b1f24;margin:1px;padding:1px 4px;'
        f'border-radius:3px;display:inline-block;font-family:monospace">{html.escape(token)}</span>'
        for token, on in zip(tokens, weights, strict=True)
    )
    return HTML(f'<div style="line-height:1.9">{boxes}</div><p>{html.escape(caption)}</p>')


def token_boxes(pieces: Sequence[tuple[str, int, bool]], caption: str) -> HTML:
    """トークンを、id を添えた箱にする。同じ文字から割れたトークンは、同じ色で続ける。"""
    colours, boxes, group = ("#cfe8ff", "#ffe3b3", "#d3f0df", "#f3d9ea"), [], -1
    for text, number, going_on in pieces:
        group += not going_on
        boxes.append(
            f'<span style="background:{colours[group % 4]};color:#1b1f24;margin:1px;padding:1px 5px;border-radius:3px;'
            f'display:inline-block;text-align:center;white-space:pre;font-family:monospace;line-height:1.3">'
            f'{html.escape(text.replace(chr(10), "⏎"))}<br><small style="color:#57606a">{number}</small></span>'
        )
    return HTML(f"<div>{''.join(boxes)}</div><p>{html.escape(caption)}</p>")


def chat(entry: Mapping[str, Any]) -> HTML:
    """一つの質問への答えを、モデルごとの吹き出しにして横に並べる。枠は、正答が緑、それ以外が赤。"""
    said = "".join(
        f'<div style="flex:1 1 12em;border:2px solid {GREEN if good else RED};border-radius:8px;padding:6px 10px">'
        f"<small>{html.escape(name)} {'✓' if good else '✗'}</small><br>{html.escape(text) or '（空の答え）'}</div>"
        for name, text, good in entry["answers"]
    )
    look = "background:#eef0f3;color:#1b1f24;border-radius:8px;padding:6px 10px;margin-bottom:6px"
    asked, gold = html.escape(entry["question"]), html.escape(entry["reference"])
    row = f'<div style="display:flex;flex-wrap:wrap;gap:6px">{said}</div>'
    return HTML(f'<div style="max-width:60em"><div style="{look}">{asked}</div>{row}<p>正解: {gold}</p></div>')


def answers_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> HTML:
    """答えを並べた表。`*_ok` の列があれば、その答えの欄を緑か赤に塗る。

    答えの中の HTML は文字としてそのまま見せる（モデルの出力を信用しない）。

    Args:
        rows: 1 問 1 辞書。
        columns: 列の鍵 → 見出し。
    """
    head = "".join(f'<th style="text-align:left">{html.escape(label)}</th>' for label in columns.values())
    body = []
    for row in rows:
        cells = []
        for key in columns:
            mark = row.get(f"{key}_ok")
            colour = "" if mark is None else ("background:#d9f2e3;" if mark else "background:#fbdcd3;")
            sign = "" if mark is None else ("✓ " if mark else "✗ ")
            cells.append(
                f'<td style="text-align:left;{colour}color:#1b1f24">{sign}{html.escape(str(row.get(key, "")))}</td>'
            )
        body.append(f"<tr>{''.join(cells)}</tr>")
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")
