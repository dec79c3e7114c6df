"""外から届いた誤りの種類 K23・K24: 答えが無くても数を返し、正しい辞書を使う。lm-eval が、手元の課題を読む。"""

import math
import sys
from importlib.util import find_spec
from statistics import fmean

import evaluate
import pytest
from conftest import from_notebook, one_sentence, python

from lib.data.facts import DATA, general_questions, read_jsonl
from lib.files import REPOSITORY, read_json
from lib.score.answers import general_correct, wilson
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


TASKS = ("workshop_general_en", "workshop_general_ja")


def test_the_real_harness_reads_our_tasks_without_a_network(tmp_path, tiny_llama):
    if find_spec("lm_eval") is None:
        pytest.skip("lm_eval が入っていません")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = ("--model", "hf", "--model_args", f"pretrained={tiny_llama}", "--device", "cpu", "--limit", "2")
    tasks = ("--tasks", *TASKS, "--include_path", "data/benchmark", "--output_path", str(tmp_path))
    done = python("-m", "lm_eval", "run", *found, *tasks, **offline)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/results_*.json")
    results = read_json(path)["results"]
    assert set(results) == set(TASKS) and all(0 <= row["acc,none"] <= 1 for row in results.values())


def test_the_recorded_benchmark_is_that_of_the_questions_in_the_repository():
    asked = {task: read_jsonl(DATA / "benchmark" / f"{task.removeprefix('workshop_')}.jsonl") for task in TASKS}
    general = {e.fact_id: e for level in ("easy", "ordinary") for e in general_questions("ja", level)}
    for row in asked["workshop_general_ja"]:
        (right,) = [n for n, said in enumerate(row["choices"]) if general_correct(general[row["id"]].figures, said)]
        assert (right, row["question"]) == (row["answer"], general[row["id"]].question) and len(
            set(row["choices"])
        ) == 4
    for marks in read_json(DATA / "recorded" / "benchmark.json")["right"].values():
        assert {task: len(found) for task, found in marks.items()} == {task: len(rows) for task, rows in asked.items()}
