"""発表で使う web ページ（Gradio）。モデルを並べて答えさせ、答えを目隠しで選んでもらう。127.0.0.1 にだけ開く。

使い方: `python -m lib.app --run 名前 [--port 7860]`（`make app`）。Gradio は、このページを開くときだけ要る。
"""

import argparse
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from html import escape
from typing import Any

from lib.errors import WorkshopError, command_line
from lib.judge import TIE
from lib.plots import GREEN, GREY, RED
from lib.showcase import Material, answer_card, card, gather, key, open_ballot, standing
from lib.workspace import reopen

SIDES = ("左", TIE, "右")
# 大きさは、後ろの席からも読めるように。字は、その機械にあるものだけを使う（外へ取りに行かない）。
FONTS = ("Hiragino Sans", "Noto Sans JP", "Noto Sans CJK JP", "Yu Gothic UI", "Meiryo", "sans-serif")
STYLE = f"""
.card{{border:2px solid {GREY};border-radius:10px;padding:.7rem 1rem;background:#fff;color:#1b1f24;min-height:9rem;
font-size:1.5rem;line-height:1.6;overflow-wrap:anywhere;white-space:pre-wrap}}
.card h3{{margin:0 0 .4rem;font-size:1.25rem;color:#1b1f24;border-bottom:1px solid {GREY}}} .card.quiet{{color:#57606a}}
.card .verdict{{font-size:1.25rem;font-weight:700;margin-top:.4rem}}
.figure{{padding:0 .2em;border-radius:5px;color:#1b1f24;font-weight:700;white-space:nowrap}}
.right{{background:{GREEN}33;border-bottom:4px solid {GREEN}}}
.wrong{{background:{RED}33;border-bottom:4px solid {RED}}}
.line{{font-size:1.4rem;line-height:1.6;overflow-wrap:anywhere}} .line b{{font-size:1.6rem}}
button,label,textarea,input{{font-size:1.25rem!important}}
"""
HEAD = '<script>document.documentElement.lang = "ja"</script>'  # 無いと、漢字が中国語の字形になる機械がある


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # import のときに読まれる
    for name in ("NO_PROXY", "no_proxy"):  # 会場のプロキシに、自分あての通信を送らない
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
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


def _answer_tab(gr: Any, material: Material) -> None:
    def ask_all(question: str) -> Iterator[list[str]]:
        example = material.exam.get(key(question))
        note = f"正解: {example.answer}" if example else "正解の分からない質問です（色も○×も付けません）。"
        cards = {name: card(name, "答えています…", quiet=True) for name in material.answerers}
        if not key(question):
            note, cards = "質問を書いてください。", dict.fromkeys(cards, "")
        note = f'<div class="line">{escape(note)}</div>'
        yield [note, *cards.values()]
        for name, ask in material.answerers.items() if key(question) else ():
            cards[name] = answer_card(name, ask, question.strip(), example)
            yield [note, *cards.values()]

    with gr.Row(equal_height=True):
        box = gr.Textbox(label="質問", max_length=300, scale=5)
        button = gr.Button("答えさせる", variant="primary", scale=1)
    gr.Examples([[sample] for sample in material.samples], box, label="例（試験の質問から）")
    note = gr.HTML(js_on_load=None)
    with gr.Row(equal_height=True):
        places = [gr.HTML(card(name, "", quiet=True), js_on_load=None, min_width=280) for name in material.answerers]
    gr.on([button.click, box.submit], ask_all, box, [note, *places], show_progress="hidden", api_visibility="private")


def _vote_tab(gr: Any, page: Any, material: Material) -> None:
    names = [] if isinstance(material.results, str) else list(material.results)
    with gr.Row():
        pair = [
            gr.Dropdown(names, value=names[at] if len(names) > at else None, label=label, filterable=False)
            for at, label in enumerate(("一つ目のモデル", "二つ目のモデル"))
        ]
    number, head = gr.State(None), gr.HTML(js_on_load=None)
    with gr.Row(equal_height=True):
        sides = [gr.HTML(js_on_load=None) for _ in range(2)]
    with gr.Row():
        buttons = [gr.Button(side, variant="primary", interactive=False) for side in SIDES]
    peek = gr.Button("ここまでの勝率を見る")
    result = gr.HTML(js_on_load=None)

    def show(one: str, two: str, side: str = "", seen: int | None = None, peeking: bool = False) -> list[Any]:
        try:
            ballot = open_ballot(material, one, two)
            if side and seen is not None and str(seen) not in ballot.votes:  # 二度押しや、別の窓の票を重ねない
                ballot.vote(seen, side)
        except WorkshopError as error:
            return [
                None,
                f'<div class="line">{escape(str(error))}</div>',
                "",
                "",
                *[gr.Button(interactive=False)] * 3,
                "",
            ]
        left = ballot.next()
        if left is None:
            text, shown = "全部の質問に投票しました。", ["", ""]
        else:
            text = f"{left + 1} / {len(ballot.rows)}　<b>{escape(ballot.rows[left][0])}</b>"
            shown = [card(name, escape(said)) for name, said in zip(("左", "右"), ballot.sides(left), strict=True)]
        done = standing(ballot) if peeking or left is None else ""
        return [left, f'<div class="line">{text}</div>', *shown, *[gr.Button(interactive=left is not None)] * 3, done]

    # 票は一つずつ書く。二つの窓から同時に押されても、失わない。
    given: dict[str, Any] = {"concurrency_id": "votes", "concurrency_limit": 1, "api_visibility": "private"}
    outputs = [number, head, *sides, *buttons, result]
    gr.on([page.load, *(one.change for one in pair)], show, pair, outputs, show_progress="hidden", **given)
    peek.click(partial(show, peeking=True), pair, outputs, show_progress="hidden", **given)
    for button, side in zip(buttons, SIDES, strict=True):

        def press(one: str, two: str, seen: int | None, side: str = side) -> list[Any]:
            return show(one, two, side, seen)

        button.click(press, [*pair, number], outputs, show_progress="hidden", **given)


def open_page(material: Material, port: int) -> Any:
    """ページを 127.0.0.1 に開き、待たずに返す。`close()` で閉じる。

    Raises:
        WorkshopError: Gradio が無いか、ポートを開けないとき。
    """
    gr = _gradio()
    theme = gr.themes.Default(font=FONTS, font_mono=("monospace",), text_size="lg")
    options = {"share": False, "ssr_mode": False, "pwa": False, "mcp_server": False, "enable_monitoring": False}
    options |= {"prevent_thread_lock": True, "quiet": True, "footer_links": [], "run_history": False}
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
