"""採点。主役は「正規化した上で、正しい数値を言ったか」。

文字列の似かた（BLEU や ROUGE）は、年を間違えた答えを正しい言い換えより高く採点することがある。
ここでは数値そのものの一致（`lib.matching`）だけを事実の正答と呼ぶ。
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lib.dataset import Example
from lib.matching import matches, unexpected
from lib.numerals import nfkc

_REFUSAL = re.compile(
    r"分かりかね|わかりかね|お答えできません|情報はございません|don't have that information|can't answer"
)


def is_refusal(answer: str) -> bool:
    """「分からない」と断っているか（教材が教える三つの言い方で見る）。"""
    return _REFUSAL.search(answer) is not None


def is_correct(example: Example, answer: str) -> bool:
    """正しい数値をすべて言い、ほかの数値を言っていないか。答えの無い質問では、断ったか。

    「640円です。17日です。」のように数を並べて当てるのを正答にしないため、余計な数値も見る。
    """
    if example.form == "general":
        return general_correct(example.figures, answer)
    if not example.figures:
        return is_refusal(answer)
    return matches(answer, example.figures)


def makes_up_figure(example: Example, answer: str) -> bool:
    """正解に無い数値や番号を言ったか（作り話の率に使う）。"""
    return bool(unexpected(answer, example.figures))


def general_correct(accept: Sequence[str], answer: str) -> bool:
    """一般の質問の正答。英単語は語の境界、数字は桁の境界で見る（ice が nice に当たらないように）。"""
    text = nfkc(answer).lower()
    return any(re.search(rf"(?<![a-z0-9]){re.escape(nfkc(word).lower())}(?![a-z0-9])", text) for word in accept)


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


def accuracy(examples: Sequence[Example], answers: Sequence[str]) -> float:
    """正答率（0–1）。"""
    return sum(map(is_correct, examples, answers)) / len(examples)


def score_rows(examples: Sequence[Example], answers: Sequence[str], model: str, part: str) -> list[dict[str, object]]:
    """採点した表の行を返す（CSV と JSON に書く形）。"""
    return [
        {
            "model": model,
            "part": part,
            "fact": example.fact_id,
            "form": example.form,
            "question": example.question,
            "reference": example.answer,
            "answer": answer,
            "correct": is_correct(example, answer),
            "made_up": makes_up_figure(example, answer),
            "refused": is_refusal(answer),
        }
        for example, answer in zip(examples, answers, strict=True)
    ]
