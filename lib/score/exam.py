"""試験: どのモデルにも同じ問題を同じ条件で解かせ、表にする。"""

import csv
import io
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib.data.facts import Example, general_questions, policy_sentences, read_examples
from lib.files import read_json, write_json, write_text
from lib.model.generate import answer_prompts, render
from lib.profiles import Profile
from lib.run import BUILT_IN, Run
from lib.score.answers import score_rows


@dataclass(frozen=True)
class Interval:
    """割合または差と、その 95% 区間。

    Attributes:
        value: 点推定。
        low: 下限。
        high: 上限。
    """

    value: float
    low: float
    high: float

    def verdict(self, up: str = "上がった", down: str = "下がった") -> str:
        """差の区間から言葉を決める。平均だけでは決めない。"""
        if self.low > 0:
            return up
        if self.high < 0:
            return down
        return "差は示せない"

    def as_percent(self) -> str:
        """「87.5% [79.7, 93.8]」の形。"""
        return f"{self.value:.1%} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: int, total: int) -> Interval:
    """割合の 95% 区間（Wilson 1927）。0% や 100% でも幅が 0 にならない。"""
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    z, p = 1.959963984540054, successes / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def paired_bootstrap(
    before: Sequence[bool], after: Sequence[bool], groups: Sequence[str] | None = None, rounds: int = 2000
) -> Interval:
    """同じ問題での正答率の差（後 − 前）と 95% 区間。

    Args:
        before: 前のモデルの正誤。長さ n。
        after: 後のモデルの正誤。長さ n、同じ順。
        groups: 各問の事実の ID。与えると事実ごとに引き直す（同じ事実の問いは独立ではない）。
        rounds: 引き直す回数。

    Source: Efron & Tibshirani (1993), *An Introduction to the Bootstrap*, 13 章。
    """
    return between(*resampled(clusters(before, after, groups), rounds))


def resampled(grouped: Sequence[Sequence[int]], rounds: int = 2000) -> tuple[float, list[float]]:
    """群れを単位に引き直した平均の列。(元の平均, 引き直した平均 rounds 個)。"""
    generator = random.Random(0)  # 報告のたびに区間が揺れないよう固定する
    means = []
    for _ in range(rounds):
        drawn = generator.choices(grouped, k=len(grouped))
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    return sum(map(sum, grouped)) / sum(map(len, grouped)), means


def between(value: float, means: Sequence[float]) -> Interval:
    """引き直した値の、内側の 95%。"""
    ordered, rounds = sorted(means), len(means)
    return Interval(value, ordered[int(0.025 * rounds)], ordered[int(0.975 * rounds) - 1])


def permutation_p(
    before: Sequence[bool], after: Sequence[bool], groups: Sequence[str] | None = None, rounds: int = 5000
) -> float:
    """差が無くても、これ以上の差が偶然に出る割合（対応のある並べ替え検定、両側）。

    事実ごとに前と後を入れ替えた差を rounds 回作り、その大きさが実際の差以上になる割合を返す。
    実際の並びも一通りと数えるので、0 にはならない（Phipson & Smyth 2010）。引数は `paired_bootstrap` と同じ。
    """
    totals = [sum(cluster) for cluster in clusters(before, after, groups)]
    generator = random.Random(0)
    seen = abs(sum(totals))
    extreme = sum(
        abs(sum(total if generator.random() < 0.5 else -total for total in totals)) >= seen for _ in range(rounds)
    )
    return (extreme + 1) / (rounds + 1)


def clusters(before: Sequence[bool], after: Sequence[bool], groups: Sequence[str] | None) -> list[list[int]]:
    """各問の差（−1・0・1）を、事実ごとにまとめる。"""
    keys = list(groups) if groups is not None else [str(i) for i in range(len(before))]
    by_group: dict[str, list[int]] = {}
    for key, old, new in zip(keys, before, after, strict=True):
        by_group.setdefault(key, []).append(int(new) - int(old))
    return list(by_group.values())


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
