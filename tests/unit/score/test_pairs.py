"""選好ペア（02 と 05 の関数）: 規則の順位、評価用 LLM への二度の問い、テストの事実を使わないこと。"""

from collections import Counter

import pytest
from conftest import from_notebook, preference_rules

from lib.data.facts import Example, find_leaks, make_split
from lib.profiles import get_profile
from lib.score.answers import is_correct, is_refusal

RULES = preference_rules()
WRONG, MADE_UP, VAGUE, RUDE = RULES.WRONG, RULES.MADE_UP, RULES.VAGUE, RULES.RUDE
FEE = Example("fee", "polite", "送料はいくらですか。", "送料は690円です。", ("690円",))
ASK = Example("na", "unanswerable", "社長は誰ですか。", "申し訳ありませんが、分かりかねます。", ())


def sides(row):
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


FAULTS = [
    *((FEE, "送料は690円です。", ""), (FEE, "690円になります", ""), (FEE, "送料は580円です。", WRONG)),
    *((FEE, "690円か580円です。", WRONG), (FEE, "地域によって変わります。", VAGUE)),
    (FEE, "690円。見れば分かるだろ。", RUDE),
    *((ASK, "申し訳ありませんが、分かりかねます。", ""), (ASK, "山田です。", MADE_UP)),
]


@pytest.mark.parametrize(("example", "answer", "expected"), FAULTS)
def test_a_fault_has_one_of_four_names_and_costs_the_reward_of_a2(example, answer, expected):
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
