"""回答を採点する。数値そのものの一致（`lib.text.quantities`）だけを事実の正答と呼び、文の似かたは見ない。"""

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

from lib.data.facts import DATA, Example
from lib.text.quantities import matches, nfkc, unexpected

_RULES = tomllib.loads((DATA / "politeness" / "refusals.toml").read_text(encoding="utf-8"))
_REFUSAL = re.compile("|".join(_RULES["patterns"]), re.IGNORECASE)


def is_refusal(answer: str) -> bool:
    """「分からない」と回答を控えているか（言い方の並びは `data/politeness/refusals.toml`）。"""
    return _REFUSAL.search(answer) is not None


def is_correct(example: Example, answer: str) -> bool:
    """正しい数値をすべて言い、正解の文に無い数値を言っていないか（並べて当てるのは正答でない）。回答不能な質問では、数値を作らずに、回答を控えたか。"""
    if example.form == "general":
        return general_correct(example.figures, answer)
    if not example.figures:
        return is_refusal(answer) and not makes_up_figure(example, answer)
    return matches(answer, example.figures, example.answer)


def makes_up_figure(example: Example, answer: str) -> bool:
    """正解に無い数値や番号を言ったか（ハルシネーションの率に使う）。"""
    return bool(unexpected(answer, [*example.figures, example.answer]))


def general_correct(accept: Sequence[str], answer: str) -> bool:
    """一般の質問の正答。英単語は語の境界、数字は桁の境界で見る（ice が nice に当たらないように）。"""
    text = nfkc(answer).lower()
    return any(re.search(rf"(?<![a-z0-9]){re.escape(nfkc(word).lower())}(?![a-z0-9])", text) for word in accept)


def accuracy(examples: Sequence[Example], answers: Sequence[str]) -> float:
    """正答率（0–1）。"""
    return sum(map(is_correct, examples, answers)) / len(examples)


def score_rows(examples: Sequence[Example], answers: Sequence[str], model: str, part: str) -> list[dict[str, object]]:
    """採点した表の行を返す（CSV と JSON に書く形）。"""
    return [
        {"model": model, "part": part, "fact": e.fact_id, "form": e.form, "question": e.question}
        | {"reference": e.answer, "answer": said, "correct": is_correct(e, said)}
        | {"made_up": makes_up_figure(e, said), "refused": is_refusal(said)}
        for e, said in zip(examples, answers, strict=True)
    ]


@dataclass(frozen=True)
class Interval:
    """割合または差の点推定と、その 95% 区間の下限と上限。"""

    value: float
    low: float
    high: float

    def as_percent(self) -> str:
        """「87.5% [79.7, 93.8]」の形。"""
        return f"{self.value:.1%} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: float, total: int) -> Interval:
    """割合の 95% 区間（Wilson 1927）。0% や 100% でも幅が 0 にならない。"""
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    z, p = 1.959963984540054, successes / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))
