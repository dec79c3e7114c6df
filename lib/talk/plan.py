"""45 分の発表の台本（`data/talk/plan.json`）。話す分は、台本の字の数から見積もる。"""

from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.files import REPOSITORY, read_json

TALK = REPOSITORY / "data" / "talk"
RECORDING = REPOSITORY / "data" / "recorded" / "talk.json"


def load_plan(path: Path = TALK / "plan.json") -> dict[str, Any]:
    """台本を読み、節に番号・`start`（初めからの分）・`spoken`（話す分）を、スライドに `minutes`・`starts` を添える。

    スライドの分は、台本の字の数 ÷ 1 分の字の数 ＋ 黙って見せる秒（pause）。予定に合わなければ WorkshopError。
    """
    plan, start, at = read_json(path), 0.0, 0.0
    for number, section in enumerate(plan["sections"], start=1):
        for slide in section["slides"]:
            slide["minutes"] = len(slide["say"]) / plan["characters_per_minute"] + slide["pause"] / 60
            slide["starts"] = at  # 話す見込みの積み上げ
            at += slide["minutes"]
        spoken, minutes = sum(slide["minutes"] for slide in section["slides"]), section["minutes"]
        section.update(number=number, start=start, spoken=spoken)
        start += minutes
        at = start
        if spoken > minutes:
            what = f"第 {number} 節で言うことが {spoken:.1f} 分あり、{minutes:g} 分に収まりません"
            raise WorkshopError(what, "言うことを減らすか、節の分を増やしてください", path)
    if start != plan["minutes"]:
        what = f"節の分を足すと {start:g} 分で、{plan['minutes']:g} 分になりません"
        raise WorkshopError(what, "節の分を直してください", path)
    return plan
