"""発表で使う web ページ（Gradio）。モデルを並べて答えさせ、答えを左右に伏せて選んでもらう。127.0.0.1 にだけ開く。

使い方: `python -m lib.talk.app --run 名前 [--port 7860]`（`make app`）。Gradio は、このページを開くときだけ使う。
"""

import argparse
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import astuple, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from lib.data.facts import Example, read_examples
from lib.data.own import TABLE
from lib.errors import WorkshopError, command_line
from lib.export.serve import read_modelfile, serve
from lib.files import read_json
from lib.model.generate import answer
from lib.model.load import load_model, load_tokenizer, resolve
from lib.run import Run, reopen
from lib.score.answers import is_correct, wilson
from lib.show.page import BASE, Rows, load_results
from lib.show.plots import picture
from lib.show.widgets import TIE, Ballot
from lib.talk.plan import TALK
from lib.text.quantities import nfkc, places, readable, unexpected

Answerer = Callable[[str], str]
_ADAPTERS = {"SFT": "04_lora_sft/adapter", "SFT + DPO": "05_preference/dpo_adapter"}


class Material(NamedTuple):
    """ページに出すもの。テストは、偽の答え手と結果を渡す。"""

    run: Run
    answerers: dict[str, Answerer]  # モデルの名前 → 質問を渡すと答えを返す関数
    exam: dict[str, Example]  # `key` でそろえた質問 → 問題。ここに無い質問の正解は分からない
    results: dict[str, Rows]  # モデルの名前 → 採点の行（投票に使う）


def key(question: str) -> str:
    """同じ質問かを見る鍵。全角と半角、前後の空白だけを区別しない。"""
    return nfkc(question).strip()


def coloured(said: str, example: Example | None) -> Markup:
    """答えの HTML。正解にある数値には緑と○、無い数値には赤と×を付ける。正解が分からなければ、付けない。"""
    if not said or example is None:
        return escape(said or "（何も答えませんでした）")
    text, wrong = readable(said), {astuple(quantity) for quantity in unexpected(said, example.figures)}
    same = len(text) == len(said) and all(nfkc(said[a:b]) == text[a:b] for _, a, b in places(text))
    shown = said if same else text  # 読むと長さが変わる答え（三千円 → 3000円）は、読んだ形で見せる
    marked, position = Markup(""), 0
    for quantity, start, end in places(text):
        kind = ("wrong", "×") if astuple(quantity) in wrong else ("right", "○")
        figure = Markup('<span class="figure {}">{}{}</span>').format(*kind, shown[start:end])
        marked, position = marked + shown[position:start] + figure, end
    return marked + shown[position:]


def answer_card(name: str, ask: Answerer, question: str, example: Example | None) -> dict[str, Any]:
    """一つのモデルに答えさせた枠（`cards.html` に入れる形）。読めない重みは、空の答えではなく、理由を見せる。"""
    try:
        said = ask(question)
    except (WorkshopError, OSError, RuntimeError, ValueError) as error:
        return {"name": name, "body": f"読めません: {error or type(error).__name__}".splitlines()[0], "quiet": True}
    card = {"name": name, "body": coloured(said, example)}
    if example:
        right, wrong = ("正答", "誤答") if example.figures else ("回答を控えた", "回答を控えなかった")
        card["verdict"] = f"○ {right}" if is_correct(example, said) else f"× {wrong}"
    return card


def _cards(cards: list[dict[str, Any]]) -> str:
    return picture("talk/cards.html", cards=cards).data


def open_models(run: Run, exam: dict[str, Example], closing: ExitStack) -> dict[str, Answerer]:
    """この実行のモデル。重みは初めて尋ねられたときに読み、llama.cpp は `closing` が閉じるときに止まる。"""

    @cache
    def weights(adapter: Path | None) -> tuple[Any, Any]:
        base = resolve(run.profile)
        return load_model(adapter or base, run.profile), load_tokenizer(base)

    @cache
    def server(gguf: Path) -> Any:
        return closing.enter_context(serve(gguf))

    def ask(where: Path | None, question: str) -> str:
        if found := re.search(TABLE["texts"]["control-token"]["pattern"], question):
            raise WorkshopError(f"質問に、会話の区切りの印 {found[0]} があります", "印を除いて、もう一度尋ねてください")
        example = exam.get(key(question)) or replace(next(iter(exam.values())), question=question, history=())
        if where and where.suffix == ".gguf":
            return server(where).ask(example.prompt(), run.profile.answer_tokens)[0]
        return answer(*weights(where), [example], run.profile)[0]

    folder = run.folder / "06_merge_to_gguf"
    files = sorted(folder.glob("*.gguf"), key=os.path.getsize)
    if (folder / "Modelfile").exists():  # 06 が測って選んだ量子化。いちばん小さいものは、答えが崩れていることがある
        files = [folder / read_modelfile((folder / "Modelfile").read_text(encoding="utf-8")).source]
    places = {name: run.folder / at for name, at in _ADAPTERS.items() if (run.folder / at).exists()}
    places |= {f"GGUF {path.stem.removeprefix('model-').upper()}": path for path in files[:1]}
    return {BASE: partial(ask, None)} | {name: partial(ask, place) for name, place in places.items()}


def gather(run: Run, closing: ExitStack) -> Material:
    """終わった実行から、ページに出すものを集める。データか学習のノートブックがまだなら `WorkshopError`。"""
    if missing := [stage for stage in ("02_dataset", "04_lora_sft") if not run.is_done(stage)]:
        what = f"実行「{run.folder.name}」は {'・'.join(missing)} が終わっていません"
        raise WorkshopError(what, f"先に make run RUN={run.folder.name} を最後まで実行してください")
    paths = [run.folder / "02_dataset" / f"{part}.jsonl" for part in ("near", "far", "unseen", "ask_test")]
    examples = [example for path in paths if path.exists() for example in read_examples(path)]
    exam = {key(example.question): example for example in examples}
    results = load_results(run) if run.is_done("07_evaluation") else {}
    return Material(run, open_models(run, exam, closing), exam, results)


def open_ballot(material: Material, one: str, two: str) -> Ballot:
    """二つのモデルの投票（near と far の答え）。票はペアごとに一つのファイルに残し、初めのペアは 07 の投票と同じもの。

    Raises:
        WorkshopError: 採点の表が無いか、同じモデルを二度選んだとき。
    """
    if not material.results:
        raise WorkshopError("採点の表がまだありません", "07 を実行してから、このページを開き直してください")
    if one == two:
        raise WorkshopError("同じモデルどうしは比べられません", "違うモデルを選んでください")
    names = [name for name in material.results if name in (one, two)]
    pairs = zip(*(material.results[name] for name in names), strict=True)
    rows = [(a["question"], a["answer"], b["answer"]) for a, b in pairs if a["part"] in ("near", "far")]
    path = material.run.folder / "07_evaluation" / "votes.json"
    if names != list(material.results)[:2] or (path.exists() and read_json(path)["names"] != names):
        path = path.with_name("votes_" + re.sub(r"\W+", "-", " ".join(names)) + ".json")
    return Ballot((names[0], names[1]), rows, path, material.run.seed)


def standing(ballot: Ballot) -> str:
    """いまの勝率の文。決着の付いた票が無ければ、そう言う。"""
    (one, two), votes = ballot.names, list(ballot.votes.values())
    counts = "、".join(f"{name} {votes.count(name)} 票" for name in (one, two, TIE))
    if not (decided := len(votes) - votes.count(TIE)):
        return f"決着の付いた票が、まだありません（{counts}）。"
    rate = wilson(votes.count(two), decided).as_percent()
    return f"{one} に対する {two} の勝率 {rate}。角括弧は 95% 区間。引き分けは除く（{counts}）。"


def _answer_tab(gr: Any, material: Material) -> None:
    def ask_all(question: str) -> Iterator[tuple[str, str]]:
        example, cards = material.exam.get(key(question)), []
        note = escape(f"正解: {example.answer}" if example else "正解の分からない質問です（色も○×も付けません）。")
        for name, ask in material.answerers.items() if key(question) else ():
            yield note, _cards([*cards, {"name": name, "body": "答えています…", "quiet": True}])
            cards.append(answer_card(name, ask, question.strip(), example))
        yield note if cards else "質問を書いてください。", _cards(cards)

    with gr.Row(equal_height=True):
        box = gr.Textbox(label="質問", max_length=300, scale=5)
        button = gr.Button("答えさせる", variant="primary", scale=1)
    note, answers = (gr.HTML(js_on_load=None, elem_classes=name) for name in ("line", ""))
    samples = [[example.question] for example in list(material.exam.values())[:6]]
    # 例は答えの下に置く。上に置くと、1024×768 の映写では答えが画面の外に出る。
    gr.Examples(samples, box, label="例（評価の質問から）")
    gr.on([button.click, box.submit], ask_all, box, [note, answers], show_progress="hidden", api_visibility="private")


def _vote_tab(gr: Any, opened: Any, material: Material) -> None:
    def show(one: str, two: str, seen: tuple[Any, ...] = (), side: str = "", peeking: bool = False) -> list[Any]:
        try:
            ballot = open_ballot(material, one, two)
            if side and tuple(seen) == (one, two, ballot.next()):  # 二度押し、別の窓の票、選び直す前の票は、数えない
                ballot.vote(seen[2], side)
        except WorkshopError as error:
            return [(), escape(str(error)), "", *[gr.Button(interactive=False)] * 3]
        number = ballot.next()
        text, cards = "全部の質問に投票しました。", []
        if number is not None:
            text = f"{number + 1} / {len(ballot.rows)}　{ballot.rows[number][0]}"
            cards = [
                {"name": n, "body": coloured(said, None)} for n, said in zip("左右", ballot.sides(number), strict=True)
            ]
        if peeking or number is None:
            text += " " + standing(ballot)
        return [
            (one, two, number),
            escape(text),
            _cards(cards),
            *[gr.Button(interactive=number is not None)] * 3,
        ]

    names: list[Any] = [*material.results, None, None]
    with gr.Row():
        one = gr.Dropdown(names[:-2], value=names[0], label="一つ目のモデル", filterable=False)
        two = gr.Dropdown(names[:-2], value=names[1], label="二つ目のモデル", filterable=False)
    asked, text = gr.State(()), gr.HTML(js_on_load=None, elem_classes="line")
    answers = gr.HTML(js_on_load=None, min_height=320)  # 答えの長さで、投票のボタンの位置が動かないように
    with gr.Row():
        buttons = [gr.Button(side, variant="primary", interactive=False) for side in ("左", TIE, "右")]
    peek = gr.Button("ここまでの勝率を見る")
    # 票は一つずつ書く。二つの窓から同時に押されても、失わない。
    given: dict[str, Any] = {"concurrency_id": "votes", "concurrency_limit": 1, "api_visibility": "private"}
    given |= {"outputs": [asked, text, answers, *buttons], "show_progress": "hidden"}
    gr.on([opened.load, one.change, two.change], show, [one, two], **given)
    peek.click(partial(show, peeking=True), [one, two], **given)
    for button in buttons:
        button.click(partial(show, side=button.value), [one, two, asked], **given)


def open_page(material: Material, port: int) -> Any:
    """二つの見出し（並べて答える、投票）のページを 127.0.0.1 に開き、待たずに返す。`close()` で閉じる。

    Raises:
        WorkshopError: Gradio が無いか、ポートを開けないとき。
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # import のときに読まれる
    for name in ("NO_PROXY", "no_proxy"):  # 会場のプロキシに、自分あての通信を送らない
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    try:
        import gradio as gr
    except ImportError:
        raise WorkshopError("Gradio が入っていません", "make app で開いてください（初めに入れます）") from None
    with gr.Blocks(title=f"答えを比べる: {material.run.folder.name}", fill_width=True) as opened:
        with gr.Tab("並べて答える"):
            _answer_tab(gr, material)
        with gr.Tab("目隠し投票"):
            _vote_tab(gr, opened, material)
    options = {**read_json(TALK / "app.json"), "css_paths": TALK / "app.css"}
    options["theme"] = gr.themes.Default(text_size="lg", font=("sans-serif",), font_mono=("monospace",))
    try:
        opened.launch(server_name="127.0.0.1", server_port=port, **options)
    except (OSError, OverflowError):
        what = f"127.0.0.1 のポート {port} を開けません（ほかのものが使っているかもしれません）"
        raise WorkshopError(what, "make app PORT=7861 のように、別の番号にしてください") from None
    return opened


def main() -> None:
    """終わった実行のページを開き、Ctrl-C まで待つ。"""
    parser = argparse.ArgumentParser(description="モデルの答えを並べ、左右を伏せて投票するページを開く")
    parser.add_argument("--run", default="embedded")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    with command_line(), ExitStack() as closing:
        page = open_page(gather(reopen(options.run), closing), options.port)
        closing.callback(page.close, verbose=False)
        print(f"http://127.0.0.1:{options.port} をブラウザで開いてください（Ctrl-C で終わり）。", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
