"""文字と語の似かたの指標: 元の実装と同じ値か。年を間違えた答えを、正しい言い換えより高く採点するか。"""

import json
import os
import subprocess
import sys
import unicodedata

import pytest
from fugashi import Tagger
from rapidfuzz import fuzz
from rouge_score import rouge_scorer, tokenizers
from sacrebleu.metrics import BLEU, CHRF

from lib.data.facts import DATA, read_jsonl
from lib.errors import WorkshopError
from lib.files import REPOSITORY
from lib.score import japanese as politeness
from lib.score import surface
from lib.score.evaluating import load_metric
from lib.text import quantities as matching

ROWS = [row["ja"] for row in read_jsonl(DATA / "support" / "preferences.jsonl")][:60]
EDGES = [
    ("", ""),
    ("", "690円です。"),
    ("690円です。", ""),
    ("６９０円です。\n\n余計な話。", "690円です"),
    ("ＥＰＯＣＡ  です。。", "epoca です"),
    ("Ｂ　Ａ", "A B"),
    ("690 円 です", "690円です。"),
    ("7〜8割です。", "7~8割です。"),
    ("690円です。", "690円です。"),
]
ANSWERS = [row["rejected"] for row in ROWS] + [answer for answer, _ in EDGES]
REFERENCES = [row["chosen"] for row in ROWS] + [reference for _, reference in EDGES]

REFERENCE = "三陽商会は1943年5月に設立されました。"
PARAPHRASE = "同社の創立は昭和18年、つまり1943年の5月です。"
SHORT = "1943年5月です。"
WRONG = "三陽商会は1899年5月に設立されました。"


class Words(tokenizers.Tokenizer):
    """rouge_score の口に、この検査のために書いた分かち書き。"""

    def __init__(self):
        self.tagger = Tagger()

    def tokenize(self, text):
        found = self.tagger(unicodedata.normalize("NFKC", text).replace("〜", "~"))
        return [word.surface for word in found if word.feature.pos1 not in ("補助記号", "空白")]


def same(value):
    return pytest.approx(value, abs=1e-6)


def test_exact_match_and_char_f1_are_those_of_llm_jp_eval():
    def prepared(text):
        return unicodedata.normalize("NFKC", text.strip().split("\n\n")[0]).strip()

    for answer, reference in zip(ANSWERS, REFERENCES, strict=True):
        said, gold = prepared(answer), prepared(reference)
        assert surface.exact_match(answer, reference) == (said == gold)
        assert surface.char_f1(answer, reference) == same(fuzz.token_sort_ratio(said, gold) / 100)
    assert surface.exact_match("６９０円\n\nです", "690円") == 1 and surface.char_f1("B A", "A B") == 1


def test_exact_match_and_f1_are_those_of_jsquad():
    def f1(answer, reference):
        said, gold = (" ".join(text.lower().rstrip("。").split()) for text in (answer, reference))
        overlap = sum(min(said.count(letter), gold.count(letter)) for letter in set(said))
        if not said or not gold:
            return said == gold, float(said == gold)
        if not overlap:
            return said == gold, 0.0
        precision, recall = overlap / len(said), overlap / len(gold)
        return said == gold, 2 * precision * recall / (precision + recall)

    for answer, reference in zip(ANSWERS, REFERENCES, strict=True):
        exact, value = f1(answer, reference)
        assert surface.jsquad_exact_match(answer, reference) == exact, answer
        assert surface.jsquad_f1(answer, reference) == same(value), answer
    assert surface.jsquad_exact_match("Epoca です。", "EPOCA  です") == 1 > surface.jsquad_exact_match("６", "6")


def test_bleu_is_that_of_sacrebleu():
    mecab = BLEU(tokenize="ja-mecab").corpus_score(ANSWERS, [REFERENCES]).score
    assert 0 < mecab < 100 and surface.bleu(ANSWERS, REFERENCES, "ja-mecab") == same(mecab)
    split = Words().tokenize
    said, gold = ([" ".join(split(text)) for text in texts] for texts in (ANSWERS, REFERENCES))
    fugashi = BLEU(tokenize="none", force=True).corpus_score(said, [gold]).score
    assert fugashi != same(mecab) and surface.bleu(ANSWERS, REFERENCES) == same(fugashi)


def test_chrf_is_that_of_sacrebleu_without_words():
    reference = CHRF(char_order=6, word_order=0, beta=2).corpus_score(ANSWERS, [REFERENCES]).score
    assert 0 < reference < 100 and surface.chrf(ANSWERS, REFERENCES) == same(reference)


def test_rouge_is_that_of_rouge_score():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())
    scores = [scorer.score(gold, said) for said, gold in zip(ANSWERS, REFERENCES, strict=True)]
    ours = surface.rouge(ANSWERS, REFERENCES)
    for kind, value in ours.items():
        assert value == same(sum(score[kind].fmeasure for score in scores) / len(scores)), kind
    assert 0 < ours["rouge2"] < ours["rouge1"] < 1


def test_the_defaults_made_for_english_see_nothing_in_japanese():
    text = ["送料は無料でございます。"]
    assert surface.rouge(text, text, japanese=False)["rougeL"] == 0 and surface.rouge(text, text)["rougeL"] == 1
    assert surface.bleu(text, text, "13a") == 0 and surface.bleu(text, text) == same(100)
    assert surface.rouge([WRONG], [SHORT], japanese=False)["rougeL"] == 0.5  # 残るのは数字だけ


def scores(answer):
    one, other = [answer], [REFERENCE]
    return {
        "bleu": surface.bleu(one, other),
        "bleu ja-mecab": surface.bleu(one, other, "ja-mecab"),
        "rouge": surface.rouge(one, other)["rougeL"],
        "chrf": surface.chrf(one, other),
        "char_f1": surface.char_f1(answer, REFERENCE),
        "jsquad_f1": surface.jsquad_f1(answer, REFERENCE),
    }


@pytest.mark.parametrize("right", [PARAPHRASE, SHORT])
def test_a_wrong_year_scores_higher_than_a_right_answer_in_all_but_the_facts(right):
    wrong, good = scores(WRONG), scores(right)
    assert all(wrong[name] > good[name] for name in wrong), (wrong, good)
    assert not matching.matches(WRONG, ["1943年5月"]) and matching.matches(right, ["1943年5月"])


@pytest.mark.parametrize(
    ("answer", "default_rouge", "rouge", "bleu", "chrf", "f1", "facts"),
    [(SHORT, 1.0, 0.44, 16.7, 28, 0.48, 1), (WRONG, 0.5, 0.92, 79.1, 70, 0.9, 0)],
)
def test_the_published_table_is_reproduced(answer, default_rouge, rouge, bleu, chrf, f1, facts):
    found = scores(answer)
    assert round(surface.rouge([answer], [REFERENCE], japanese=False)["rougeL"], 2) == default_rouge
    assert round(found["rouge"], 2) == rouge and round(found["bleu ja-mecab"], 1) == bleu
    assert round(found["chrf"]) == chrf and round(found["jsquad_f1"], 2) == f1
    assert matching.matches(answer, ["1943年5月"]) == facts


def test_appearance_counts_letters():
    assert surface.distinct("ああいあ") == 0.5 and surface.distinct("ああいあ", 2) == 1 and surface.distinct("") == 0
    assert surface.distinct("ははは", 2) == 0.5
    assert surface.japanese_share("1943年、ab。") == same(1 / 3) and surface.japanese_share("ﾃｽﾄー々") == 1
    assert surface.japanese_share("123!？") == 0 == surface.japanese_share("")

    class Bytes:
        def encode(self, text, add_special_tokens):
            assert add_special_tokens is False
            return list(text.encode())

    assert surface.appearance(["ああ", "い a"], Bytes()) == {
        "characters": 2.5,
        "distinct_1": 0.75,
        "distinct_2": 1.0,
        "japanese_share": 0.75,
        "tokens": 5.5,
    }
    assert "tokens" not in surface.appearance([""])


OFFLINE = """
import json, socket, sys

def refuse(*_):
    raise AssertionError("つながろうとしました")

socket.socket.connect = socket.getaddrinfo = refuse
from lib.score.evaluating import load_metric, metric_names

answers, references, figures = json.load(sys.stdin)
found = {}
for name in metric_names():
    metric = load_metric(name)
    gold = figures if name == "fact_match" else references
    found[name] = [metric.compute(predictions=answers, references=gold), metric.description]
json.dump(found, sys.stdout)
"""


def test_metrics_load_from_our_folder_without_a_network_and_agree(tmp_path):
    answers, references = [WRONG, PARAPHRASE, SHORT, REFERENCE], [REFERENCE] * 4
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        input=json.dumps([answers, references, [["1943年5月"]] * 4]),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    pairs = list(zip(answers, references, strict=True))

    def mean(metric):
        return sum(metric(said, gold) for said, gold in pairs) / len(pairs)

    expected = {
        "bleu_ja": {
            "bleu_fugashi": surface.bleu(answers, references),
            "bleu_ja_mecab": surface.bleu(answers, references, "ja-mecab"),
        },
        "char_f1": {"char_f1": mean(surface.char_f1), "jsquad_f1": mean(surface.jsquad_f1)},
        "chrf_ja": {"chrf": surface.chrf(answers, references)},
        "exact_match_ja": {"exact_match": 0.25, "jsquad_exact_match": 0.25},
        "fact_match": {"fact_match": 0.75, "made_up": 0.25},
        "politeness": politeness.shares(answers),
        "rouge_ja": surface.rouge(answers, references),
    }
    assert {name: value for name, (value, _) in found.items()} == {n: pytest.approx(v) for n, v in expected.items()}
    blind = [*surface.BLIND_SPOTS.values(), matching.BLIND_SPOT, politeness.BLIND_SPOT]
    assert all(any(text.endswith(spot) for spot in blind) for _, text in found.values())


def test_an_unknown_metric_ends_in_one_sentence():
    with pytest.raises(WorkshopError, match="採点器 bleu はありません.*bleu_ja"):
        load_metric("bleu")
