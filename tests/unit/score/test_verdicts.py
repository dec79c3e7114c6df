"""判定の約束: p は正確で、等しいモデルに差があるとは言わず、本当の差は見つけ、比べられないものは一文のエラー。"""

import itertools
import math
import random
import re

import numpy as np
import pytest
from conftest import exam_sheet, one_sentence
from scipy import stats

from lib.data.facts import DATA, general_questions
from lib.files import REPOSITORY, read_json
from lib.score.exam import PARTS, Change, difference, model_verdicts, sign_flip, verdicts

BEFORE, AFTER = exam_sheet("base", {"general": 3}), exam_sheet("SFT", {"near": 1, "far": 12})


def groups(*totals):
    return [[total] for total in totals]


def sheet(right, facts=None):
    rows = zip(right, facts or range(len(right)), strict=True)
    return [{"part": "p", "question": i, "fact": fact, "correct": yes} for i, (yes, fact) in enumerate(rows)]


def test_p_is_the_share_of_all_sign_flips_and_that_of_scipy():
    dice = random.Random(0)
    for n in [*range(1, 13), *range(1, 13)]:
        totals = [dice.randint(-2, 2) for _ in range(n)]
        flips = [abs(sum(map(int.__mul__, signs, totals))) for signs in itertools.product((1, -1), repeat=n)]
        assert sign_flip(groups(*totals)) == sum(flip >= abs(sum(totals)) for flip in flips) / 2**n
        if n > 1:
            theirs = stats.permutation_test((totals,), sum, permutation_type="samples", n_resamples=np.inf)
            assert sign_flip(groups(*totals)) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize(("better", "worse", "same"), [(4, 0, 12), (5, 1, 0), (12, 3, 17), (0, 9, 1), (260, 190, 800)])
def test_with_one_question_a_fact_p_is_that_of_the_sign_test_at_any_number_of_facts(better, worse, same):
    totals = groups(*[1] * better, *[-1] * worse, *[0] * same)
    assert sign_flip(totals) == pytest.approx(stats.binomtest(better, better + worse).pvalue)


def test_the_verdicts_of_a_table_are_corrected_by_holm_and_a_table_holds_six():
    counts = {"a": (10, 0), "b": (7, 1), "c": (7, 0), "d": (2, 2)}  # p = 2/2¹⁰、18/2⁸、2/2⁷、1
    found = verdicts({key: Change(groups(*[1] * up, *[-1] * down, 0)) for key, (up, down) in counts.items()})
    assert list(found) == list("abcd") and [c.p for c in found.values()] == [2 / 2**10, 18 / 2**8, 2 / 2**7, 1]
    assert [c.corrected for c in found.values()] == pytest.approx([4 * 2 / 2**10, 2 * 18 / 2**8, 3 * 2 / 2**7, 1])
    assert [c.word() for c in found.values()] == ["上がった", "差は示せない", "上がった", "差は示せない"]
    with pytest.raises(AssertionError, match="6 つまで"):
        verdicts(dict.fromkeys(range(7), Change(groups(1, 1))))


def table(dice, shift=0.0):
    """等しい二つのモデルの表（07 の形: 32 事実に 2 問・1 問、一般の 40 問）。同じ事実の問いは、ほとんど同じ結果になる。

    shift を渡すと、二つ目（32 事実に 1 問）だけ、正答率が 30% から 30% + shift になる。
    """
    found = {}
    for place, (facts, asked) in enumerate([(32, 2), (32, 1), (40, 1)] * 2):
        rate, more = (0.3, shift) if place == 1 else (dice.uniform(0.05, 0.95), 0.0)
        known = dice.random((facts, 2)) < [rate, rate + more]
        slips = dice.random((facts, asked, 2)) < (0.1 if asked > 1 else 0)
        right = (known[:, None, :] ^ slips).astype(int)
        found[place] = Change((right[:, :, 1] - right[:, :, 0]).tolist())
    return verdicts(found)


def test_equal_models_are_rarely_told_apart_and_a_true_difference_is_mostly_found():
    dice = np.random.default_rng(0)
    wrong = sum(any(c.corrected <= 0.05 for c in table(dice).values()) for _ in range(2000))
    assert wrong / 2000 <= 0.05 and stats.binomtest(wrong, 2000).proportion_ci().high <= 0.062, wrong
    found = sum(table(dice, shift=0.4)[1].word() == "上がった" for _ in range(500))
    assert found / 500 >= 0.55, found


SENTENCES = [
    (
        groups(1, 1, 1, 1, *[0] * 12),
        "4 事実で良化・0 事実で悪化（16 事実）、p = 0.13、差は示せない",
        "+25.0 ポイント [+6.2, +50.0]",
    ),
    (
        groups(*[-1] * 6, *[0] * 10),
        "0 事実で良化・6 事実で悪化（16 事実）、p = 0.031、下がった",
        "-37.5 ポイント [-62.5, -12.5]",
    ),
    ([[1, 1]] * 16, "16 事実で良化・0 事実で悪化（16 事実）、p < 0.001、上がった", "+100.0 ポイント（16 事実とも）"),
    ([[1, -1], [0, 0]], "2 事実とも正答の数が同じ、差は示せない", "+0.0 ポイント（2 事実とも）"),
    ([[1, 1, 0]], "1 事実では、検定できない", "+66.7 ポイント（1 事実とも）"),
    ([], "0 事実では、検定できない", "–"),
]


@pytest.mark.parametrize(("found", "said", "size"), SENTENCES)
def test_a_verdict_is_one_sentence_and_a_width_of_zero_is_never_an_interval(found, said, size):
    (judged,) = verdicts({0: Change(found)}).values()
    assert (str(judged), judged.size()) == (said, size)
    counts = str(Change(found))
    assert said.startswith(counts) and "p " not in counts and math.isnan(judged.interval().value) == (not found)


def test_a_p_below_the_line_says_why_the_table_does_not_count_it():
    found = verdicts({key: Change(groups(*[1] * better, 0)) for key, better in enumerate((6, 1))})
    assert str(found[0]).endswith("p = 0.031（補正後 0.062）、差は示せない")


def test_facts_are_the_unit_and_pairs_are_kept():
    before, after = [False] * 8, [True] * 8
    alone, grouped = (difference(sheet(before, facts), sheet(after, facts), "p") for facts in (None, "aabbccdd"))
    assert verdicts({0: alone})[0].word() == "上がった" and verdicts({0: grouped})[0].word() == "差は示せない"
    mixed = difference(sheet([False] * 8 + [True] * 8, "aabbccddeeffgghh"), sheet([True] * 16, "aabbccddeeffgghh"), "p")
    assert mixed.groups == [[1, 1]] * 4 + [[0, 0]] * 4 and mixed.interval().high > mixed.interval().value
    back = difference(list(reversed(AFTER)), BEFORE, "near")  # 行の順は問わない
    assert sum(map(sum, back.groups)) == -24
    general = general_questions("en")
    assert len({e.fact_id for e in general}) == len(general), "一般の質問は、一問が一つの単位"


def test_the_models_of_a_run_are_judged_in_order_on_three_parts():
    found = model_verdicts({"学習前": BEFORE, "SFT": AFTER, "SFT + DPO": AFTER})
    pairs, parts = (("学習前", "SFT"), ("SFT", "SFT + DPO")), ("near", "far", "general")
    assert list(found) == [(*pair, part) for pair in pairs for part in parts]
    assert [c.word() for c in found.values()] == ["上がった", "差は示せない", "下がった", *["差は示せない"] * 3]
    assert str(found["学習前", "SFT", "general"]).startswith("0 問で良化・8 問で悪化（12 問）")


@pytest.mark.parametrize("odd", [AFTER[1:], [{**AFTER[0], "question": "別の問い"}, *AFTER[1:]], []])
def test_evaluations_with_other_questions_are_refused_in_one_sentence(odd):
    with one_sentence(PARTS["near"], "片方の評価にしか無い", "測り直して"):
        difference(BEFORE, odd, "near")


VERDICT = re.compile(r"\d+ [事実問話題]+で良化・[^「」]*?(?:差は示せない|上がった|下がった)")


def from_counts(sentence):
    """練習のために作った判定の文なら、その数から計算し直した文（1 つの単位に 1 問）。"""
    better, worse, facts = map(int, re.findall(r"(\d+) [事問話]", sentence))
    found = [[1]] * better + [[-1]] * worse + [[0]] * (facts - better - worse)
    return str(verdicts({0: Change(found, re.search("[事実問話題]+", sentence)[0])})[0])


def recorded(**settings):
    """付録 A の記録のうち、この設定の結果。"""
    found = read_json(DATA / "recorded" / "experiments.json").values()
    (only,) = [row["result"] for row in found if settings.items() <= row["settings"].items()]
    return only


def test_every_verdict_on_a_page_is_that_of_the_recorded_rows():
    dpo = recorded(way="DPO", learning_rate=5e-4, pairs="SFT の言う答え", beta=0.1, sft_weight=1.0)["rows"]
    more, grpo = [recorded(way="SFT の続き", learning_rate=rate)["rows"] for rate in (5e-4, 2e-3)], recorded(way="GRPO")
    both = ("unanswerable", "near")
    control = verdicts({(n, part): difference(rows, dpo, part) for n, rows in enumerate(more) for part in both})
    steps = verdicts({part: difference(grpo["before"]["rows"], grpo["after"]["rows"], part) for part in both})
    found = [change.word() for change in [*control.values(), *steps.values()]]
    assert found == ["差は示せない"] * 4 + ["上がった", "下がった"]
    right = {*map(str, control.values()), *map(str, steps.values())}
    paths = [REPOSITORY / "README.md", *(REPOSITORY / "notebooks").glob("*.ipynb"), *(DATA / "talk").glob("*.[jm]*")]
    said = [(path.name, one) for path in paths for one in VERDICT.findall(path.read_text(encoding="utf-8"))]
    assert [one for one in said if one[1] not in right | {from_counts(one[1])}] == []
    assert right & {one for _, one in said} and len(said) >= 3


def test_the_text_of_05_is_that_of_its_three_recorded_seeds():
    """回答をいちばん控えるのは SFT の対照。SFT の項を外すか、ほかの損失に替えると、第三幕のようには控えない。"""
    refused = {}
    for row in read_json(DATA / "recorded" / "experiments.json").values():
        settings = row["settings"]
        if settings.get("notebook") == "05" and "pairs" in settings:
            marks = "".join(row["result"]["right"]["unanswerable"].values())
            pairs, beta, seed = len(settings["pairs"]), settings["beta"], settings["seed"]
            refused[settings["way"], *settings["loss"], pairs, beta, seed] = marks.count("1") / len(marks)
    ways = (("DPO", "sigmoid"), ("DPO", "hinge"), ("DPO", "ipo"), ("KTO",), ("ORPO",))
    for seed in range(3):
        others = [refused[(*way, 3, 0.1, seed)] for way in ways]
        weak, third, strong = (refused["DPO", "sigmoid", "sft", 3, beta, seed] for beta in (0.02, 0.1, 0.5))
        assert refused["SFT", "sft", 3, 0, seed] > third > 0.2 > 0.1 > max(others)
        assert weak > third > strong
