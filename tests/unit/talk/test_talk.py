"""発表の台本・時計・想定問答: 足すと 45 分、遅れと次の言葉、数字は録画から。"""

import json
import re

import pytest

from lib.errors import WorkshopError
from lib.files import REPOSITORY, read_json
from lib.talk import evidence
from lib.talk.evidence import NOT_MEASURED, look_up, prepared_answers, written
from lib.talk.plan import PLAN, Clock, bar_html, load_plan, minutes_text, notes_html, standing, timing


@pytest.fixture(scope="module")
def plan():
    return load_plan()


def test_eight_sections_add_up_to_exactly_45_minutes(plan):
    assert len(plan.sections) == 8 and plan.minutes == 45 and plan.demo_seconds == 40
    assert sum(section.minutes for section in plan.sections) == 45
    assert plan.sections[-1].start + plan.sections[-1].minutes == 45
    assert sum(section.spoken for section in plan.sections) <= 42  # 計算を待つ時間と、2 分の余り
    assert all(section.notes for section in plan.sections)


def test_a_plan_that_does_not_add_up_is_one_sentence(tmp_path):
    data = read_json(PLAN)
    data["sections"][0]["minutes"] = 5
    (tmp_path / "plan.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(WorkshopError, match="46 分で、45 分になりません"):
        load_plan(tmp_path / "plan.json")
    data["sections"][0]["minutes"] = 1
    (tmp_path / "plan.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(WorkshopError, match="第 1 節で言うことが 3.5 分"):
        load_plan(tmp_path / "plan.json")


def test_standing_knows_what_is_left_and_what_comes_next(plan):
    first, second = plan.sections[:2]
    now = standing(plan, 1, 0, 0)
    assert (now.section_left, now.left, now.behind) == (60 * first.minutes, 45 * 60, 0)
    assert now.cue == first.cues[0].say and now.upcoming == first.cues[1].say
    now = standing(plan, 1, 60 * first.cues[0].minutes, 60)  # ちょうど次の言葉の時刻
    assert now.cue == first.cues[1].say
    late = standing(plan, 1, 60 * first.minutes + 90, 60 * first.minutes + 90)
    assert late.behind == 90 and late.section_left == -90 and second.title in late.upcoming
    early = standing(plan, 2, 0, 60 * second.start - 45)
    assert early.behind == -45
    assert "おわり" in standing(plan, 8, 299, 45 * 60).upcoming


def test_the_clock_starts_once_and_stays_inside_the_talk(plan):
    time = [100.0]
    clock = Clock(plan, now=lambda: time[0])
    assert clock.standing().left == 45 * 60  # 始める前
    clock.enter(0)
    time[0] += 30
    clock.enter(2)
    time[0] += 10
    now = clock.standing()
    assert now.left == 45 * 60 - 40 and now.section.number == 2 and now.section_left == 60 * now.section.minutes - 10
    clock.enter(99)
    assert clock.standing().section.number == 8


def test_the_bar_says_late_or_ahead_and_escapes(plan):
    assert "予定どおり" in bar_html(standing(plan, 1, 20, 40))
    assert "1:30 遅れ" in bar_html(standing(plan, 1, 60, 150)) and "#D55E00" in bar_html(standing(plan, 1, 60, 150))
    assert "0:45 先行" in bar_html(standing(plan, 2, 0, 60 * plan.sections[1].start - 45))
    assert (minutes_text(65), minutes_text(-20), minutes_text(-0.2)) == ("1:05", "−0:20", "0:00")
    assert "&lt;" in bar_html(standing(plan, 1, 0, 0).__class__(plan.sections[0], 1, 1, 0, "<b>", ""))


def test_timing_and_notes_come_from_the_plan(plan):
    assert timing(plan, 4) == "10 分（16〜26 分）"
    assert plan.sections[3].cues[0].say in notes_html(plan, 4) and plan.sections[3].notes[0] in notes_html(plan, 4)


def test_values_are_found_by_key(monkeypatch):
    data = {
        "a": {"0": {"x": 0.5}, "1": {"x": 0.25}},
        "rows": [{"name": "p", "x": 1}, {"name": "q", "x": 2, "of": {"b": 1, "c": 2}}],
    }
    monkeypatch.setattr(evidence, "_source", lambda name: data)
    assert look_up(["seeds", "a", "*", "x"]) == [0.5, 0.25]
    assert look_up(["seeds", "rows", {"name": "q"}, "x"]) == [2]
    assert look_up(["seeds", "rows", {"of": {"c": 2}}, "x"]) == [2] and not look_up(["seeds", "rows", {"of": {"c": 3}}])
    assert look_up(["seeds", "a", "9", "x"]) == [] and look_up(["seeds", "a", "0", "x", "y"]) == []
    assert written([0.5, 0.25], "{:.1%}") == "50.0 / 25.0%" and written([0.5, 0.5], "{:.1%}") == "50.0%"
    assert written([]) == NOT_MEASURED


def test_fifteen_answers_stand_on_what_was_recorded():
    answers = prepared_answers()
    assert [answer.source for answer in answers] == ["資料"] * 5 + ["会場"] * 10
    for answer in answers:
        assert not answer.broken, f"{answer.question} 録画が変わりました。文を直してください: {answer.broken}"
        assert answer.origins and NOT_MEASURED not in answer.markdown(), answer.question
        assert not re.search(r"\{\w+\}", answer.answer)


def test_no_measured_number_is_written_by_hand():
    """答えの文の数字は、出どころから来たものか、条件を表す語（r=16、8B など）だけ。"""
    allowed = {"1", "2", "3", "4", "7", "8", "16", "70", "95", "135"}
    for row in read_json(REPOSITORY / "data" / "talk" / "answers.json"):
        text = re.sub(
            r"\{\w+\}|2e-4|Q\d\S*|F16|SmolLM2|Gemma 3 270M|Gemma 3|sarashina2\.2 0\.5B|3\.1", "", row["answer"]
        )
        assert set(re.findall(r"\d+(?:\.\d+)?", text)) <= allowed, row["question"]
        assert not re.search(r"\d%", text)


def test_an_answer_that_no_longer_holds_is_marked(monkeypatch):
    real = evidence._source
    flipped = json.loads(json.dumps(real("seeds")))
    for run in flipped["embedded"].values():
        run["07_evaluation"]["sft_general_accuracy"] = 0.99
    monkeypatch.setattr(evidence, "_source", lambda name: flipped if name == "seeds" else real(name))
    broken = [answer for answer in prepared_answers() if answer.broken]
    assert [answer.broken for answer in broken] == [("sft < base",)] and "99.0%" in broken[0].markdown()
    monkeypatch.setattr(evidence, "_source", lambda name: {} if name == "seeds" else real(name))
    assert any(NOT_MEASURED in answer.answer for answer in prepared_answers())
