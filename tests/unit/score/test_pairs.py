"""選好ペア（02 と 05 の関数）と評価用 LLM（07 の関数）: 規則の順位、二度の問い、数字に出る偏り、出ない鍵。"""

import json
from collections import Counter

import pytest
from conftest import from_notebook, preference_rules, table_beside

from lib.data.facts import Example, find_leaks, make_split
from lib.errors import WorkshopError
from lib.profiles import get_profile
from lib.score.answers import is_correct, is_refusal

RULES, TABLE = preference_rules(), table_beside(__file__, "pairs")
WRONG, MADE_UP, VAGUE, RUDE = RULES.WRONG, RULES.MADE_UP, RULES.VAGUE, RULES.RUDE
FEE = Example("fee", "polite", "送料はいくらですか。", "送料は690円です。", ("690円",))
ASK = Example("na", "unanswerable", "社長は誰ですか。", "申し訳ありませんが、分かりかねます。", ())


def sides(row):
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


@pytest.mark.parametrize(("asked", "answer", "expected"), TABLE["faults"])
def test_a_fault_has_one_of_four_names_and_costs_the_reward_of_a2(asked, answer, expected):
    example, expected = {"送料": FEE, "社長": ASK}[asked], getattr(RULES, expected, "")
    assert RULES.fault(example, answer) == expected
    assert from_notebook("A2_rlhf", "ENDS", "POLITE_END", "rule").rule(example, answer) == float(not expected)


def test_the_best_and_the_worst_answer_become_a_pair_and_equal_answers_none():
    fees = ["送料は580円です。", "690円だ", "送料は690円です。", "送料は690円です。"]
    rows = RULES.rank_pairs([FEE, ASK], [fees, ["山田です。", "分かりかねます。"]])
    assert [(*sides(row), row["reason"]) for row in rows] == [
        ("送料は690円です。", "送料は580円です。", WRONG),
        ("分かりかねます。", "山田です。", MADE_UP),
    ]
    assert RULES.rank_pairs([FEE], [["送料は690円です。", "690円です。"]]) == []
    assert RULES.rank_pairs([FEE], [["送料は690円です。"] * 4], lambda *_: "A") == []


def test_a_judge_counts_only_when_both_orders_agree():
    answers = [["送料は690円です。", "はい、送料は690円でございます。"]]
    (row,) = RULES.rank_pairs([FEE], answers, lambda question, a, b: "A" if len(a) > len(b) else "B")
    assert sides(row)[0].startswith("はい")
    for always in ("A", ""):
        assert RULES.rank_pairs([FEE], answers, lambda *_, said=always: said) == []


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_written_pairs_never_touch_the_exam(lang):
    split = make_split(get_profile("embedded"), lang)
    rows = RULES.written_pairs(split, lang)
    assert set(Counter(row["reason"] for row in rows)) == {WRONG, MADE_UP, VAGUE, RUDE}
    held_out = [e.question for e in split.near + split.far + split.unseen + split.ask_test]
    assert find_leaks([row["prompt"][-1]["content"] for row in rows], held_out) == []
    by_fact = {e.fact_id: e for e in split.train}
    for row in rows:
        good, bad = sides(row)
        if row["reason"] == MADE_UP:
            assert is_refusal(good) and not is_refusal(bad)
        else:
            example = next(e for e in by_fact.values() if all(f in good for f in e.figures))
            assert is_correct(example, good)
            assert RULES.fault(example, bad) == row["reason"] or lang == "en"


def test_choices_by_hand_become_pairs():
    first, second = RULES.pairs_by_hand([(FEE, "一", "二"), (ASK, "三", "四"), (FEE, "五", "六")], {0: "B", 2: "A"})
    assert [sides(first), sides(second)] == [("二", "一"), ("五", "六")] and "人" in first["reason"]
    assert first["prompt"] == FEE.prompt()
    assert set(first) == set(RULES.rank_pairs([FEE], [["分かりません", FEE.answer]])[0])


FOUND = from_notebook("07_evaluation", "read_choice", "ask_judge", "judge", "compare")
BAD = [{"question": f"問い{n}", "reference": "690円", "answer": f"{n}円", "correct": False} for n in range(10)]
GOOD = [{**row, "answer": "690円です", "correct": True} for row in BAD]


def fair(question, a, b):
    assert "正解: 690円" in question
    return "A" if a == "690円です" else "B" if b == "690円です" else ""


def test_a_fair_judge_agrees_with_the_rule_and_one_that_always_takes_the_first_is_exposed():
    assert FOUND.compare(fair, BAD, GOOD) == [{"win": 1.0, "same": True, "agrees": True}] * 10
    assert FOUND.compare(fair, GOOD, BAD) == [{"win": 0.0, "same": True, "agrees": True}] * 10
    assert FOUND.compare(lambda *_: "A", BAD, GOOD) == [{"win": 0.5, "same": False, "agrees": False}] * 10
    assert FOUND.compare(lambda *_: "A", BAD, BAD) == [{"win": 0.5, "same": False}] * 10


def test_only_a_clear_choice_counts():
    clear = {"A": "A", "答えは B です。": "B", "Ｂ": "B", " b です": "B"}
    for said in (*clear, "引き分け", "A と B は同じ", "Apple", "", "I see a tie"):
        assert FOUND.read_choice(said) == clear.get(said, ""), said


@pytest.fixture
def judge(endpoint, monkeypatch):
    """07 が尋ねる、評価用 LLM。"""
    for name, value in (("KEY", "himitsu"), ("MODEL", "m"), ("URL", endpoint.url)):
        monkeypatch.setenv(f"WORKSHOP_JUDGE_{name}", value)
    return endpoint


def test_the_judge_speaks_the_openai_protocol_and_hides_its_key(judge, capsys):
    judge.reply = " b です"
    assert FOUND.judge("質問", "一", "二") == "B"
    ((path, key, body),) = judge.seen
    assert path == "/v1/chat/completions" and key == "Bearer himitsu"
    assert "一" in body["messages"][0]["content"] and body["model"] == "m"
    assert "himitsu" not in json.dumps(body) + capsys.readouterr().out


@pytest.mark.parametrize(("change", "told"), TABLE["silent"])
def test_a_judge_that_does_not_answer_is_one_sentence_without_the_key(judge, monkeypatch, change, told):
    for name, value in change.items():
        monkeypatch.setenv(name, value) if name.isupper() else setattr(judge, name, value)
    with pytest.raises(WorkshopError, match=f"評価用 LLM が答えません（{told}）") as error:
        FOUND.judge("質問", "一", "二")
    assert "himitsu" not in str(error.value) and error.value.__suppress_context__
