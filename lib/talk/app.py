"""モデルを並べて答えさせ、左右に伏せて投票する web ページ（`make app`）。Gradio で、127.0.0.1 にだけ開く。"""

import argparse
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import astuple, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

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
from lib.show.page import BASE, load_results
from lib.show.plots import picture
from lib.show.widgets import TIE, Ballot
from lib.talk.plan import TALK
from lib.text.quantities import nfkc, places, readable, unexpected

Models = Mapping[str, Callable[[str], str]]  # モデルの名前 → 質問を渡すと答えを返す関数


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


def answer_card(name: str, ask: Callable[[str], str], question: str, example: Example | None) -> dict[str, Any]:
    """一つのモデルに答えさせた枠（`cards.html` に入れる形）。読めない重みは、空の答えではなく、理由を見せる。"""
    try:
        said = ask(question)
    except (WorkshopError, OSError, RuntimeError, ValueError) as error:
        return {"name": name, "body": f"読めません: {error!s:.200}", "quiet": True}
    right, wrong = ("正答", "誤答") if example and example.figures else ("回答を控えた", "回答を控えなかった")
    verdict = example and (f"○ {right}" if is_correct(example, said) else f"× {wrong}")
    return {"name": name, "body": coloured(said, example), "verdict": verdict}


def open_models(run: Run, exam: dict[str, Example], closing: ExitStack) -> Models:
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
        example = exam.get(nfkc(question)) or replace(next(iter(exam.values())), question=question, history=())
        if where and where.suffix == ".gguf":
            return server(where).ask(example.prompt(), run.profile.answer_tokens)[0]
        return answer(*weights(where), [example], run.profile)[0]

    found = {"SFT": run.folder / "04_lora_sft" / "adapter", "SFT + DPO": run.folder / "05_preference" / "dpo_adapter"}
    modelfile = run.folder / "06_merge_to_gguf" / "Modelfile"
    if modelfile.exists():  # 06 が測って選んだ量子化
        path = modelfile.parent / read_modelfile(modelfile.read_text(encoding="utf-8")).source
        found[f"GGUF {path.stem.removeprefix('model-').upper()}"] = path
    return {BASE: partial(ask, None)} | {name: partial(ask, path) for name, path in found.items() if path.exists()}


def read_exam(run: Run) -> dict[str, Example]:
    """NFKC でそろえた質問 → 評価の問題。データか学習のノートブックがまだなら `WorkshopError`。"""
    if missing := [stage for stage in ("02_dataset", "04_lora_sft") if not run.is_done(stage)]:
        what = f"実行「{run.folder.name}」は {'・'.join(missing)} が終わっていません"
        raise WorkshopError(what, f"先に make run RUN={run.folder.name} を最後まで実行してください")
    paths = [run.folder / "02_dataset" / f"{part}.jsonl" for part in ("near", "far", "unseen", "ask_test")]
    examples = [example for path in paths if path.exists() for example in read_examples(path)]
    return {nfkc(example.question): example for example in examples}


def open_ballot(run: Run) -> Ballot:
    """07 と同じ二つのモデルの、同じファイルに残す投票（near と far の答え）。"""
    (one, first), (two, second) = list(load_results(run).items())[:2]
    pairs = zip(first, second, strict=True)
    rows = [(a["question"], a["answer"], b["answer"]) for a, b in pairs if a["part"] in ("near", "far")]
    path = run.folder / "07_evaluation" / "votes.json"
    if path.exists() and read_json(path)["names"] != [one, two]:
        raise WorkshopError("前の票は、別のモデルどうしのものです", "このファイルを別の名前にしてください", path)
    return Ballot((one, two), rows, path, run.seed)


def _answer_tab(gr: Any, models: Models, exam: dict[str, Example]) -> None:
    def ask_all(question: str) -> Iterator[tuple[str, str]]:
        question, cards = question.strip(), list[dict[str, Any]]()
        example = exam.get(nfkc(question))
        note = f"正解: {example.answer}" if example else "正解の分からない質問です（色も○×も付けません）。"
        for name, ask in models.items() if question else ():
            waiting = {"name": name, "body": "答えています…", "quiet": True}
            yield escape(note), picture("talk/cards.html", cards=[*cards, waiting]).data
            cards.append(answer_card(name, ask, question, example))
        yield escape(note if question else "質問を書いてください。"), picture("talk/cards.html", cards=cards).data

    with gr.Row(equal_height=True):
        box = gr.Textbox(label="質問", max_length=300, scale=5)
        button = gr.Button("答えさせる", variant="primary", scale=1)
    shown = [gr.HTML(js_on_load=None, elem_classes="line"), gr.HTML(js_on_load=None)]
    # 例は答えの下に置く。上に置くと、1024×768 の映写では答えが画面の外に出る。
    gr.Examples([[example.question] for example in list(exam.values())[:6]], box, label="例（評価の質問から）")
    gr.on([button.click, box.submit], ask_all, box, shown, show_progress="hidden", api_visibility="private")


def _vote_tab(gr: Any, opened: Any, run: Run) -> None:
    def show(seen: int | None = None, side: str = "") -> list[Any]:
        try:
            ballot = open_ballot(run)
        except WorkshopError as error:
            return [None, escape(str(error)), "", *[gr.Button(interactive=False)] * 3]
        if side and seen is not None and seen == ballot.next():  # 二度押しと、別の窓の票は、数えない
            ballot.vote(seen, side)
        (one, two), number, votes = ballot.names, ballot.next(), list(ballot.votes.values())
        decided = len(votes) - votes.count(TIE)
        rate = wilson(votes.count(two), decided).as_percent() if decided else "は、決まりません（全部が引き分け）"
        text, cards = f"全部の質問に投票しました。{one} に対する {two} の勝率 {rate}（引き分けを除く）", []
        if number is not None:
            text = f"{number + 1} / {len(ballot.rows)}　{ballot.rows[number][0]}"
            cards = [{"name": n, "body": said} for n, said in zip("左右", ballot.sides(number), strict=True)]
        shown = picture("talk/cards.html", cards=cards).data
        return [number, escape(text), shown, *[gr.Button(interactive=number is not None)] * 3]

    seen, text = gr.State(None), gr.HTML(js_on_load=None, elem_classes="line")
    answers = gr.HTML(js_on_load=None, min_height=320)  # 答えの長さで、投票のボタンの位置が動かないように
    with gr.Row():
        buttons = [gr.Button(side, variant="primary", interactive=False) for side in ("左", TIE, "右")]
    # 票は一つずつ書く。二つの窓から同時に押されても、失わない。
    given: dict[str, Any] = {"concurrency_id": "votes", "concurrency_limit": 1, "api_visibility": "private"}
    given |= {"outputs": [seen, text, answers, *buttons], "show_progress": "hidden"}
    opened.load(show, None, **given)
    for button in buttons:
        button.click(partial(show, side=button.value), seen, **given)


def open_page(run: Run, models: Models, exam: dict[str, Example], port: int) -> Any:
    """二つの見出しのページを 127.0.0.1 に開き、待たずに返す。Gradio が無いか、開けなければ `WorkshopError`。"""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # import のときに読まれる
    for name in ("NO_PROXY", "no_proxy"):  # 会場のプロキシに、自分あての通信を送らない
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    try:
        import gradio as gr
    except ImportError:
        raise WorkshopError("Gradio が入っていません", "make app で開いてください（初めに入れます）") from None
    with gr.Blocks(title=f"答えを比べる: {run.folder.name}", fill_width=True) as opened:
        with gr.Tab("並べて答える"):
            _answer_tab(gr, models, exam)
        with gr.Tab("ブラインド評価"):
            _vote_tab(gr, opened, run)
    options = {**read_json(TALK / "app.json"), "css_paths": TALK / "app.css"}
    theme = gr.themes.Default(primary_hue="blue", text_size="lg", font="sans-serif", font_mono="monospace")
    try:
        opened.launch(server_name="127.0.0.1", server_port=port, theme=theme, **options)
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
        run = reopen(options.run)
        exam = read_exam(run)
        page = open_page(run, open_models(run, exam, closing), exam, options.port)
        closing.callback(page.close, verbose=False)
        print(f"http://127.0.0.1:{options.port} をブラウザで開いてください（Ctrl-C で終わり）。", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
