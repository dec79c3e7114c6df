"""発表で使う web ページ（Gradio）。モデルを並べて答えさせ、答えを目隠しで選んでもらう。127.0.0.1 にだけ開く。

使い方: `python -m lib.talk.app --run 名前 [--port 7860]`（`make app`）。Gradio は、このページを開くときだけ要る。
"""

import argparse
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from html import escape
from typing import Any

from lib.errors import WorkshopError, command_line
from lib.run import reopen
from lib.show.plots import BLUE, GREEN, GREY, RED
from lib.show.widgets import TIE
from lib.talk.showcase import Material, answer_card, card, coloured, gather, key, open_ballot, standing

SIDES = ("左", TIE, "右")
# 大きさは、後ろの席からも読めるように。字は、その機械にあるものだけを使う（外へ取りに行かない）。
FONTS = ("Hiragino Sans", "Noto Sans JP", "Noto Sans CJK JP", "Yu Gothic UI", "Meiryo", "sans-serif")
STYLE = f"""
.cards{{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:.8rem}}
.card{{border:2px solid {GREY};border-radius:10px;padding:.7rem 1rem;background:#fff;color:#1b1f24;min-height:9rem;
font-size:clamp(1.2rem,1.9vw,1.7rem);line-height:1.6;overflow-wrap:anywhere;white-space:pre-wrap}}
.card *{{color:#1b1f24!important}} .card.quiet{{color:#57606a}}
.card h3{{margin:0 0 .4rem;font-size:1.25rem;border-bottom:1px solid {GREY}}}
.card .verdict{{font-size:1.25rem;font-weight:700;margin-top:.4rem}}
.figure{{padding:0 .2em;border-radius:5px;font-weight:700;white-space:nowrap}}
.right{{background:{GREEN}33;border-bottom:4px solid {GREEN}}}
.wrong{{background:{RED}33;border-bottom:4px solid {RED}}}
.line{{font-size:1.4rem;line-height:1.6;overflow-wrap:anywhere}} .line b{{font-size:1.6rem}}
button,label,label span,textarea,input,[data-testid=block-info]{{font-size:1.25rem!important}}
"""
HEAD = '<script>document.documentElement.lang = "ja"</script>'  # 無いと、漢字が中国語の字形になる機械がある


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # import のときに読まれる
    for name in ("NO_PROXY", "no_proxy"):  # 会場のプロキシに、自分あての通信を送らない
        passed = os.environ.get(name, "").split(",")
        if "127.0.0.1" not in passed:
            os.environ[name] = ",".join([*filter(None, passed), "127.0.0.1"])
    try:
        import gradio
    except ImportError:
        raise WorkshopError(
            "Gradio が入っていません",
            "make app を使うか、pip install -c constraints.txt -e '.[app]' を実行してください",
        ) from None
    return gradio


def build_page(material: Material) -> Any:
    """二つの見出し（並べて答える、目隠し投票）のあるページ（`gradio.Blocks`）を組む。まだ開かない。"""
    gr = _gradio()
    with gr.Blocks(title=f"答えを比べる: {material.name}", analytics_enabled=False, fill_width=True) as page:
        with gr.Tab("並べて答える"):
            _answer_tab(gr, material)
        with gr.Tab("目隠し投票"):
            _vote_tab(gr, page, material)
    return page


def _line(text: str) -> str:
    """一行の HTML。`text` は、もう HTML になったもの。"""
    return f'<div class="line">{text}</div>'


def _cards(cards: Iterable[str]) -> str:
    """枠を、同じ高さで横に並べた HTML。狭ければ折り返す。"""
    return f'<div class="cards">{"".join(cards)}</div>'


def _answer_tab(gr: Any, material: Material) -> None:
    def ask_all(question: str) -> Iterator[list[str]]:
        if not key(question):
            yield [_line("質問を書いてください。"), ""]
            return
        example = material.exam.get(key(question))
        note = f"正解: {example.answer}" if example else "正解の分からない質問です（色も○×も付けません）。"
        cards = {name: card(name, "答えています…", quiet=True) for name in material.answerers}
        yield [_line(escape(note)), _cards(cards.values())]
        for name, ask in material.answerers.items():
            cards[name] = answer_card(name, ask, question.strip(), example)
            yield [_line(escape(note)), _cards(cards.values())]

    with gr.Row(equal_height=True):
        box = gr.Textbox(label="質問", max_length=300, scale=5)
        button = gr.Button("答えさせる", variant="primary", scale=1)
    note = gr.HTML(js_on_load=None)
    answers = gr.HTML(_cards(card(name, "", quiet=True) for name in material.answerers), js_on_load=None)
    # 例は答えの下に置く。上に置くと、1024×768 の映写では答えが画面の外に出る。
    gr.Examples([[sample] for sample in material.samples], box, label="例（試験の質問から）")
    gr.on([button.click, box.submit], ask_all, box, [note, answers], show_progress="hidden", api_visibility="private")


def _vote_tab(gr: Any, page: Any, material: Material) -> None:
    names = [] if isinstance(material.results, str) else list(material.results)
    with gr.Row():
        pair = [
            gr.Dropdown(names, value=names[at] if len(names) > at else None, label=label, filterable=False)
            for at, label in enumerate(("一つ目のモデル", "二つ目のモデル"))
        ]
    asked, head = gr.State(()), gr.HTML(js_on_load=None)
    answers = gr.HTML(js_on_load=None, min_height=320)  # 答えの長さで、投票のボタンの位置が動かないように
    with gr.Row():
        buttons = [gr.Button(side, variant="primary", interactive=False) for side in SIDES]
    peek = gr.Button("ここまでの勝率を見る")
    result = gr.HTML(js_on_load=None)

    def show(one: str, two: str, side: str = "", seen: tuple[Any, ...] = (), peeking: bool = False) -> list[Any]:
        try:
            ballot = open_ballot(material, one, two)
            # 二度押し、別の窓の票、選び直す前の組の票は、数えない。
            if side and seen[:2] == (one, two) and seen[2] == ballot.next():
                ballot.vote(seen[2], side)
        except WorkshopError as error:
            return [(), _line(escape(str(error))), "", *[gr.Button(interactive=False)] * 3, ""]
        left, text, shown = ballot.next(), "全部の質問に投票しました。", ""
        if left is not None:
            text = f"{left + 1} / {len(ballot.rows)}　<b>{escape(ballot.rows[left][0])}</b>"
            said = zip(("左", "右"), ballot.sides(left), strict=True)
            shown = _cards(card(name, coloured(answer, None)) for name, answer in said)
        done = standing(ballot) if peeking or left is None else ""
        return [
            (one, two, left),
            _line(text),
            shown,
            *[gr.Button(interactive=left is not None)] * 3,
            done and _line(done),
        ]

    # 票は一つずつ書く。二つの窓から同時に押されても、失わない。
    given: dict[str, Any] = {"concurrency_id": "votes", "concurrency_limit": 1, "api_visibility": "private"}
    outputs = [asked, head, answers, *buttons, result]
    gr.on([page.load, *(one.change for one in pair)], show, pair, outputs, show_progress="hidden", **given)
    peek.click(partial(show, peeking=True), pair, outputs, show_progress="hidden", **given)
    for button, side in zip(buttons, SIDES, strict=True):

        def press(one: str, two: str, seen: tuple[Any, ...], side: str = side) -> list[Any]:
            return show(one, two, side, seen)

        button.click(press, [*pair, asked], outputs, show_progress="hidden", **given)


def open_page(material: Material, port: int) -> Any:
    """ページを 127.0.0.1 に開き、待たずに返す。`close()` で閉じる。

    Raises:
        WorkshopError: Gradio が無いか、ポートを開けないとき。
    """
    gr = _gradio()
    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=("monospace",), text_size="lg")
    theme.set(button_primary_background_fill=BLUE, button_primary_background_fill_dark=BLUE)
    options: dict[str, Any] = {"prevent_thread_lock": True, "quiet": True, "footer_links": [], "run_history": False}
    options |= {"share": False, "ssr_mode": False, "pwa": False, "mcp_server": False, "enable_monitoring": False}
    page = build_page(material)
    try:
        page.launch(server_name="127.0.0.1", server_port=port, theme=theme, css=STYLE, head=HEAD, **options)
    except (OSError, OverflowError):
        raise WorkshopError(
            f"127.0.0.1 のポート {port} を開けません（ほかのものが使っているかもしれません）",
            "make app PORT=7861 のように、別の番号にしてください",
        ) from None
    return page


def main() -> None:
    """終わった実行のページを開き、Ctrl-C まで待つ。"""
    parser = argparse.ArgumentParser(description="モデルの答えを並べ、目隠しで投票するページを開く")
    parser.add_argument("--run", default="embedded")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    with command_line(), ExitStack() as closing:
        material = gather(reopen(options.run), closing)
        closing.callback(open_page(material, options.port).close, verbose=False)
        print(f"http://127.0.0.1:{options.port} をブラウザで開いてください（Ctrl-C で終わり）。", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("\n⏹ 閉じました。票は残っています。")


if __name__ == "__main__":
    main()
