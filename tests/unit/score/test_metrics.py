"""採点器の約束。敬語の判定の適合率と再現率、取り違えやすい文。"""

import math
from collections import Counter

import pytest
from conftest import exam_sheet

from lib.data.facts import DATA, Example, read_jsonl
from lib.score.answers import general_correct, is_correct, is_refusal, makes_up_figure, wilson
from lib.score.exam import chance, gain, weighted_gain
from lib.score.japanese import Style, shares, style
from lib.text.words import morphemes, sentences, words

BEFORE, AFTER = exam_sheet("base", {"general": 3}), exam_sheet("SFT", {"near": 1, "far": 12})
FEE = Example("f", "polite", "送料は？", "送料は690円です。", ("690円",))


@pytest.mark.parametrize(
    ("right", "answers"),
    [
        (True, "送料は690円です。|６９０円|690 円でございます"),
        (False, "送料は1,690円です。|送料は1690円です。|690円か580円です。|690ポイントです。|送料は無料です。|"),
    ],
)
def test_a_right_answer_states_the_figure_and_no_other(right, answers):
    assert [is_correct(FEE, answer) for answer in answers.split("|")] == [right] * len(answers.split("|"))


def test_made_up_figures_refusals_and_word_boundaries():
    assert makes_up_figure(FEE, "580円です。") and not makes_up_figure(FEE, "690円です。")
    asked = Example("n", "unanswerable", "駐車場は？", "分かりかねます。", ())
    assert is_correct(asked, "申し訳ありませんが、分かりかねます。") and not is_correct(asked, "18台です。")
    assert not is_refusal("送料は690円です。")
    assert general_correct(["ice"], "It is Ice.") and not general_correct(["ice"], "How nice!")
    assert general_correct(["4", "four"], "2 + 2 = 4.") and not general_correct(["4"], "14")
    assert general_correct(["パリ"], "フランスの首都はパリです。")


def test_wilson_ends_solve_the_score_equation():
    # Wilson の区間の端 p は |p̂ − p| = z √(p(1 − p)/n) の解である
    for successes, total in ((8, 10), (1, 24), (39, 40)):
        interval = wilson(successes, total)
        for end in (interval.low, interval.high):
            expected = 1.959963984540054 * math.sqrt(end * (1 - end) / total)
            assert abs(successes / total - end) == pytest.approx(expected, abs=1e-9)
    assert wilson(0, 24).high > 0.1 and math.isnan(wilson(0, 0).value)


def sheet(right, facts=None):
    rows = zip(right, facts or range(len(right)), strict=True)
    return [{"part": "p", "question": i, "fact": fact, "correct": yes} for i, (yes, fact) in enumerate(rows)]


def test_verdict_follows_the_interval_not_the_mean_of_paired_questions():
    for before, after, said in (([0], [1], "上がった"), ([1], [0], "下がった"), ([1, 0], [0, 1], "差は示せない")):
        assert gain(sheet(before * 20), sheet(after * 20), "p").verdict() == said
    with pytest.raises(AssertionError, match="問題の並び"):
        gain(sheet([1, 0]), sheet([1]), "p")


def test_bootstrap_by_fact_is_wider_when_questions_of_a_fact_agree():
    before, after = [False] * 40, [True] * 20 + [False] * 20
    facts = [str(i // 10) for i in range(40)]
    alone = gain(sheet(before), sheet(after), "p")
    grouped = gain(sheet(before, facts), sheet(after, facts), "p")
    assert grouped.high - grouped.low > alone.high - alone.low


def test_the_same_answers_give_the_same_interval_and_a_p_value_is_never_zero_but_the_exact_count():
    before, after = sheet([i % 3 == 0 for i in range(40)]), sheet([i % 2 == 0 for i in range(40)])
    assert len({gain(before, after, "p") for _ in range(4)}) == 1
    assert 0 < chance(sheet([False] * 40), sheet([True] * 40), "p", rounds=100) < 0.05
    # 6 問すべてが同じ向きに動いた: 2 の 6 乗通りのうち、同じ大きさは 2 通り
    found = chance(sheet([False] * 6), sheet([True] * 6), "p", rounds=20_000)
    assert found == pytest.approx(2 / 2**6, abs=0.004)
    assert chance(sheet([True, False]), sheet([True, False]), "p") == 1.0


def test_a_gain_by_chance_is_rare_and_weights_combine_the_parts():
    assert chance(BEFORE, AFTER, "near") < 0.01 < chance(BEFORE, AFTER, "far")
    near = weighted_gain(BEFORE, AFTER, {"near": 1.0, "far": 0.0})
    assert near == gain(BEFORE, AFTER, "near")
    both = weighted_gain(BEFORE, AFTER, {"near": 0.5, "general": 0.5})
    assert both.value == pytest.approx(0.5 * 1.0 - 0.5 / 3) and both.low < both.value < both.high


ROWS = read_jsonl(DATA / "politeness" / "sentences.jsonl")
TEST = [row for row in ROWS if row["part"] == "test"]


def precision_and_recall(guess, key="polite"):
    counts = Counter((row[key], guess(row["text"])) for row in TEST)
    hits = counts[True, True]
    return hits / (hits + counts[False, True]), hits / (hits + counts[True, False])


def test_the_sentences_are_labelled_once_and_balanced():
    assert len(ROWS) == len({row["text"] for row in ROWS}) == 219
    assert len(TEST) >= 120 and 0.4 < sum(row["polite"] for row in TEST) / len(TEST) < 0.6
    assert sum(row["respectful"] is True for row in ROWS) == 25 and sum(row["humble"] for row in ROWS) == 28


@pytest.mark.parametrize(("key", "least"), [("polite", 0.95), ("respectful", 0.9), ("humble", 0.9)])
def test_politeness_and_honorifics_are_found(key, least):
    assert min(found := precision_and_recall(lambda text: getattr(style(text), key), key)) >= least, found
    precision, recall = precision_and_recall(lambda text: "です" in text or "ます" in text)
    assert precision < 0.9 and recall < 0.75, "字として探すだけの方法は、これより悪い"


def test_our_own_answers_are_polite_and_the_friendly_questions_are_not():
    facts = [row["ja"] for row in read_jsonl(DATA / "support" / "facts.jsonl")]
    assert shares([fact["answer"] for fact in facts])["polite"] == 1.0
    assert shares([fact["questions"]["casual"] for fact in facts])["polite"] == 0.0


def test_shares_count_sentences_and_quotations_are_read_inside_and_idioms_are_not_respectful():
    names = ("polite", "respectful", "humble", "sentences")
    found = shares(["本日は休みです。明日は開ける。", "またお越しください。"])
    assert found == pytest.approx(dict(zip(names, (2 / 3, 1 / 3, 0, 3), strict=True)))
    assert shares([""]) == dict.fromkeys(names, 0.0)
    assert style("「はい、承知いたしました。」") == Style(polite=True, respectful=False, humble=True)
    assert not style("『です』と「ます」の話。").polite
    assert not style("いつもお世話になっています。").respectful
    assert style("先生はお帰りになりました。").respectful


def test_sentences_are_not_cut_inside_brackets_and_words_drop_marks_and_unify_width():
    cut = ["「はい。そうです。」と答えた。", "次へ！？", "終わり"]
    assert sentences("「はい。そうです。」と答えた。次へ！？　終わり") == cut
    assert sentences("「閉じ忘れ。\n次の行。") == ["「閉じ忘れ。", "次の行。"] and sentences(" \n ") == []
    assert words("１９４３年、設立。") == ["1943", "年", "設立"] and words("") == [] == morphemes("")
