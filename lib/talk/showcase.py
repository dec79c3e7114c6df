"""答えを比べるページの中身。モデルを開き、答えの数値に○×を付け、投票を組にする（画面は `lib.talk.app`）。"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from lib.data.facts import Example, read_examples
from lib.data.own import TABLE
from lib.errors import WorkshopError
from lib.export.serve import read_modelfile
from lib.files import read_json
from lib.run import Run
from lib.score.answers import is_correct, wilson
from lib.show.page import BASE, Rows, load_results
from lib.show.widgets import TIE, Ballot
from lib.text.quantities import nfkc, places, readable, unexpected

Answerer = Callable[[str], str]
ADAPTERS = {"SFT": "04_lora_sft/adapter", "SFT + DPO": "05_preference/dpo_adapter"}


@dataclass(frozen=True)
class Material:
    """ページに出すもの。テストは、偽の答え手と結果を渡す。

    Attributes:
        name: 実行の名前。
        answerers: モデルの名前 → 質問を渡すと答えを返す関数。
        exam: `key` でそろえた質問 → 試験の問題。ここに無い質問の正解は分からない。
        samples: 例として見せる質問。
        results: モデルの名前 → 採点の行（投票に使う）。まだ無ければ、その理由の文。
        folder: 票を残すフォルダ。
        seed: 左右を決める乱数の種。
    """

    name: str
    answerers: Mapping[str, Answerer]
    exam: Mapping[str, Example]
    samples: Sequence[str]
    results: Mapping[str, Rows] | str
    folder: Path
    seed: int = 0


def key(question: str) -> str:
    """同じ質問かを見る鍵。全角と半角、前後の空白だけを区別しない。"""
    return nfkc(question).strip()


def coloured(answer: str, example: Example | None) -> str:
    """答えの HTML。正解にある数値には緑と○、無い数値には赤と×を付ける。正解が分からなければ、付けない。

    漢数字のように、読み方をそろえると長さが変わる答えは、そろえた形（三千円 → 3000円）で見せる。
    """
    if not answer or example is None:
        return escape(answer) or "（何も答えませんでした）"
    text = readable(answer)
    found = places(text)
    same = len(text) == len(answer) and all(nfkc(answer[start:end]) == text[start:end] for _, start, end in found)
    shown = answer if same else text
    wrong = {(figure.unit, figure.value, figure.text) for figure in unexpected(answer, example.figures)}
    pieces, position = [], 0
    for figure, start, end in found:
        kind, mark = ("wrong", "×") if (figure.unit, figure.value, figure.text) in wrong else ("right", "○")
        pieces += [
            escape(shown[position:start]),
            f'<span class="figure {kind}">{mark}{escape(shown[start:end])}</span>',
        ]
        position = end
    return "".join(pieces) + escape(shown[position:])


def card(name: str, body: str, quiet: bool = False) -> str:
    """一つの枠の HTML。`body` は、もう HTML になったもの。"""
    return f'<div class="card{" quiet" if quiet else ""}"><h3>{escape(name)}</h3>{body}</div>'


def answer_card(name: str, ask: Answerer, question: str, example: Example | None) -> str:
    """一つのモデルに答えさせた枠。読めない重みは、空の答えではなく、理由を見せる。"""
    try:
        said = ask(question)
    except (WorkshopError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return card(name, f"読めません: {escape(reason)}", quiet=True)
    verdict = ""
    if example is not None:
        words = ("断れた", "断れなかった") if not example.figures else ("正答", "誤答")
        verdict = f"○ {words[0]}" if is_correct(example, said) else f"× {words[1]}"
    return card(name, coloured(said, example) + (f'<div class="verdict">{verdict}</div>' if verdict else ""))


def open_models(run: Run, exam: Mapping[str, Example], closing: ExitStack) -> dict[str, Answerer]:
    """この実行のモデル。重みは初めて尋ねられたときに読み、llama.cpp は `closing` が閉じるときに止まる。"""
    pattern = next(iter(exam.values()))

    def as_example(question: str) -> Example:
        if found := re.search(TABLE["texts"]["control-token"]["pattern"], question):
            raise WorkshopError(f"質問に、会話の区切りの印 {found[0]} があります", "印を除いて、もう一度尋ねてください")
        return exam.get(key(question)) or replace(pattern, question=question, history=())

    def from_weights(adapter: Path | None) -> Answerer:
        @cache
        def load() -> tuple[Any, Any]:
            from lib.model.load import load_model, load_tokenizer, resolve

            base = resolve(run.profile)
            return load_model(adapter or base, run.profile), load_tokenizer(base)

        def ask(question: str) -> str:
            from lib.model.generate import answer

            return answer(*load(), [as_example(question)], run.profile)[0]

        return ask

    def from_gguf(path: Path) -> Answerer:
        @cache
        def load() -> Any:
            from lib.export.serve import serve

            return closing.enter_context(serve(path))

        return lambda question: load().ask(as_example(question).prompt(), run.profile.answer_tokens)[0]

    models = {BASE: from_weights(None)}
    models |= {name: from_weights(run.folder / at) for name, at in ADAPTERS.items() if (run.folder / at).exists()}
    folder = run.folder / "06_merge_to_gguf"
    files = sorted(folder.glob("*.gguf"), key=lambda path: path.stat().st_size)
    if (folder / "Modelfile").exists():  # 06 が測って選んだ量子化。いちばん小さいものは、答えが崩れていることがある
        files = [folder / read_modelfile((folder / "Modelfile").read_text(encoding="utf-8")).source]
    return models | {f"GGUF {p.stem.removeprefix('model-').upper()}": from_gguf(p) for p in files[:1]}


def gather(run: Run, closing: ExitStack) -> Material:
    """終わった実行から、ページに出すものを集める。

    Raises:
        WorkshopError: データか学習の段が、まだ終わっていないとき。
    """
    if missing := [stage for stage in ("02_dataset", "04_lora_sft") if not run.is_done(stage)]:
        raise WorkshopError(
            f"実行「{run.folder.name}」は {'・'.join(missing)} が終わっていません",
            f"先に make run RUN={run.folder.name} を最後まで実行してください",
        )
    paths = {part: run.folder / "02_dataset" / f"{part}.jsonl" for part in ("ask_test", "unseen", "far", "near")}
    parts = {part: read_examples(path) for part, path in paths.items() if path.exists()}
    exam = {key(example.question): example for examples in parts.values() for example in examples}
    samples = [example.question for part in ("near", "far") for example in parts[part][:6:2]]
    try:
        results: Mapping[str, Rows] | str = load_results(run)
    except WorkshopError as error:
        results = str(error)
    models = open_models(run, exam, closing)
    return Material(run.folder.name, models, exam, samples, results, run.folder / "07_evaluation", run.seed)


def open_ballot(material: Material, one: str, two: str) -> Ballot:
    """二つのモデルの投票（near と far の答え）。票は組ごとに一つのファイルに残し、初めの組は 07 の投票と同じもの。

    Raises:
        WorkshopError: 採点の表が無いか、同じモデルを二度選んだとき。
    """
    if isinstance(material.results, str):
        raise WorkshopError(material.results.rstrip("。"), "終わったら、このページを開き直してください")
    if one == two:
        raise WorkshopError("同じモデルどうしは比べられません", "違うモデルを選んでください")
    order = list(material.results)
    first, second = sorted((one, two), key=order.index)
    pairs = zip(material.results[first], material.results[second], strict=True)
    rows = [(a["question"], a["answer"], b["answer"]) for a, b in pairs if a["part"] in ("near", "far")]
    path = material.folder / "votes.json"
    if [first, second] != order[:2] or (path.exists() and read_json(path)["names"] != [first, second]):
        path = material.folder / ("votes_" + re.sub(r"\W+", "-", f"{first} {second}") + ".json")
    return Ballot((first, second), rows, path, material.seed)


def standing(ballot: Ballot) -> str:
    """いまの勝率の HTML。決着の付いた票が無ければ、そう言う。"""
    one, two = ballot.names
    votes = list(ballot.votes.values())
    counts = "、".join(f"{escape(name)} {votes.count(name)} 票" for name in (one, two, TIE))
    if len(votes) == votes.count(TIE):
        return f"決着の付いた票が、まだありません（{counts}）。"
    rate = wilson(votes.count(two), len(votes) - votes.count(TIE)).as_percent()
    rate = f"{escape(one)} に対する {escape(two)} の勝率 <b>{rate}</b>"
    return f"{rate}<br>角括弧は 95% 区間。引き分けは除く（{counts}）。"
