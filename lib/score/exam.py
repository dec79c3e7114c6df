"""試験: どのモデルにも同じ問題を同じ条件で解かせ、表にする。"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib.data.facts import Example, general_questions, read_examples
from lib.files import write_json, write_text
from lib.model.generate import answer_prompts, render
from lib.profiles import Profile
from lib.run import Run
from lib.score.answers import Interval, score_rows, wilson

Rows = Sequence[dict[str, Any]]
Prompt = Callable[[Example], list[dict[str, str]]]
Exam = dict[str, list[Example]]
"""試験問題。`PARTS` の鍵 → 問題の列。"""
PARTS = {
    "near": "取り置きの言い回し",
    "far": "別の言葉での質問",
    "unseen": "教えていない事実",
    "unanswerable": "答えの無い質問（断れたか）",
    "general": "一般の質問（英語）",
}


def build_exam(run: Run) -> Exam:
    """02 が書いた取り置きと、一般の質問から試験を作る。"""
    folder = run.folder / "02_dataset"
    files = {"near": "near", "far": "far", "unseen": "unseen", "unanswerable": "ask_test"}
    parts = {part: read_examples(folder / f"{name}.jsonl") for part, name in files.items()}
    # 忘却は、学習と同じシステム文の下で見る（自分のデータでは、システム文が違う）。
    system = parts["near"][0].system
    parts["general"] = [replace(example, system=system) for example in general_questions()]
    return {part: examples[: run.profile.exam_questions or None] for part, examples in parts.items()}


def take(
    exam: Exam, model: Any, tokenizer: Any, profile: Profile, name: str, prompt: Prompt = Example.prompt
) -> list[dict[str, Any]]:
    """モデルに全問を解かせ、採点した行を返す。`prompt` は、問題を入力の `messages` にする関数。"""
    everything = [example for examples in exam.values() for example in examples]
    prompts = [render(tokenizer, prompt(example)) for example in everything]
    answers = iter(answer_prompts(model, tokenizer, prompts, profile))
    rows: list[dict[str, Any]] = []
    for part, examples in exam.items():
        rows += score_rows(examples, [next(answers) for _ in examples], name, part)
    return rows


def share(rows: Rows, part: str, key: str = "correct") -> Interval:
    """ある部分の割合と 95% 区間（key は "correct" / "made_up" / "refused"）。"""
    chosen = [row for row in rows if row["part"] == part]
    return wilson(sum(bool(row[key]) for row in chosen), len(chosen))


def gain(before: Rows, after: Rows, part: str) -> Interval:
    """同じ問題での正答率の差（後 − 前）と、その 95% 区間。"""
    return weighted_gain(before, after, {part: 1.0})


def chance(before: Rows, after: Rows, part: str, rounds: int = 5000) -> float:
    """差が無くても、これ以上の差が偶然に出る割合（事実ごとに前と後を入れ替える並べ替え検定、両側の p）。

    実際の並びも一通りと数えるので、0 にはならない（Phipson & Smyth 2010）。
    """
    totals, generator = list(map(sum, _differences(before, after, part))), random.Random(0)
    flipped = (sum(total if generator.random() < 0.5 else -total for total in totals) for _ in range(rounds))
    extreme = sum(abs(value) >= abs(sum(totals)) for value in flipped)
    return (extreme + 1) / (rounds + 1)


def weighted_gain(before: Rows, after: Rows, weights: Mapping[str, float], rounds: int = 2000) -> Interval:
    """部分ごとの正答率の差を、重みを掛けて足したものと、対応のあるブートストラップの 95% 区間。

    部分ごとに独立に、事実を単位に再標本化する（Efron & Tibshirani 1993, *An Introduction to the Bootstrap*, 13 章）。
    """
    columns = []
    for part, weight in weights.items():
        if weight > 0:
            grouped = _differences(before, after, part)
            generator = random.Random(0)  # 報告のたびに区間が揺れないよう固定する
            draws = [grouped, *(generator.choices(grouped, k=len(grouped)) for _ in range(rounds))]
            columns.append([weight * (sum(map(sum, drawn)) / sum(map(len, drawn))) for drawn in draws])
    value, *means = map(sum, zip(*columns, strict=True))  # 先頭は、元のまま
    means.sort()
    return Interval(value, means[int(0.025 * rounds)], means[int(0.975 * rounds) - 1])


def _differences(before: Rows, after: Rows, part: str) -> list[list[int]]:
    """ある部分の各問の差（−1・0・1）を、事実ごとにまとめる（同じ事実の問いは独立ではない）。"""
    old, new = ([row for row in rows if row["part"] == part] for rows in (before, after))
    assert [row["question"] for row in old] == [row["question"] for row in new], "問題の並びが違う"
    by_fact: dict[str, list[int]] = {}
    for one, other in zip(old, new, strict=True):
        by_fact.setdefault(one["fact"], []).append(int(other["correct"]) - int(one["correct"]))
    return list(by_fact.values())


def save_rows(folder: Path, name: str, rows: Rows) -> None:
    """採点の表を CSV（Excel で開ける BOM 付き）と JSON に書く。"""
    import pandas

    table = pandas.DataFrame(list(rows)).to_csv(index=False, lineterminator="\r\n")
    write_text(folder / f"{name}.csv", "\ufeff" + table)
    write_json(folder / f"{name}.json", list(rows))
