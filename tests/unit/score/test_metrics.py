"""評価指標の約束。敬語の判定の適合率と再現率、取り違えやすい文。"""

import math
import sys
from collections import Counter
from importlib.util import find_spec
from statistics import fmean

import evaluate
import pytest
from conftest import from_notebook, one_sentence, python

import lib.text.words
from lib.data.facts import DATA, Example, general_questions, read_jsonl
from lib.files import REPOSITORY, read_json
from lib.score.answers import general_correct, is_correct, is_refusal, makes_up_figure, wilson
from lib.score.exam import share
from lib.score.japanese import Style, style
from lib.text.words import morphemes, sentences, words

shares = from_notebook("07_evaluation", "shares").shares
FEE = Example("f", "polite", "送料は？", "送料は690円です。", ("690円",))


def test_made_up_figures_refusals_and_word_boundaries():
    assert is_correct(FEE, "６９０円") and not is_correct(FEE, "690円か580円です。")
    assert makes_up_figure(FEE, "580円です。") and not makes_up_figure(FEE, "690円です。")
    asked = Example("n", "unanswerable", "駐車場は？", "分かりかねます。", ())
    assert is_correct(asked, "申し訳ありませんが、分かりかねます。") and not is_correct(asked, "18台です。")
    assert not is_correct(asked, "分かりかねますが、18台ほどです。"), "数字を作れば、控えたことにならない"
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
    assert math.isnan(share([{"part": "near"}], "ordinary").value)  # 自分のデータには、無い部分がある


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


@pytest.mark.parametrize(("lang", "right", "found"), [("en", 102, (23, 25)), ("ja", 46, (11, 12))])
def test_the_rule_of_refusal_agrees_with_the_labels_it_never_saw(lang, right, found):
    rows = [row for row in read_jsonl(DATA / "politeness" / "refusals.jsonl") if row["lang"] == lang]
    held = [(row["refusal"], is_refusal(row["text"])) for row in rows if row["part"] == "test"]
    assert sum(a == b for a, b in held) >= right and not any(b and not a for a, b in held), "控えていない文を拾わない"
    assert sum(b for a, b in held if a) >= found[0] and sum(a for a, _ in held) == found[1]
    assert len({row["text"] for row in rows}) == len(rows)


@pytest.mark.parametrize("said", ["注文はマイページで確認できます。", "お答えできます。", "送料の情報があります。"])
def test_what_the_shop_can_do_is_no_refusal(said):
    assert not is_refusal(said) and is_refusal(said.replace("ます。", "ません。"))


manner_of = from_notebook("05_preference", "MANNER", "manner_of").manner_of
LABELLED = read_jsonl(DATA / "politeness" / "manner.jsonl")


@pytest.mark.parametrize(("lang", "binary", "three"), [("en", 72, 69), ("ja", 24, 23)])
def test_the_rule_of_manner_agrees_with_the_labels_it_never_saw(lang, binary, three):
    held = [row for row in LABELLED if row["lang"] == lang and row["part"] == "test"]
    pairs = [(row["manner"], manner_of(row["text"], lang)) for row in held]
    assert sum((a == "polite") == (b == "polite") for a, b in pairs) >= binary
    assert sum(a == b for a, b in pairs) >= three and len({row["text"] for row in LABELLED}) == len(LABELLED) == 218


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_of_the_written_answers_the_rude_ones_alone_are_not_polite_and_a_fact_is_neither(lang):
    for row in read_jsonl(DATA / "support" / "manner.jsonl"):
        found = {side: manner_of(text, lang) for side, text in row[lang].items() if side != "prompt"}
        assert found["chosen"] == found["vague"] == "polite" != found["rude"], row["id"]
    assert {manner_of(row[lang]["answer"], lang) for row in read_jsonl(DATA / "support" / "facts.jsonl")} == {"neutral"}


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


# 外から届いた誤りの種類 K23・K24: 答えが無くても数を返し、正しい辞書を使う。lm-eval が、手元の課題を読む。
def test_a_metric_of_no_answers_is_nan_under_the_same_names():
    metric = evaluate.load(str(REPOSITORY / "lib/score/metrics/fact_match.py"))
    similar = from_notebook("07_evaluation", "rouge_l", "by_word", "llm_jp_eval", "similar", fmean=fmean).similar
    for full, empty in (
        (metric.compute(predictions=["690円"], references=[["690円"]]), metric.compute(predictions=[], references=[])),
        (similar(["690円"], ["690円"]), similar([], [])),
    ):
        assert full.keys() == empty.keys() and all(map(math.isnan, empty.values()))
        assert not any(map(math.isnan, full.values()))
    assert math.isnan(wilson(0, 0).value) and set(shares([]).values()) == {0}


def test_a_dictionary_without_its_data_does_not_hide_the_right_one(tmp_path):
    package = tmp_path / "unidic" / "__init__.py"
    package.parent.mkdir()
    package.write_text("DICDIR = '/nowhere'\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom lib.text.words import words\nimport unidic\n"
    done = python("-c", code + "print(*words('送料は690円です。'), unidic.DICDIR)")
    assert done.stdout.split() == ["送料", "は", "690", "円", "です", "/nowhere"]


def test_a_missing_dictionary_is_named(monkeypatch):
    lib.text.words._tagger.cache_clear()
    monkeypatch.setitem(sys.modules, "unidic_lite", None)
    with one_sentence("unidic-lite が見つかりません", "pip install unidic-lite"):
        morphemes("送料")
    lib.text.words._tagger.cache_clear()


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
        assert (right, row["question"]) == (row["answer"], general[row["id"]].question)
        assert len(set(row["choices"])) == 4
    for marks in read_json(DATA / "recorded" / "benchmark.json")["right"].values():
        assert {task: len(found) for task, found in marks.items()} == {task: len(rows) for task, rows in asked.items()}
