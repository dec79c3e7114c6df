"""ふつうの FAQ の答えを型から作る: どれも自分自身には正答で、数値を一つでも替えると誤答になる。"""

import tomllib
from pathlib import Path
from random import Random

import pytest

from lib.data.facts import Example
from lib.score.answers import is_correct, makes_up_figure
from lib.text.quantities import key_figures

KANJI = "〇一二三四五六七八九"
WIDE = str.maketrans("0123456789,", "０１２３４５６７８９，")
TABLES = (Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8") for name in ("kinds", "spelled"))
KINDS, SPELLED = map(tomllib.loads, TABLES)
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


def test_there_are_enough():
    assert len({answer for answer, _, _ in MADE}) > 300


@pytest.mark.parametrize(("answer", "other", "changed"), MADE)
def test_an_answer_is_right_against_itself_and_wrong_after_one_figure_is_changed(answer, other, changed):
    example = Example("own", "as_is", "問い", answer, key_figures(answer))
    assert is_correct(example, answer) and not makes_up_figure(example, answer), example.figures
    assert is_correct(example, other), (example.figures, other)
    for wrong in changed:
        assert not is_correct(example, wrong), (example.figures, wrong)
