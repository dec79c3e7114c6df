"""審査: モデルに選ばせる審判。ふだんの実行には要らない。

審判は OpenAI 互換の口なら何でもよい（手元の llama.cpp のサーバーも）。場所と鍵は環境変数だけから取る:
`WORKSHOP_JUDGE_URL`（例 http://127.0.0.1:8080/v1）、`WORKSHOP_JUDGE_MODEL`、`WORKSHOP_JUDGE_KEY`（要らなければ空）。
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.score.answers import Interval, wilson
from lib.score.pairs import Judge, openai_judge


@dataclass(frozen=True)
class Verdicts:
    """審査の結果。

    Attributes:
        win: 二つ目のモデルの勝ち数の割合。順を入れ替えると変わった判定は、引き分け（半分の勝ち）と数える。
        consistency: 順を入れ替えても、同じ判定だった割合。
        agreement: 規則の採点で差が付いた組のうち、審判が同じほうを選んだ割合。差の付いた組が無ければ None。
        pairs: 組の数。
    """

    win: float
    consistency: Interval
    agreement: Interval | None
    pairs: int


def compare(judge: Judge, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Verdicts:
    """同じ問題の答えを組にし、A と B を入れ替えて二度ずつ審査させる（位置の偏りを見るため。Zheng ら 2023）。

    Args:
        judge: 審判。質問には正解を添えて渡す。
        first, second: 採点の行（`question`・`reference`・`answer`・`correct`）。同じ順。
    """
    points, same, agreed = 0.0, 0, []
    for one, two in zip(first, second, strict=True):
        asked = f"{one['question']}（正解: {one['reference']}）"
        there = judge(asked, one["answer"], two["answer"])
        back = {"A": "B", "B": "A", "": ""}[judge(asked, two["answer"], one["answer"])]
        same += there == back
        verdict = there if there == back else ""
        points += {"A": 0.0, "B": 1.0, "": 0.5}[verdict]
        if one["correct"] != two["correct"]:
            agreed.append(verdict == ("B" if two["correct"] else "A"))
    pairs = len(first)
    agreement = wilson(sum(agreed), len(agreed)) if agreed else None
    return Verdicts(points / pairs, wilson(same, pairs), agreement, pairs)


def judge_from_environment() -> Judge | None:
    """環境変数が指す審判。指されていなければ None。"""
    url = os.environ.get("WORKSHOP_JUDGE_URL", "").rstrip("/")
    return openai_judge(url, os.environ.get("WORKSHOP_JUDGE_MODEL", "")) if url else None
