"""検査の結果の形。調べる中身は `lib.preflight`・`lib.tokenchecks`（走らせる前）と `lib.venue`（機械の下見）。"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib.errors import WorkshopError

_MARKS = {"ok": "✓", "warning": "⚠", "fatal": "✋"}


@dataclass(frozen=True)
class Finding:
    """一つの検査の結果。

    Attributes:
        check: 何を調べたか。
        level: "ok"、"warning"（続けられる）、"fatal"（止める）。
        found: 見つかったこと。
        remedy: どうするか。問題が無ければ空。
    """

    check: str
    level: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{_MARKS[self.level]} {self.check}: {self.found}" + (f" → {self.remedy}" if self.remedy else "")


def require(findings: Sequence[Finding]) -> None:
    """結果を一行ずつ見せ、致命的なものがあれば止める。

    Raises:
        WorkshopError: 致命的な問題があるとき（最初の一つと、ほかの名前を伝える）。
    """
    print(*findings, sep="\n")
    if fatal := [finding for finding in findings if finding.level == "fatal"]:
        more = f"（ほかに: {'、'.join(finding.check for finding in fatal[1:])}）" if fatal[1:] else ""
        raise WorkshopError(f"{fatal[0].check}: {fatal[0].found}{more}", fatal[0].remedy)


def judge(check: str, found: str, bad: Any, remedy: str, level: str = "fatal") -> Finding:
    """`bad` が真なら問題のある結果、偽なら問題の無い結果にする。"""
    return Finding(check, level, found, remedy) if bad else Finding(check, "ok", found)
