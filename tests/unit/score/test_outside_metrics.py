"""外から届いた誤りの種類 K23・K24: 答えが一つも無くても数を返し、二つめの辞書があっても正しい辞書を使う。"""

import math
import sys
from statistics import fmean

import evaluate
from conftest import from_notebook, one_sentence, python

from lib.files import REPOSITORY
from lib.score.answers import wilson
from lib.text import words


def test_a_metric_of_no_answers_is_nan_under_the_same_names():
    metric = evaluate.load(str(REPOSITORY / "lib/score/metrics/fact_match.py"))
    similar = from_notebook("07_evaluation", "rouge_l", "by_word", "llm_jp_eval", "similar", fmean=fmean).similar
    for full, empty in (
        (metric.compute(predictions=["690円"], references=[["690円"]]), metric.compute(predictions=[], references=[])),
        (similar(["690円"], ["690円"]), similar([], [])),
    ):
        assert full.keys() == empty.keys() and all(map(math.isnan, empty.values()))
        assert not any(map(math.isnan, full.values()))
    assert math.isnan(wilson(0, 0).value) and set(from_notebook("07_evaluation", "shares").shares([]).values()) == {0}


def test_a_dictionary_without_its_data_does_not_hide_the_right_one(tmp_path):
    package = tmp_path / "unidic" / "__init__.py"
    package.parent.mkdir()
    package.write_text("DICDIR = '/nowhere'\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom lib.text.words import words\nimport unidic\n"
    done = python("-c", code + "print(*words('送料は690円です。'), unidic.DICDIR)")
    assert done.stdout.split() == ["送料", "は", "690", "円", "です", "/nowhere"]


def test_a_missing_dictionary_is_named(monkeypatch):
    words._tagger.cache_clear()
    monkeypatch.setitem(sys.modules, "unidic_lite", None)
    with one_sentence("unidic-lite が見つかりません", "pip install unidic-lite"):
        words.morphemes("送料")
    words._tagger.cache_clear()
