"""審査: モデルに選ばせる審判と、人の目隠し投票。どちらも、ふだんの実行には要らない。

審判は OpenAI 互換の口なら何でもよい（手元の llama.cpp のサーバーも）。場所と鍵は環境変数だけから取る:
`WORKSHOP_JUDGE_URL`（例 http://127.0.0.1:8080/v1）、`WORKSHOP_JUDGE_MODEL`、`WORKSHOP_JUDGE_KEY`（要らなければ空）。
"""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.files import read_json, write_json
from lib.score.exam import Interval, wilson
from lib.score.pairs import Judge, openai_judge

TIE = "引き分け"


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


@dataclass
class Ballot:
    """人の目隠し投票。どちらがどのモデルかは、左右とも見せない。一票ごとに保存する。

    Attributes:
        names: 比べる二つのモデルの名前。
        rows: (質問, 一つ目の答え, 二つ目の答え) の列。
        path: 票を残す JSON。前の票があれば続きから。
        votes: 行の番号 → 選ばれたモデルの名前か「引き分け」。
    """

    names: tuple[str, str]
    rows: Sequence[tuple[str, str, str]]
    path: Path
    seed: int = 0
    votes: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.votes = read_json(self.path)["votes"] if self.path.exists() else {}

    def next(self) -> int | None:
        """まだ投票していない行の番号。全部済んだら None。"""
        return next((number for number in range(len(self.rows)) if str(number) not in self.votes), None)

    def sides(self, number: int) -> tuple[str, str]:
        """左と右に見せる答え。左右は行ごとに無作為で、開き直しても変わらない。"""
        _, one, two = self.rows[number]
        return (two, one) if self._swapped(number) else (one, two)

    def vote(self, number: int, side: str) -> None:
        """「左」「右」「引き分け」のどれかを残す。"""
        order = self.names[::-1] if self._swapped(number) else self.names
        self.votes[str(number)] = {"左": order[0], "右": order[1]}.get(side, TIE)
        write_json(self.path, {"names": self.names, "votes": self.votes})

    def win_rate(self) -> Interval:
        """引き分けを除いた、二つ目のモデルの勝率と 95% 区間。"""
        decided = [name for name in self.votes.values() if name != TIE]
        return wilson(decided.count(self.names[1]), len(decided))

    def _swapped(self, number: int) -> bool:
        return random.Random(f"{self.seed}-{number}").random() < 0.5
