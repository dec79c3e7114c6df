"""45 分の発表の台本（`data/talk/plan.json`）と時計。画面には触れない。"""

import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.files import REPOSITORY, read_json

TALK = REPOSITORY / "data" / "talk"
RECORDING = REPOSITORY / "data" / "recorded" / "talk.json"


def load_plan(path: Path = TALK / "plan.json") -> dict[str, Any]:
    """台本を読み、節に番号・`start`（初めからの分）・`spoken`（話す分）を添える。合わなければ WorkshopError。"""
    plan, start = read_json(path), 0.0
    for number, section in enumerate(plan["sections"], start=1):
        spoken, minutes = sum(cue["minutes"] for cue in section["cues"]), section["minutes"]
        section.update(number=number, start=start, spoken=spoken)
        start += minutes
        if spoken > minutes:
            what = f"第 {number} 節で言うことが {spoken:g} 分あり、{minutes:g} 分に収まりません"
            raise WorkshopError(what, "言うことを減らすか、節の分を増やしてください", path)
    if start != plan["minutes"]:
        what = f"節の分を足すと {start:g} 分で、{plan['minutes']:g} 分になりません"
        raise WorkshopError(what, "節の分を直してください", path)
    return plan


class Clock:
    """発表の時計。節に入った時刻を覚える。`now` は秒を返す関数（テストでは偽の時計）。"""

    def __init__(self, plan: Mapping[str, Any], now: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.number, self._now = plan, 1, now
        self._began: float | None = None
        self._entered = 0.0

    def enter(self, number: int) -> None:
        """節に入る。時計がまだなら動かす。初めと終わりより先には行かない。"""
        self.number, self._entered = min(max(number, 1), len(self.plan["sections"])), self._now()
        self._began = self._entered if self._began is None else self._began

    def standing(self) -> dict[str, Any]:
        """いまの進み具合（始める前は、第 1 節の初め）。秒で、残りは過ぎると負、遅れ `behind` は進むと負。"""
        now = self._now() if self._began is not None else 0.0
        in_section, elapsed = now - self._entered, now - (self._began or 0.0)
        section, *rest = self.plan["sections"][self.number - 1 :]
        length, following = 60 * section["minutes"], rest[0]["title"] if rest else "おわり"
        said = [*(cue["say"] for cue in section["cues"]), f"（次の節）{following}"]
        ends = accumulate(60 * cue["minutes"] for cue in section["cues"][:-1])  # 最後の言葉は、節の終わりまで続く
        index = sum(in_section >= end for end in ends)
        behind = elapsed - 60 * section["start"] - min(in_section, length)  # 台本どおりなら 0
        left = {"section_left": length - in_section, "left": 60 * self.plan["minutes"] - elapsed, "behind": behind}
        return {"section": section, **left, "cue": said[index], "upcoming": said[index + 1]}
