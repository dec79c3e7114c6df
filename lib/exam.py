"""試験: どのモデルにも同じ問題を同じ条件で解かせ、表にする。"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib.answering import answer_prompts, render
from lib.dataset import Example, general_questions, policy_sentences, read_examples
from lib.metrics import Interval, between, clusters, paired_bootstrap, permutation_p, resampled, score_rows, wilson
from lib.profiles import Profile
from lib.workspace import BUILT_IN, Run, read_json, write_json, write_text

PARTS = {
    "near": "取り置きの言い回し",
    "far": "別の言葉での質問",
    "unseen": "教えていない事実",
    "unanswerable": "答えの無い質問（断れたか）",
    "general": "一般の質問（英語）",
}


@dataclass(frozen=True)
class Exam:
    """試験問題。

    Attributes:
        parts: `PARTS` の鍵 → 問題の列。
    """

    parts: dict[str, list[Example]]

    def size(self) -> int:
        """問題の総数。"""
        return sum(map(len, self.parts.values()))


def build_exam(run: Run) -> Exam:
    """02 が書いた取り置きと、一般の質問から試験を作る。"""
    folder = run.folder / "02_dataset"
    files = {"near": "near", "far": "far", "unseen": "unseen", "unanswerable": "ask_test"}
    parts = {part: read_examples(folder / f"{name}.jsonl") for part, name in files.items()}
    # 忘却は、学習と同じシステム文の下で見る（自分のデータでは、システム文が違う）。
    system = parts["near"][0].system
    parts["general"] = [replace(example, system=system) for example in general_questions()]
    if run.profile.train_facts < 8:  # smoke と talk では、問題も少なくして時間を守る
        parts = {name: examples[:12] for name, examples in parts.items()}
    return Exam(parts)


def policy(run: Run) -> list[str]:
    """店の規則を 1 文ずつ並べたもの。自分のデータでは、02 が使った答えを並べる。"""
    if run.data == BUILT_IN:
        return policy_sentences()
    folder = run.folder / "02_dataset"
    rows = [example for part in ("train", "unseen") for example in read_examples(folder / f"{part}.jsonl")]
    return list(dict.fromkeys(example.answer for example in rows if example.form != "unanswerable"))


def take(
    exam: Exam,
    model: Any,
    tokenizer: Any,
    profile: Profile,
    name: str,
    prompt: Callable[[Example], list[dict[str, str]]] = Example.prompt,
) -> list[dict[str, Any]]:
    """モデルに全問を解かせ、採点した行を返す。`prompt` は、問題を入力の `messages` にする関数。"""
    everything = [example for examples in exam.parts.values() for example in examples]
    prompts = [render(tokenizer, prompt(example)) for example in everything]
    answers = iter(answer_prompts(model, tokenizer, prompts, profile))
    rows: list[dict[str, Any]] = []
    for part, examples in exam.parts.items():
        rows += score_rows(examples, [next(answers) for _ in examples], name, part)
    return rows


def share(rows: Sequence[dict[str, Any]], part: str, key: str = "correct") -> Interval:
    """ある部分の割合と 95% 区間（key は "correct" / "made_up" / "refused"）。"""
    chosen = [row for row in rows if row["part"] == part]
    return wilson(sum(bool(row[key]) for row in chosen), len(chosen))


def gain(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], part: str) -> Interval:
    """同じ問題での正答率の差（後 − 前）と、事実ごとに引き直した 95% 区間。"""
    return paired_bootstrap(*_paired(before, after, part))


def chance(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], part: str) -> float:
    """差が無くても、これ以上の差が出る割合（事実ごとに入れ替える並べ替え検定の p）。"""
    return permutation_p(*_paired(before, after, part))


def weighted_gain(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], weights: Mapping[str, float]
) -> Interval:
    """部分ごとの正答率の差を、重みを掛けて足したものと、その 95% 区間（部分ごとに独立に引き直す）。"""
    used = {part: weight for part, weight in weights.items() if weight > 0}
    drawn = [(weight, *resampled(clusters(*_paired(before, after, part)))) for part, weight in used.items()]
    value = sum(weight * mean for weight, mean, _ in drawn)
    return between(
        value,
        [
            sum(w * m for (w, _, _), m in zip(drawn, row, strict=True))
            for row in zip(*(means for *_, means in drawn), strict=True)
        ],
    )


def _paired(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], part: str
) -> tuple[list[bool], list[bool], list[str]]:
    """ある部分の（前の正誤、後の正誤、事実の ID）。"""
    old = [row for row in before if row["part"] == part]
    new = [row for row in after if row["part"] == part]
    assert [row["question"] for row in old] == [row["question"] for row in new], "問題の並びが違う"
    return [row["correct"] for row in old], [row["correct"] for row in new], [row["fact"] for row in old]


def save_rows(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """採点の表を CSV（Excel で開ける BOM 付き）と JSON に書く。"""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / f"{name}.csv", "\ufeff" + buffer.getvalue())
    write_json(folder / f"{name}.json", list(rows))


def load_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """`save_rows` が書いた表を読む。"""
    return read_json(folder / f"{name}.json")
