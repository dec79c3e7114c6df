"""45 分の発表の台本（`data/talk/plan.json`）と時計。画面には触れない。"""

import html
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.errors import WorkshopError
from lib.files import REPOSITORY, read_json

PLAN = REPOSITORY / "data" / "talk" / "plan.json"
RECORDING = REPOSITORY / "data" / "recorded" / "talk.json"


@dataclass(frozen=True)
class Cue:
    """言うこと一つと、それに使う分。"""

    minutes: float
    say: str


@dataclass(frozen=True)
class Section:
    """発表の一つの節。

    Attributes:
        number: 1 からの番号。
        title: 題。
        start: 発表の初めから数えた、始まりの分。
        minutes: 使ってよい分。
        cues: 言うこと。
        notes: 話し手だけの覚え書き。
    """

    number: int
    title: str
    start: float
    minutes: float
    cues: tuple[Cue, ...]
    notes: tuple[str, ...]

    @property
    def spoken(self) -> float:
        """言うことの分の合計。"""
        return sum(cue.minutes for cue in self.cues)


@dataclass(frozen=True)
class Plan:
    """発表の台本。`minutes` は全体の分、`demo_seconds` は実演の予算（秒）。"""

    title: str
    minutes: float
    demo_seconds: float
    sections: tuple[Section, ...]


def load_plan(path: Path = PLAN) -> Plan:
    """台本を読む。

    Raises:
        WorkshopError: 節の分を足しても全体の分にならない、または言うことが節に収まらないとき。
    """
    data, sections, start = read_json(path), [], 0.0
    for number, row in enumerate(data["sections"], start=1):
        cues = tuple(Cue(**cue) for cue in row["cues"])
        sections.append(Section(number, row["title"], start, row["minutes"], cues, tuple(row["notes"])))
        start += row["minutes"]
        if sections[-1].spoken > row["minutes"]:
            raise WorkshopError(
                f"第 {number} 節で言うことが {sections[-1].spoken:g} 分あり、{row['minutes']:g} 分に収まりません",
                "言うことを減らすか、節の分を増やしてください",
                path,
            )
    if start != data["minutes"]:
        raise WorkshopError(
            f"節の分を足すと {start:g} 分で、{data['minutes']:g} 分になりません", "節の分を直してください", path
        )
    return Plan(data["title"], data["minutes"], data["demo_seconds"], tuple(sections))


@dataclass(frozen=True)
class Standing:
    """ある瞬間の進み具合。時間はすべて秒。

    Attributes:
        section: いまの節。
        section_left: この節の残り。過ぎたら負。
        left: 全体の残り。過ぎたら負。
        behind: 予定からの遅れ。進んでいれば負。
        cue: いま言うこと。
        upcoming: 次に言うこと。
    """

    section: Section
    section_left: float
    left: float
    behind: float
    cue: str
    upcoming: str


def standing(plan: Plan, number: int, in_section: float, elapsed: float) -> Standing:
    """第 `number` 節に入って `in_section` 秒、全体で `elapsed` 秒たったときの進み具合。"""
    section = plan.sections[number - 1]
    planned = 60 * section.start + min(in_section, 60 * section.minutes)  # 台本どおりなら、ここは何秒目か
    following = plan.sections[number].title if number < len(plan.sections) else "おわり"
    said = [*(cue.say for cue in section.cues), f"（次の節）{following}"]
    index, until = 0, 60 * section.cues[0].minutes
    while index < len(section.cues) - 1 and in_section >= until:
        index += 1
        until += 60 * section.cues[index].minutes
    return Standing(
        section=section,
        section_left=60 * section.minutes - in_section,
        left=60 * plan.minutes - elapsed,
        behind=elapsed - planned,
        cue=said[index],
        upcoming=said[index + 1],
    )


class Clock:
    """発表の時計。節に入った時刻を覚える。`now` は秒を返す関数（テストでは偽の時計）。"""

    def __init__(self, plan: Plan, now: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.number = plan, 1
        self._now = now
        self._began: float | None = None
        self._entered = 0.0

    def enter(self, number: int) -> None:
        """節に入る。時計がまだなら動かす。初めと終わりより先には行かない。"""
        self.number = min(max(number, 1), len(self.plan.sections))
        self._entered = self._now()
        if self._began is None:
            self._began = self._entered

    def standing(self) -> Standing:
        """いまの進み具合。始める前は、第 1 節の初めとする。"""
        if self._began is None:
            return standing(self.plan, 1, 0.0, 0.0)
        now = self._now()
        return standing(self.plan, self.number, now - self._entered, now - self._began)


def minutes_text(seconds: float) -> str:
    """秒を「3:05」の形にする。負なら「−0:20」。"""
    whole = round(abs(seconds))
    return f"{'−' if seconds < 0 and whole else ''}{whole // 60}:{whole % 60:02d}"


def bar_html(now: Standing) -> str:
    """発表者のバーの中身。"""
    pace = "予定どおり"
    if abs(now.behind) >= 30:  # 30 秒までの前後は気にさせない
        pace = f"{minutes_text(abs(now.behind))} {'遅れ' if now.behind > 0 else '先行'}"
    colour = "#D55E00" if now.behind >= 60 or now.section_left < 0 else "#1b1f24"
    return (
        f'<div style="font-size:18px;line-height:1.6;color:{colour}"><b>{now.section.number}. '
        f"{html.escape(now.section.title)}</b>　節の残り <b>{minutes_text(now.section_left)}</b>"
        f"　全体の残り <b>{minutes_text(now.left)}</b>　{pace}<br>"
        f'いま: {html.escape(now.cue)}<br><span style="color:#57606a">次: {html.escape(now.upcoming)}</span></div>'
    )


def timing(plan: Plan, number: int) -> str:
    """節の扉に出す、予定の時刻。"""
    section = plan.sections[number - 1]
    return f"{section.minutes:g} 分（{section.start:g}〜{section.start + section.minutes:g} 分）"


def notes_html(plan: Plan, number: int) -> str:
    """話し手の覚え書き。押すと開く。"""
    section = plan.sections[number - 1]
    cues = "".join(f"<li>（{cue.minutes:g} 分）{html.escape(cue.say)}</li>" for cue in section.cues)
    also = "".join(f"<li>{html.escape(note)}</li>" for note in section.notes)
    return (
        f"<details><summary>話し手の覚え書き（{section.number}. {html.escape(section.title)}、"
        f"{section.minutes:g} 分）</summary><ol>{cues}</ol><ul>{also}</ul></details>"
    )
