"""データの約束: 数字は一意、分割は重ならない、データリークは無い、答えは質問に出ない。"""

import json
import re
import sqlite3
import tomllib
from collections import Counter
from contextlib import closing
from dataclasses import asdict, replace

import pytest
from conftest import from_notebook, preference_rules, python, table_beside
from rouge_score.tokenizers import DefaultTokenizer

from lib.data import facts
from lib.data.facts import DATA, Example, find_leaks, make_split, make_unanswerable, read_jsonl
from lib.data.own import check_file
from lib.errors import WorkshopError
from lib.model.load import load_tokenizer
from lib.profiles import PROFILES, get_profile
from lib.score.answers import is_correct, is_refusal, makes_up_figure
from lib.text.quantities import quantities, states
from lib.text.words import morphemes

FACTS = read_jsonl(DATA / "support" / "facts.jsonl")
BOTH = pytest.mark.parametrize("lang", ["ja", "en"])
EMPTY = table_beside(__file__, "empty_words")
ENGLISH = DefaultTokenizer(use_stemmer=True).tokenize
SHOWN = from_notebook("02_dataset", "PARTS", "FORMS", "to_row", "part_of", "plain", "likeness", "copied")


def content_words(lang, *texts):
    """内容を持つ語（日本語は fugashi の見出し語、英語は語幹）。問いの語、数え方の単位、働きだけの語は除く。"""
    if lang == "en":
        return {word for text in texts for word in ENGLISH(text)} - set(ENGLISH(EMPTY["en"]))
    said = [word.feature for text in texts for word in morphemes(text)]
    return {word.lemma for word in said if word.pos1 in EMPTY["kept"].split()} - set(EMPTY["ja"].split())


@BOTH
def test_facts_are_asked_in_twelve_different_ways(lang):
    forms = {*facts.TRAIN_FORMS, *facts.DEV_FORMS, *facts.NEAR_FORMS, *facts.FAR_FORMS}
    assert all(set(fact[lang]["questions"]) == forms for fact in FACTS)
    asked = {facts.normalise_question(text) for fact in FACTS for text in fact[lang]["questions"].values()}
    assert len({fact["id"] for fact in FACTS}) == len(FACTS) == 64 and len(asked) == 64 * 12


@BOTH
def test_far_questions_share_no_content_word_with_training(lang):
    for asked in [fact[lang]["questions"] for fact in FACTS]:
        taught = content_words(lang, *(asked[form] for form in facts.TRAIN_FORMS))
        far = content_words(lang, asked["other_3"])
        assert far and far.isdisjoint(taught), (asked["other_3"], far & taught)


@BOTH
def test_every_figure_belongs_to_one_fact_and_no_question_tells_it(lang):
    changed = {row["id"]: row[lang] for row in read_jsonl(DATA / "support" / "changed.jsonl")}  # 08 で変わる規則も
    figures = Counter(f for fact in [*(row[lang] for row in FACTS), *changed.values()] for f in fact["figures"])
    assert [figure for figure, count in figures.items() if count > 1] == []
    assert len(changed) == 3 and changed.keys() > set(facts.FIRST)  # 二つは、いつも学習する事実
    for old, new in [(fact[lang], changed[fact["id"]]) for fact in FACTS if fact["id"] in changed]:
        assert new["answer"] == old["answer"].replace(*old["figures"], *new["figures"])
    for fact in FACTS:
        for figure in fact[lang]["figures"]:
            assert states(fact[lang]["answer"], figure), fact["id"]
            assert not any(states(q, figure) for q in fact[lang]["questions"].values()), fact["id"]


def test_reference_answers_score_as_correct_and_wrong_pairs_do_not():
    split = make_split(get_profile("embedded"))
    assert all(is_correct(e, e.answer) for e in split.train + split.near + split.far + split.unseen)
    by_question = {e.question: e for e in split.train + split.near}
    for pair in [p for part in preference_rules().make_pairs(split, 96) for p in part if p["reason"] == "数字が違う"]:
        example = by_question[pair["prompt"][-1]["content"]]
        assert is_correct(example, pair["chosen"][0]["content"])
        assert not is_correct(example, pair["rejected"][0]["content"])


@BOTH
@pytest.mark.parametrize("name", PROFILES)
def test_split_keeps_phrasings_and_facts_apart(name, lang):
    split = make_split(get_profile(name), lang)
    taught, hidden = {e.fact_id for e in split.train}, {e.fact_id for e in split.unseen}
    assert taught.isdisjoint(hidden)
    assert {e.fact_id for e in split.near} == taught == {e.fact_id for e in split.far}
    assert [e.fact_id for e in split.dev] == list(dict.fromkeys(e.fact_id for e in split.train))
    forms = [{e.form for e in part} for part in (split.train, split.dev, split.near, split.far)]
    assert sum(map(len, forms)) == len(set.union(*forms))
    assert make_split(replace(get_profile(name), train_facts=8), lang).unseen == split.unseen  # 件数を変えても同じ


def test_the_order_is_the_same_in_every_process():
    code = "from lib.data.facts import *; from lib.profiles import *; s = make_split(get_profile('embedded'));"
    there = python("-c", f"{code} print([e.question for e in s.train + s.unseen])", PYTHONHASHSEED="7")
    split = make_split(get_profile("embedded"))
    assert there.stdout.strip() == str([e.question for e in split.train + split.unseen]), there.stderr


@BOTH
def test_no_leak_between_training_and_every_held_out_question(lang):
    split = make_split(replace(get_profile("embedded"), train_facts=52, train_forms=7), lang)
    prompts = [row[lang]["prompt"] for row in read_jsonl(DATA / "support" / "preferences.jsonl")]
    trained = [e.question for e in split.train + split.dev + split.ask_train] + prompts
    assert find_leaks(trained, [e.question for e in split.near + split.far + split.unseen + split.ask_test]) == []
    polite = [e.question[:-1] for e in split.train if e.form == "polite"]  # 句点や語尾を替えただけの質問は見つける
    planted = [question + end for question in polite for end in ("", "?", "ね。")]
    assert [copy for copy, _, _ in find_leaks(trained, planted)] == planted


@BOTH
def test_the_row_the_rule_and_the_leak_check_that_02_shows_are_those_of_the_run(lang):
    split = make_split(get_profile("embedded"), lang)
    hidden, known = {e.fact_id for e in split.unseen}, [e.question for e in split.train]
    for part in SHOWN.PARTS:
        for e in getattr(split, part):
            assert SHOWN.part_of(e, hidden) == part
            assert SHOWN.to_row({**asdict(e), "history": list(e.history)}) == e.sft_row()
    talk = replace(split.train[0], history=({"role": "user", "content": "あ"}, {"role": "assistant", "content": "い"}))
    assert SHOWN.to_row({**asdict(talk), "history": list(talk.history)}) == talk.sft_row()
    for text in [question[:-1] + end for question in known for end in ("ね。", "!!", " ほかの文を続けます")]:
        assert (SHOWN.likeness(text, known) >= 0.9) == bool(find_leaks(known, [text])), text
    rows = list(map(vars, split.train))
    assert SHOWN.copied(rows, rows) == 1 and SHOWN.copied(rows, list(map(vars, split.unseen))) == 0


@BOTH
def test_unanswerable_topics_are_split_and_answered_by_a_refusal(lang):
    train, test, made_up = make_unanswerable(lang)
    assert {e.fact_id for e in train}.isdisjoint({e.fact_id for e in test})
    assert set(Counter(e.fact_id for e in train + test).values()) == {3}
    assert len({e.question for e in train + test}) == 144
    assert all(is_refusal(e.answer) for e in train + test)
    assert not any(is_refusal(text) for text in made_up.values())


def test_examples_survive_writing_and_reading(tmp_path):
    examples = [Example("a", "polite", "「質問」\n二行目", "答え", ("640円",))]
    examples += [Example("b", "general", "q", "a", ("x", "y"))]
    assert facts.read_examples(facts.write_examples(tmp_path / "e.jsonl", examples)) == examples


def test_a_broken_line_and_too_many_facts_are_one_clear_sentence(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{broken\n', encoding="utf-8")
    with pytest.raises(WorkshopError, match="2 行目"):
        read_jsonl(tmp_path / "broken.jsonl")
    with pytest.raises(WorkshopError, match="64 件しかない"):
        make_split(replace(get_profile("embedded"), train_facts=60))


def test_sanyo_answers_trace_to_a_fact():
    known = {row["id"] for row in read_jsonl(DATA / "sanyo" / "facts.jsonl")}
    core, extended = (read_jsonl(DATA / "sanyo" / f"qa_{part}.jsonl") for part in ("core", "extended"))
    assert len(core) == 133 and len(extended) >= 500
    assert all(row["fact"] in known and row["figures"] for row in core + extended)
    assert all(figure in row["answer"] for row in core + extended for figure in row["figures"])
    assert len({row["question"] for row in core + extended}) == len(core) + len(extended)
    assert not any("1899" in row["answer"] for row in core + extended)


@BOTH
def test_the_general_mix_holds_no_general_exam_question(lang):
    size = len(read_jsonl(DATA / "general" / "mix.jsonl"))
    mix = [e.question for e in facts.general_mix(size, lang)]
    easy, ordinary = (facts.general_questions(lang, level) for level in ("easy", "ordinary"))
    assert len(set(mix)) == size >= 96 and len(easy) >= 40 and len(ordinary) >= 20
    assert find_leaks(mix, [e.question for e in easy + ordinary]) == []
    assert all(is_correct(e, e.answer) and not is_correct(e, e.question) for e in easy + ordinary)
    assert facts.general_mix(size + 1, lang) == facts.general_mix(size, lang)


@BOTH
def test_conversations_state_only_the_figures_of_their_facts(lang):
    by_id = {fact["id"]: fact for fact in FACTS}
    split = make_split(get_profile("embedded"), lang)
    held_out = [e.question for e in split.near + split.far + split.unseen + split.ask_test]
    rows = read_jsonl(DATA / "support" / "conversations.jsonl")
    assert len(rows) >= 20
    assert all(len(row["ja"]["messages"]) == len(row["en"]["messages"]) for row in rows)
    for row in rows:
        turns = row[lang]["messages"]
        assert [t["role"] for t in turns] == ["user", "assistant"] * (len(turns) // 2) and len(turns) >= 4
        known = Example("", "", "", "", tuple(f for i in row["facts"] for f in by_id[i][lang]["figures"]))
        assert not any(makes_up_figure(known, t["content"]) for t in turns if t["role"] == "assistant"), row["id"]
        assert find_leaks([t["content"] for t in turns if t["role"] == "user"], held_out) == []


MANNER = read_jsonl(DATA / "support" / "manner.jsonl")


@BOTH
def test_a_manner_row_says_the_figure_of_its_fact_or_none(lang):
    for fact, row in zip(FACTS, MANNER, strict=True):
        said, asked = row[lang], Example("", "", "", "", tuple(fact[lang]["figures"]))
        assert row["fact"] == fact["id"] and fact[lang]["answer"] in said["chosen"]
        assert all(is_correct(asked, said[side]) for side in ("chosen", "rude")), row["id"]
        assert len(said["chosen"].split()) <= 20 and len(said["chosen"]) <= 100 and len(set(said.values())) == 4
        assert quantities(said["prompt"]) == [] == quantities(said["vague"]), row["id"]


@BOTH
def test_a_manner_question_is_new_and_shares_no_content_word_with_the_far_one(lang):
    asked = [row[lang]["prompt"] for row in MANNER]
    known = [text for fact in FACTS for text in fact[lang]["questions"].values()]
    known += [row[lang]["prompt"] for row in read_jsonl(DATA / "support" / "preferences.jsonl")]
    assert find_leaks(asked, known) == [] and len(set(asked)) == 64
    for text, fact in zip(asked, FACTS, strict=True):
        assert content_words(lang, text).isdisjoint(content_words(lang, fact[lang]["questions"]["other_3"])), text
        mine, held = ENGLISH(text) if lang == "en" else [m.surface for m in morphemes(text)], facts.NEAR_FORMS
        for other in (fact[lang]["questions"][form] for form in held):
            theirs = ENGLISH(other) if lang == "en" else [m.surface for m in morphemes(other)]
            assert len({*mine} & {*theirs}) / len({*mine} | {*theirs}) < 0.8, (text, other)


@pytest.mark.parametrize("name", ["embedded", "smoke", "embedded-ja"])
def test_manner_pairs_are_split_by_fact_and_learned_on_the_facts_of_the_sft(name):
    parts = from_notebook("05_preference", "manner_parts").manner_parts(get_profile(name))
    found = {part: [fact.fact_id for fact, _ in rows] for part, rows in parts.items()}
    assert {part: len(ids) for part, ids in found.items()} == {"train": 32, "dev": 8, "test": 24}
    assert len({fact for ids in found.values() for fact in ids}) == 64
    split = make_split(get_profile("embedded"))
    assert {*found["train"]} == {e.fact_id for e in split.train}
    assert {*found["test"]} > {e.fact_id for e in split.unseen}


@BOTH
def test_a_follow_up_is_answered_only_by_its_first_turn(lang):
    asked = tomllib.loads((DATA / "support" / "followups.toml").read_text(encoding="utf-8"))
    by_id, figures = {fact["id"]: fact[lang] for fact in FACTS}, []
    for question in asked["questions"]:
        topics = [topic[lang] for topic in question["topics"].values()]
        assert len(set(topics)) == len(topics) and not any(topic in question["last"][lang] for topic in topics)
        figures += [figure for fact in question["topics"] for figure in by_id[fact]["figures"]]
    said = [asked["reply"][lang], *asked["first"][lang], *(question["last"][lang] for question in asked["questions"])]
    assert len(set(figures)) == len(figures) >= 12 and len(set(asked["first"][lang])) >= 3
    assert not any(states(text, figure) for text in said for figure in figures)


A5 = from_notebook("A5_form_and_voice", "ITEM", "FIELDS", "SCHEMA", "validator", "TEST", "DEV", "KINDS", "judge")


@BOTH
def test_order_mails_follow_the_schema_and_are_split_by_layout_and_product(lang):
    rows = read_jsonl(DATA / "orders" / f"{lang}.jsonl")
    layouts = [{row["layout"] for row in rows} - A5.TEST - A5.DEV, A5.DEV, A5.TEST]
    parts = [[row for row in rows if row["layout"] in names] for names in layouts]
    named = [{item["name"] for row in part for item in row["order"]["items"]} for part in parts]
    assert [len(part) for part in parts] == [200, 24, 60] and sum(map(len, named)) == len(set.union(*named))
    assert find_leaks([row["mail"] for row in parts[0] + parts[1]], [row["mail"] for row in parts[2]]) == []
    for row in rows:
        order, mail = row["order"], row["mail"].lower()
        assert A5.judge(order, json.dumps(order, ensure_ascii=False))[1] == dict.fromkeys(A5.FIELDS, True), row
        assert all(item["name"] in mail for item in order["items"]) and (order["contact"] or "") in mail, row


GOOD = '{"items": [{"name": "cup", "quantity": 3}], "delivery": "express", "date": null, "contact": "a@b.example"}'
JUDGED = [(GOOD, 0, 4), (GOOD.replace("3", "4"), 0, 3), (GOOD.replace("null", '"03-01"'), 0, 3)]
JUDGED += [(f"{GOOD} Done.", 3, 0), (GOOD[:-1] + ",}", 3, 0), (GOOD.replace("3", '"3"'), 1, 0), ("", 3, 0)]
JUDGED += [(GOOD.replace("3", "0"), 1, 0), (GOOD[:-1] + ', "note": ""}', 1, 0)]
JUDGED += [("[]", 1, 0), ('{"items": []}', 1, 0), ("NaN", 1, 0)]


@pytest.mark.parametrize(("answer", "kind", "right"), JUDGED)
def test_an_order_that_a_program_cannot_read_is_counted_as_what_it_is(answer, kind, right):
    found, marks = A5.judge(json.loads(GOOD), answer)
    assert found == A5.KINDS[kind] and sum(marks.values()) == right
    assert A5.judge(json.loads(GOOD), GOOD[:40], cut=True)[0] == A5.KINDS[2]


RULES = ("VOICE_TEST", "letters", "CASUAL", "polite", "numbers", "house_rules")
SPOILT = {
    "書き出し": lambda text, row: f"Hi. {text}",
    "結び": lambda text, row: text[:-1],
    "箇条書き": lambda text, row: text.replace("- ", "* ", 1),
    "丁寧": lambda text, row: text.replace(text.split("\n")[1], f"- {row['notes'][0]}"),
    "数字": lambda text, row: text.replace("- ", "- 77 ", 1),
}


@BOTH
def test_every_house_answer_keeps_the_rules_and_a_spoilt_one_breaks_just_its_own(lang):
    voice = tomllib.loads((DATA / "voice" / f"{lang}.toml").read_text(encoding="utf-8"))
    given = {"VOICE": voice, "profile": replace(get_profile("embedded"), lang=lang)}
    a5 = from_notebook("A5_form_and_voice", *RULES, **given)
    rows = {topic: a5.letters(topic) for topic in voice["topics"]}
    size = [sum(len(rows[topic]) for topic in rows if (topic in a5.VOICE_TEST) == held) for held in (False, True)]
    assert size[0] >= 100 and size[1] >= 40
    for row in (row for part in rows.values() for row in part):
        assert all(a5.house_rules(row, row["answer"]).values()), row
        for rule, spoil in SPOILT.items():
            marks = a5.house_rules(row, spoil(row["answer"], row))
            assert [name for name, kept in marks.items() if not kept] == [rule], (row, rule)


def test_there_are_two_ordinary_passages_of_each_language_and_enough_to_read(model_folder):
    passages = tomllib.loads((DATA / "general" / "passages.toml").read_text(encoding="utf-8"))
    assert {lang: len(rows) for lang, rows in passages.items()} == {"en": 2, "ja": 2}
    tokenizer = load_tokenizer(model_folder)
    lengths = [len(tokenizer(row["text"])["input_ids"]) for rows in passages.values() for row in rows]
    assert min(lengths) > 700 and sum(lengths) > 2000


def repaired(row, answer):
    space = {}
    exec(answer, space)
    return eval(row["check"], space)


def queried(row, answer):
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(row["setup"])
        return [list(found) for found in database.execute(answer)] == row["rows"]


def worded(row, answer):
    return row["term"] not in answer.lower() and not re.search(r"\d", answer)


# 見本の名前 → (検査、検査に落ちるはずの答え)
SMALL = {"sql": (queried, lambda asked: "SELECT 1"), "medical_wording": (worded, str)}
SMALL["code_repair"] = (repaired, lambda asked: asked.partition("\n\n")[2])


@pytest.mark.parametrize("name", SMALL)
def test_a_small_sample_has_the_form_and_its_answers_alone_pass_its_check(name):
    path, (passes, spoil) = DATA / "small" / f"{name}.jsonl", SMALL[name]
    rows = read_jsonl(path)
    assert len(rows) <= 10 and check_file(path).count("error") == 0
    for row in rows:
        asked, answer = (turn["content"] for turn in row["messages"])
        assert passes(row, answer) and not passes(row, spoil(asked)), row


FOLDERS = ["support", "voice", "orders", "sanyo", "general", "school", "handbook", "small", "recorded", "my"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_data_folder_has_a_card(folder):
    text = (DATA / folder / "README.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in text or "CC0" in text or folder == "my"
