"""文字と語の似かたの指標: 元の実装と同じ値か。年を間違えた答えを、正しい言い換えより高く採点するか。"""

import json
from fractions import Fraction
from statistics import fmean

import pytest
from conftest import from_notebook, python, table_beside
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from lib.data.facts import DATA, read_jsonl
from lib.text.quantities import matches

NAMES = ("bleu", "chrf", "by_word", "rouge_l", "llm_jp_eval", "jsquad", "distinct", "japanese_share", "similar")
SEVEN = from_notebook("07_evaluation", *NAMES, fmean=fmean)
ROWS = [row["ja"] for row in read_jsonl(DATA / "support" / "preferences.jsonl")][:60]
_TABLE = table_beside(__file__, "surface")["edges"]
EDGES = [(said, gold, exact, *map(float, map(Fraction, f1))) for said, gold, exact, *f1 in _TABLE]
ANSWERS = [row["rejected"] for row in ROWS] + [answer for answer, *_ in EDGES]
REFERENCES = [row["chosen"] for row in ROWS] + [reference for _, reference, *_ in EDGES]
REFERENCE = "三陽商会は1943年5月に設立されました。"
PARAPHRASE = "同社の創立は昭和18年、つまり1943年の5月です。"
SHORT = "1943年5月です。"
WRONG = "三陽商会は1899年5月に設立されました。"


def same(value):
    return pytest.approx(value, abs=1e-6)


def test_exact_match_and_f1_follow_llm_jp_eval_and_jsquad():
    """手で求めた値と合う。"""
    for place, ours in ((3, SEVEN.llm_jp_eval), (4, SEVEN.jsquad)):
        assert [ours(*edge[:2]) for edge in EDGES] == [same((edge[2], edge[place])) for edge in EDGES]
    assert SEVEN.llm_jp_eval("６９０円\n\nです", "690円")[0] == 1 == SEVEN.jsquad("Epoca です。", "EPOCA  です")[0]


def test_bleu_and_chrf_are_those_of_sacrebleu_and_rouge_that_of_rouge_score():
    mecab, letters, found = BLEU(tokenize="ja-mecab"), CHRF(), SEVEN.similar(ANSWERS, REFERENCES)
    for key, score, ours in (("BLEU", mecab, SEVEN.bleu), ("chrF", letters, SEVEN.chrf)):
        assert 0 < found[key] < 100 and found[key] == same(score.corpus_score(ANSWERS, [REFERENCES]).score)
        assert ours(WRONG, REFERENCE) == same(score.corpus_score([WRONG], [[REFERENCE]]).score)
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=SEVEN.by_word)
    scores = [scorer.score(gold, said)["rougeL"].fmeasure for said, gold in zip(ANSWERS, REFERENCES, strict=True)]
    assert list(map(SEVEN.rouge_l, ANSWERS, REFERENCES)) == same(scores) and found["ROUGE-L"] == same(fmean(scores))
    shares = [SEVEN.llm_jp_eval(*pair)[1] for pair in zip(ANSWERS, REFERENCES, strict=True)]
    assert found["文字の F1"] == same(fmean(shares))


def test_the_defaults_made_for_english_see_nothing_in_japanese():
    text = "送料は無料でございます。"
    assert SEVEN.rouge_l(text, text, None) == 0 and SEVEN.rouge_l(text, text) == 1
    assert SEVEN.bleu(text, text, "13a") == 0 and SEVEN.bleu(text, text) == same(100)
    assert SEVEN.rouge_l(WRONG, SHORT, None) == 0.5  # 残るのは数字だけ


def test_a_wrong_year_scores_higher_than_a_right_answer_in_all_but_the_facts():
    found = {said: SEVEN.similar([said], [REFERENCE]) for said in (WRONG, PARAPHRASE, SHORT)}
    for said, row in found.items():
        row["JSQuAD"] = SEVEN.jsquad(said, REFERENCE)[1]
    for key in found[WRONG]:
        assert found[WRONG][key] > max(found[PARAPHRASE][key], found[SHORT][key]), key
    assert matches(PARAPHRASE, ["1943年5月"])
    # 公開されている表のとおり
    for said, published in ((SHORT, [1.0, 0.44, 16.7, 28, 0.48, 1]), (WRONG, [0.5, 0.92, 79.1, 70, 0.9, 0])):
        digits = {"ROUGE-L": 2, "BLEU": 1, "chrF": 0, "JSQuAD": 2}
        rounded = [round(found[said][key], places) for key, places in digits.items()]
        assert [round(SEVEN.rouge_l(said, REFERENCE, None), 2), *rounded, matches(said, ["1943年5月"])] == published


def test_appearance_counts_letters():
    distinct, japanese_share = SEVEN.distinct, SEVEN.japanese_share
    assert distinct("ああいあ") == 0.5 and distinct("ああいあ", 2) == 1 and distinct("") == 0
    assert distinct("ははは", 2) == 0.5
    assert japanese_share("1943年、ab。") == same(1 / 3) and japanese_share("ﾃｽﾄー々") == 1
    assert japanese_share("123!？") == 0 == japanese_share("")
    looks = from_notebook("07_evaluation", "looks", distinct=distinct, japanese_share=japanese_share).looks
    assert list(looks(["ああ", "い a"]).values()) == [2.5, 0.75, 1.0, 0.75]


OFFLINE = """import json, socket, sys
socket.socket.connect = socket.getaddrinfo = None  # つながろうとすれば、そこで止まる
import evaluate
metric, (answers, figures) = evaluate.load("lib/score/metrics/fact_match.py"), json.load(sys.stdin)
json.dump([metric.compute(predictions=answers, references=figures), metric.description], sys.stdout)
"""


def test_the_metric_loads_from_our_folder_without_a_network_and_says_what_it_does_not_see(tmp_path):
    answers = [WRONG, PARAPHRASE, SHORT, REFERENCE]
    cut_off = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = python("-c", OFFLINE, given=json.dumps([answers, [["1943年5月"]] * 4]), **cut_off)
    assert done.returncode == 0, done.stderr
    found, said = json.loads(done.stdout)
    assert found == {"fact_match": 0.75, "made_up": 0.25} and said.endswith("見えない。")
