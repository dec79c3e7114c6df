"""発表の台本・時計・想定問答: 足すと 45 分、遅れと次の言葉、数字は記録から。"""

import copy
import re

import pytest
from conftest import from_notebook, one_sentence

from lib.files import read_json, write_json
from lib.show.plots import picture
from lib.talk.plan import TALK, Clock, load_plan


def standing(plan, number, in_section, elapsed):
    """第 `number` 節に入って `in_section` 秒、全体で `elapsed` 秒たったときの進み具合。"""
    times = iter([0.0, elapsed - in_section, elapsed])
    clock = Clock(plan, now=lambda: next(times))
    clock.enter(1)
    clock.enter(number)
    return clock.standing()


@pytest.fixture(scope="module")
def plan():
    return load_plan()


def test_eight_sections_add_up_to_exactly_45_minutes(plan):
    sections = plan["sections"]
    assert len(sections) == 8 and plan["minutes"] == 45 and plan["demo_seconds"] == 40
    assert sum(section["minutes"] for section in sections) == 45
    assert sections[-1]["start"] + sections[-1]["minutes"] == 45
    assert sum(section["spoken"] for section in sections) <= 42  # 計算を待つ時間と、2 分の余り
    assert all(section["notes"] for section in sections)


@pytest.mark.parametrize(("minutes", "said"), [(5, "46 分で、45 分になりません"), (1, "第 1 節で言うことが 3.5 分")])
def test_a_plan_that_does_not_add_up_is_one_sentence(tmp_path, minutes, said):
    data = read_json(TALK / "plan.json")
    data["sections"][0]["minutes"] = minutes
    with one_sentence(said):
        load_plan(write_json(tmp_path / "plan.json", data))


def test_standing_knows_what_is_left_and_what_comes_next(plan):
    first, second = plan["sections"][:2]
    now = standing(plan, 1, 0, 0)
    assert (now["section_left"], now["left"], now["behind"]) == (60 * first["minutes"], 45 * 60, 0)
    assert now["cue"] == first["cues"][0]["say"] and now["upcoming"] == first["cues"][1]["say"]
    now = standing(plan, 1, 60 * first["cues"][0]["minutes"], 60)  # ちょうど次の言葉の時刻
    assert now["cue"] == first["cues"][1]["say"]
    late = standing(plan, 1, 60 * first["minutes"] + 90, 60 * first["minutes"] + 90)
    assert late["behind"] == 90 and late["section_left"] == -90 and second["title"] in late["upcoming"]
    assert standing(plan, 2, 0, 60 * second["start"] - 45)["behind"] == -45
    assert "おわり" in standing(plan, 8, 299, 45 * 60)["upcoming"]


def test_the_clock_starts_once_and_stays_inside_the_talk(plan):
    times = iter([100.0, 130.0, 140.0, 150.0, 160.0])
    clock = Clock(plan, now=lambda: next(times))
    assert clock.standing()["left"] == 45 * 60  # 始める前
    clock.enter(0)
    clock.enter(2)
    now = clock.standing()
    assert now["left"] == 45 * 60 - 40 and now["section"]["number"] == 2
    assert now["section_left"] == 60 * now["section"]["minutes"] - 10
    clock.enter(99)
    assert clock.standing()["section"]["number"] == 8


def test_the_bar_says_late_or_ahead_and_escapes(plan):
    def bar(*at, **more):
        return " ".join(picture("talk/bar.html", now={**standing(plan, *at), **more}).data.split())

    assert "予定どおり" in bar(1, 20, 40)
    assert "1:30 遅れ" in bar(1, 60, 150) and "#D55E00" in bar(1, 60, 150) and "#D55E00" not in bar(1, 20, 40)
    assert "0:45 先行" in bar(2, 0, 60 * plan["sections"][1]["start"] - 45)
    for seconds, text in ((65, "1:05"), (-20, "−0:20"), (-0.2, "0:00")):
        assert f"節の残り <b>{text}</b>" in bar(1, 0, 0, section_left=seconds)
    assert "&lt;b&gt;" in bar(1, 0, 0, cue="<b>")


def test_timing_and_notes_come_from_the_plan(plan):
    given = {"plan": plan, "clock": Clock(plan), "Markdown": str}
    talk = from_notebook("00_talk", "begin", "notes", presenter_bar=print, demo=None, **given)
    assert talk.begin(4) == "10 分（16〜26 分）" and given["clock"].number == 4
    section, shown = plan["sections"][3], talk.notes(4).data
    assert section["cues"][0]["say"] in shown and section["notes"][0] in shown


def test_the_picture_of_lora_counts_for_the_given_model():
    small, big = picture("lora.svg", width=576, rank=16).data, picture("lora.svg", width=4096, rank=8).data
    assert "576 × 576" in small and "18,432 個（W の 5.56%）" in small
    assert "4,096 × 4,096" in big and "= 16,777,216 個" in big and "65,536 個（W の 0.39%）" in big


def look_up(source):
    names = ("look_up", "NOT_MEASURED", "written", "TABLES", "origin", "jinja", "holds", "prepared")
    return from_notebook("00_talk", *names, source=source)


def answers(change=None):
    """00 の関数で数字を入れた想定問答。`change` は、出どころの中身を差し替える関数。"""
    real = from_notebook("00_talk", "TABLES", "RECORDED", "EXPECTED", "source").source
    talk = look_up(lambda name: change(name, real(name)) if change else real(name))
    return talk, [talk.prepared(row) for row in read_json(TALK / "answers.json")]


def test_values_are_found_by_key():
    rows = [{"name": "p", "x": 1}, {"name": "q", "x": 2, "settings": {"b": 1, "c": [2]}}]
    talk = look_up(lambda name: {"a": {"0": {"x": 0.5}, "1": {"x": 0.25}}, "rows": rows})
    assert talk.look_up(["seeds", "a", "*", "x"]) == [0.5, 0.25]
    assert talk.look_up(["seeds", "rows", {"name": "p"}, "x"]) == [1]
    assert talk.look_up(["seeds", "rows", {"c": [2]}, "x"]) == [2] and not talk.look_up(["seeds", "rows", {"c": 3}])
    assert talk.look_up(["seeds", "a", "9", "x"]) == [] and talk.look_up(["seeds", "a", "0", "x", "y"]) == []
    assert talk.written([0.5, 0.25], "{:.1%}") == "50.0 / 25.0%" and talk.written([0.5, 0.5], "{:.1%}") == "50.0%"
    assert talk.written([]) == talk.NOT_MEASURED


def test_fifteen_answers_stand_on_what_was_recorded():
    talk, prepared = answers()
    assert [answer["from"] for answer in prepared] == ["資料"] * 5 + ["会場"] * 10
    for answer in prepared:
        asked, page = answer["question"], picture("talk/answers.md", answers=[answer]).data
        assert not answer["broken"], f"{asked} 記録が変わりました。文を直してください: {answer['broken']}"
        assert answer["origins"] and talk.NOT_MEASURED not in page and not re.search(r"[{}]", answer["text"]), asked
    assert all(word in str(prepared) for word in ("シード 0・1・2", "2 コア", "lib/profiles.py"))


def test_no_measured_number_is_written_by_hand():
    """答えの文の数字は、出どころから来たものか、条件を表す語（r=16、8B など）だけ。"""
    allowed = {"1", "2", "3", "4", "7", "8", "16", "70", "95", "135"}
    named = r"\{\{ \w+ \}\}|2e-4|Q\d\S*|F16|SmolLM2|Gemma 3 270M|Gemma 3|sarashina2\.2 0\.5B|3\.1"
    for row in read_json(TALK / "answers.json"):
        text = re.sub(named, "", row["answer"])
        assert set(re.findall(r"\d+(?:\.\d+)?", text)) <= allowed and not re.search(r"\d%", text), row["question"]


def test_an_answer_that_no_longer_holds_is_marked():
    def flipped(name, whole):
        whole = copy.deepcopy(whole)
        for run in whole["smollm2-ja"].values() if name == "seeds" else ():
            run["07_evaluation"]["sft_general_accuracy"] = 0.99
        return whole

    broken = [answer for answer in answers(flipped)[1] if answer["broken"]]
    shown = picture("talk/answers.md", answers=broken).data
    assert [answer["broken"] for answer in broken] == [["sft < base"]] and "99.0%" in shown and "⚠" in shown

    talk, prepared = answers(lambda name, whole: {} if name == "seeds" else whole)
    assert any(talk.NOT_MEASURED in answer["text"] for answer in prepared)
    assert not any(answer["broken"] for answer in prepared), "測っていないものは、合わないとは言わない"
