"""発表の台本・スライド・想定問答: 足すと 45 分、数字は記録から、どのスライドにも台本がある。"""

import json
import re
import subprocess

import pytest
from conftest import one_sentence

from lib.data.facts import DATA
from lib.files import REPOSITORY, read_json, write_json
from lib.profiles import get_profile
from lib.talk.deck import answers, environment, span, three, write_deck
from lib.talk.plan import RECORDING, TALK, load_plan


@pytest.fixture(scope="module")
def plan():
    return load_plan()


@pytest.fixture(scope="module")
def recording():
    return {"label": "記録済み", **read_json(RECORDING)}


@pytest.fixture(scope="module")
def page(tmp_path_factory, recording):
    """記録だけから書いたスライド（実演が一つも間に合わなかったとき）。"""
    target = tmp_path_factory.mktemp("deck") / "slides.html"
    return write_deck(target, recording).read_text(encoding="utf-8")


def test_eight_sections_add_up_to_exactly_45_minutes(plan):
    sections = plan["sections"]
    assert len(sections) == 8 and plan["minutes"] == 45 and plan["demo_seconds"] == 40
    assert sum(section["minutes"] for section in sections) == 45
    assert sections[-1]["start"] + sections[-1]["minutes"] == 45
    assert sum(section["spoken"] for section in sections) <= 42  # 3 分は、余らせる


def test_the_minutes_of_a_slide_come_from_its_characters(plan):
    first, second = plan["sections"][0]["slides"][:2]
    assert first["minutes"] == len(first["say"]) / plan["characters_per_minute"] + first["pause"] / 60
    assert first["starts"] == 0 and second["starts"] == first["minutes"]


@pytest.mark.parametrize(("minutes", "said"), [(6, "46 分で、45 分になりません"), (1, "第 1 節で言うことが")])
def test_a_plan_that_does_not_add_up_is_one_sentence(tmp_path, minutes, said):
    data = read_json(TALK / "plan.json")
    data["sections"][0]["minutes"] = minutes
    with one_sentence(said):
        load_plan(write_json(tmp_path / "plan.json", data))


def test_every_slide_has_its_words_and_the_questions_come_last(plan, page):
    ids = re.findall(r'<section class="slide[^"]*" data-id="([^"]+)"', page)
    told = [slide["id"] for section in plan["sections"] for slide in section["slides"]]
    assert ids[: len(told)] == told and ids[len(told) :] == ["qa", *(f"qa-{n}" for n in range(1, 7))]
    given = re.search(r'<script type="application/json" id="plan">(.+?)</script>', page, re.S)[1]
    assert json.loads(given)["sections"][0]["slides"][0]["say"] == plan["sections"][0]["slides"][0]["say"]


def test_the_deck_is_one_file_without_the_network(page):
    assert not re.search(r'(src|href)="(?!data:|#)', page) and not re.search(r"url\((?!data:|#)", page)
    assert 'lang="ja"' in page and "記録済み" in page and "⚠" not in page
    assert "331,776" in page and "73,728" in page  # W と、ランク 64 の A と B


def test_what_no_longer_holds_is_marked_on_the_slide(recording):
    made = environment(recording)
    made.globals["three"] = lambda *_: [0.5, 0.5, 0.5]  # どの手法も同じになった記録
    given = {"plan": load_plan(), "answers": answers(made), "css": "", "script": ""}
    broken = made.get_template("talk/deck.html").render(given)
    assert broken.count("記録と合いません") >= 4 and any(row["broken"] for row in given["answers"])


def test_an_unknown_name_is_an_error_not_an_empty_place(recording):
    made = environment(recording)
    with pytest.raises(Exception, match="no_such"):
        made.from_string("{{ no_such }}").render()


def test_a_span_is_one_number_or_two():
    assert span([0.5, 0.5]) == "50%" and span([0.469, 0.531, 0.5]) == "47〜53%"
    assert len(three("07_evaluation", "sft_near_accuracy")) == 3


def test_the_answers_stand_on_what_was_recorded(recording):
    prepared = answers(environment(recording))
    assert sum(row["slide"] for row in prepared) == 6 and len(prepared) >= 15
    assert [row["from"] for row in prepared].count("guide") == 5
    for row in prepared:
        assert not row["broken"], f"{row['question']} 記録が変わりました。文を直してください: {row['broken']}"
        assert row["sources"] and row["one"].count("。") <= 2 and not re.search(r"[{}]", row["measured"])


def test_no_measured_number_is_written_by_hand():
    """答えの文の数字は、出どころから来たものか、条件を表す語（8B など）だけ。"""
    for row in read_json(TALK / "answers.json"):
        text = re.sub(
            r"\{\{.+?\}\}|Q\d\S*|F16|SmolLM2-135M|Gemma 3 270M|Gemma 3|3\.1", "", row["one"] + row["measured"]
        )
        assert not re.search(r"\d%|\d+\.\d+ ?(秒|分)", text), row["question"]


def test_figures_of_the_shop_are_not_written_in_the_slides():
    """スライドの雛形に、店の数字も測った割合も手で書かない。"""
    text = (DATA / "templates" / "talk" / "slides.html").read_text(encoding="utf-8")
    assert not re.search(r"\d%|690|37 ?日|37 days", re.sub(r"\{[{%].+?[}%]\}|style=\"[^\"]+\"", "", text))


def test_the_demo_in_japanese_teaches_as_many_examples_to_the_model_that_reads_it():
    said = subprocess.run(["make", "-n", "rehearse", "DATA_LANG=ja", "MACHINE=m"], cwd=REPOSITORY, capture_output=True)
    assert "--profile talk-ja" in said.stdout.decode() and '"m" "talk-ja"' in said.stdout.decode()
    english, japanese = get_profile("talk"), get_profile("talk-ja")
    same = ("train_facts", "train_forms", "sft_epochs", "sft_batch", "mix", "heldout_facts")
    assert [getattr(english, name) for name in same] == [getattr(japanese, name) for name in same]
    assert (english.lang, japanese.lang, japanese.model) == ("en", "ja", "gemma3-270m")
