"""数値の読み取りと照合の約束。"""

from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.facts import DATA, read_jsonl
from lib.text import quantities as reader
from lib.text.quantities import Quantity, key_figures, matches, quantities, read_number, states, unexpected
from lib.text.words import nfkc

KANJI, WIDE = "〇一二三四五六七八九", str.maketrans("0123456789,", "０１２３４５６７８９，")


def groups(number):
    """大きい順の（4 桁ごとの数, その位）。"""
    for large, size in (("兆", 10**12), ("億", 10**8), ("万", 10**4), ("", 1)):
        group, number = divmod(number, size)
        if group:
            yield group, large


def in_kanji(number):
    """千九百四十三 の形（テストの側で独立に書いた、読み取りの逆）。"""
    text = ""
    for group, large in groups(number):
        for small, unit in (("千", 1000), ("百", 100), ("十", 10), ("", 1)):
            digit, group = divmod(group, unit)
            text += ("" if digit == 1 and small else KANJI[digit]) + small if digit else ""
        text += large
    return text or "〇"


def by_position(number):
    """二〇二四 の形。"""
    return "".join(KANJI[int(digit)] for digit in str(number))


def spellings(number):
    mixed = "".join(f"{group:,}{large}" for group, large in groups(number)) or "0"  # 974億1,500万 の形
    forms = [str(number), f"{number:,}", mixed]
    either = number < 100 and number % 10 == number // 10 + 1 and number > 9  # 二三円 は「2、3 円」とも読める
    position = [] if either else [by_position(number)]
    return [*forms, *(form.translate(WIDE) for form in forms), in_kanji(number), *position]


NUMBERS = st.one_of(st.integers(0, 120), st.integers(0, 99_999), st.integers(0, 10**16 - 1))


@settings(max_examples=300)
@given(NUMBERS, NUMBERS)
def test_every_spelling_of_a_number_matches_itself_and_no_other(number, other):
    for said in spellings(number):
        assert quantities(f"送料は{said}円です。") == [Quantity("円", (Fraction(number),))], said
        assert matches(f"送料は{said}円です。", [f"{number}円"])
        assert states(f"送料は{said}円です。", f"{other}円") is (number == other), (said, other)
    for said in (number, in_kanji(number)):
        days = f"お届けは{said}日です"
        assert states(days, f"{number}日") and states(days, f"{other}日") is (number == other), (days, other)


LETTERS = st.sampled_from("0123456789,.:/-–〜~¥$%時分年月日午後円割の半元令和R百千万億〇一二三、①½㎡ 本 tosix")
LETTERS |= st.characters()


@settings(max_examples=600)
@given(st.text(LETTERS))
def test_no_text_breaks_the_reader_and_its_figures_are_stated_by_it(text):
    assert all(figure.text for figure in quantities(text)) and not unexpected(text, [text])
    figures = key_figures(text)
    assert matches(text, figures, text) or figures == (text.strip().rstrip("。．. "),)
    assert all(0 <= start < end <= len(text) for _, start, end in reader.located(text))


@settings(max_examples=200)
@given(st.dates(date(1000, 1, 1)), st.dates(date(1000, 1, 1)))
def test_a_date_matches_itself_in_every_spelling_and_no_other_date(day, other):
    forms = [f"{day.year}年{day.month}月{day.day}日", f"{day.year:04}/{day.month}/{day.day}", day.isoformat()]
    for form in (*forms, f"{by_position(day.year)}年{in_kanji(day.month)}月{in_kanji(day.day)}日"):
        assert states(f"{form}に開業。", forms[0]), form
        assert states(f"{form}に開業。", f"{other.year}年{other.month}月{other.day}日") is (day == other), form


SIGNS = {  # ≡ は、ほかの数値を言わないことまで。→ は、読める数値のすべて。+ は、余分な数値がある答え
    **{"=": lambda said, figures: states(said, *figures), "≡": matches, "+": unexpected},
    "→": lambda said, figures: [figure.text for figure in quantities(said)] == figures,
}
OPPOSITE = {"≠": "=", "≢": "≡", "−": "+"}


@pytest.mark.parametrize("row", Path(__file__).with_name("figures.tsv").read_text(encoding="utf-8").splitlines())
def test_the_same_figure_in_other_words_matches_and_a_different_one_never(row):
    answer, sign, expected = row.split("\t")
    assert bool(SIGNS[OPPOSITE.get(sign, sign)](answer, list(filter(None, expected.split("|"))))) is (sign in SIGNS)


def test_numbers_that_cannot_be_read_are_left_alone():
    assert quantities("9" * 10_000 + "円") == quantities("九" * 10_000 + "円") == []
    assert quantities("平成40年") == [Quantity("か月", (Fraction(480),))]  # 平成は 31 年まで。西暦にはしない
    assert read_number("百千") is read_number("万") is read_number("二三") is None


def test_every_reference_answer_matches_its_own_figures_and_no_other_of_the_shop():
    facts = [row["ja"] for row in read_jsonl(DATA / "support" / "facts.jsonl")]
    rows = facts + read_jsonl(DATA / "sanyo" / "qa_core.jsonl") + read_jsonl(DATA / "sanyo" / "qa_extended.jsonl")
    missed = [row["answer"] for row in rows if not all(states(row["answer"], figure) for figure in row["figures"])]
    assert len(rows) > 500 and not missed
    for fact in facts:
        others = [other["answer"] for other in facts if other["figures"] != fact["figures"]]
        assert not any(states(answer, figure) for figure in fact["figures"] for answer in others), fact["figures"]


def test_numbers_in_kanji_are_read_and_written_in_figures():
    assert read_number("千九百四十三") == 1943 and read_number("97,415百万") == 97_415_000_000
    assert reader.readable("一億円と一般、1,450円") == "100000000円と一般、1450円"
    assert nfkc("７〜８割−１") == "7~8割-1"
