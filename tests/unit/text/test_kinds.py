"""外から届いた誤りの種類 K1〜K9: 正解は自分の採点に通り、ほかの数値は通らない。入力は kinds.toml。

型から作ったふつうの FAQ の答えも、どれも自分自身には正答で、数値を一つでも替えると誤答になる。
"""

import csv
from random import Random
from unittest.mock import Mock

import pytest
import torch
from conftest import from_notebook, preference_rules, table_beside

from lib.data.facts import Example
from lib.data.own import check_file, own_split, read_own
from lib.model.generate import answer_prompts, render
from lib.model.load import load_tokenizer
from lib.profiles import get_profile
from lib.score.answers import is_correct, makes_up_figure
from lib.text import quantities
from lib.text.quantities import key_figures, matches, split_items, states

KINDS, SPELLED = table_beside(__file__, "kinds"), table_beside(__file__, "spelled")
KANJI, WIDE = "〇一二三四五六七八九", str.maketrans("0123456789,", "０１２３４５６７８９，")
OWN = KINDS["own_cases"] + KINDS["own"]


def table(folder, rows):
    path = folder / "q.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["質問", "回答", "キーワード"], *rows])
    return path


@pytest.fixture(scope="module")
def own_rows(tmp_path_factory):
    """持ち込みの表として読んだ OWN の各行と、その検査。"""
    path = table(tmp_path_factory.mktemp("own"), [[f"問い{n}", gold, ""] for n, (gold, _, _) in enumerate(OWN)])
    return read_own(path), check_file(path)


@pytest.mark.parametrize("number", range(len(OWN)), ids=[gold for gold, _, _ in OWN])
def test_a_reference_answer_of_own_data_passes_its_own_test(own_rows, number):
    (_, right, wrong), row = OWN[number], own_rows[0][number]
    example = Example("own", "as_is", row.question, row.answer, row.figures)
    assert is_correct(example, row.answer) and not makes_up_figure(example, row.answer), row.figures
    assert [said for said in right if not is_correct(example, said)] == [], row.figures
    assert [said for said in wrong if is_correct(example, said)] == [], row.figures


def test_the_check_says_nothing_about_them_and_names_a_keyword_that_is_not_in_the_answer(own_rows, tmp_path):
    assert not own_rows[1].count("error") and "keyword" not in {p.code for p in own_rows[1].problems}
    rows = [["料金は", "3,980円です。", "3,890円"], ["期間は", "二週間です。", "14日"]]
    rows += [["色は", "赤です。3個まで。", "赤"]]
    (problem,) = [p for p in check_file(table(tmp_path, rows)).problems if p.level == "warning"]
    assert (problem.code, problem.line) == ("keyword", 2) and "3,890円" in problem.message
    for row in read_own(tmp_path / "q.csv")[1:]:
        assert is_correct(Example("own", "as_is", row.question, row.answer, row.figures), row.answer)


@pytest.mark.parametrize(("answer", "expected", "right"), KINDS["match_cases"] + KINDS["match"])
def test_an_answer_is_right_when_its_figures_are(answer, expected, right):
    assert matches(answer, expected.split("|")) is right, quantities.quantities(answer, codes=True)


@pytest.mark.parametrize(("answer", "cell", "words"), KINDS["keyword"])
def test_keywords_are_split_only_between_items(tmp_path, answer, cell, words):
    assert split_items(cell) == words
    row = read_own(table(tmp_path, [["問い", answer, cell]]))[0]
    assert list(row.figures) == words and all(states(row.answer, word) for word in words)


@pytest.mark.parametrize("rows", KINDS["pairs"])
def test_a_swapped_figure_differs_from_the_original(tmp_path, rows):
    rules, split = preference_rules(), own_split(table(tmp_path, rows), get_profile("embedded"))
    train, test = rules.make_pairs(split, 40)
    assert train and all(row["chosen"] != row["rejected"] for row in train + test)
    for example in split.train:
        if wrong := rules.swap_figure(example, [e.figures[0] for e in split.train]):
            assert wrong != example.answer and not is_correct(example, wrong)
    assert any(row["reason"] == "数字が違う" for row in train) or "①" in rows[0][1]


def test_the_analysis_is_called_only_where_a_kanji_numeral_stands_before_a_unit(monkeypatch):
    asked = []
    monkeypatch.setattr(quantities, "parts_of_speech", lambda text: asked.append(text) or [])
    for text in ("一般の窓口は3階、料金は5万円です。", "Two days, $5.", "百貨店の三越です。", "十五日です。"):
        quantities.quantities(f"{text}（{text}）")
    assert len(set(asked)) == 1 and "十五日" in asked[0]


THOUGHTS = ["<think>\n\n</think>\n\n2本まで。", "<think>3本かな</think>2本まで。", "2本まで。", "<think>3本かな"]
THOUGHTS += ["3本かな\n</think>\n\n2本まで。"]  # 開く印は、テンプレートが書いてある


@pytest.mark.parametrize("said", THOUGHTS)
def test_thinking_is_neither_shown_nor_scored(said):
    shown = "2本まで。" if "2本" in said else ""
    model = Mock(return_value={"input_ids": [[1, 2]]}, device="cpu", pad_token_id=0, eos_token_id=0)  # トークナイザも
    model.generate = lambda input_ids, **_: torch.cat([input_ids, input_ids], 1)
    model.batch_decode = lambda *_, **__: [said]
    answers = answer_prompts(model, model, ["何本まで"], get_profile("smoke"))
    assert answers == [shown]
    if shown:
        assert is_correct(Example("own", "as_is", "何本まで", shown, key_figures(shown)), answers[0])
        assert from_notebook("07_evaluation", "llm_jp_eval").llm_jp_eval(answers[0], shown) == (1.0, 1.0)


def test_a_template_that_can_think_is_asked_not_to(model_folder):
    tokenizer = load_tokenizer(model_folder)
    tokenizer.chat_template = "{{ messages[0].content }}|{% if enable_thinking is false %}<think></think>{% endif %}"
    assert render(tokenizer, [{"role": "user", "content": "何本"}]) == "何本|<think></think>"


MONTHS, WORDS = (KINDS[name].split() for name in ("months", "words"))


def spelled(kind, n, r):
    """n 番目の値の、いくつかの書き方（どれも同じ値）。n が違えば、値も違う。書き方の型は spelled.toml。"""
    month, price = 1 + n // 28 % 12, 120 + 37 * n
    names = {"minute": 5 * (n // 11 % 12), "day": 1 + n % 28, "month": month, "month_name": MONTHS[month - 1]}
    names |= {"price": price, "wide_price": f"{price:,}".translate(WIDE), "half_minutes": 60 * (1 + n % 9) + 30}
    names |= {"n": range(n, n + 9999), **{f"m{size}": range(n % size, 9999) for size in (6, 7, 8, 9, 11, 20)}}
    names |= {"kanji8": KANJI[n % 8 :], "word9": WORDS[n % 9 :], "word11": WORDS[n % 11 :]}
    return [form.format(**names) for form in r.sample(SPELLED[kind], len(SPELLED[kind]))]


def answers():
    """(答え, ほかの書き方の答え, 数値を一つ替えた答えの列)"""
    r = Random(0)
    for template in KINDS["templates"]:
        kinds = [part.split("}")[0] for part in template.split("{")[1:]]
        for _ in range(12):
            numbers = {kind: r.randrange(40) for kind in kinds}
            first, other = ({k: spelled(k, n, r)[0] for k, n in numbers.items()} for _ in range(2))
            changed = [first | {k: spelled(k, n + 1, r)[0]} for k, n in numbers.items()]
            yield template.format(**first), template.format(**other), [template.format(**one) for one in changed]


MADE = list(answers())
assert len({answer for answer, _, _ in MADE}) > 300


@pytest.mark.parametrize(("answer", "other", "changed"), MADE)
def test_an_answer_is_right_against_itself_and_wrong_after_one_figure_is_changed(answer, other, changed):
    example = Example("own", "as_is", "問い", answer, key_figures(answer))
    assert is_correct(example, answer) and not makes_up_figure(example, answer), example.figures
    assert is_correct(example, other), (example.figures, other)
    for wrong in changed:
        assert not is_correct(example, wrong), (example.figures, wrong)
