"""ふつうの FAQ の答えを型から作る: どれも自分自身には正答で、数値を一つでも替えると誤答になる。"""

import tomllib
from pathlib import Path
from random import Random

import pytest

from lib.data.facts import Example
from lib.score.answers import is_correct, makes_up_figure
from lib.text.quantities import key_figures

KANJI = "〇一二三四五六七八九"
KINDS = tomllib.loads(Path(__file__).with_name("kinds.toml").read_text(encoding="utf-8"))
MONTHS, WORDS = (KINDS[name].split() for name in ("months", "words"))


def spelled(kind, n, r):
    """n 番目の値の、いくつかの書き方（どれも同じ値）。n が違えば、値も違う。"""
    hour, minute, day, month = 1 + n % 11, 5 * (n // 11 % 12), 1 + n % 28, 1 + n // 28 % 12
    price = 120 + 37 * n
    forms = {
        "時刻": [
            f"午後{hour}時{minute}分",
            f"{hour + 12}:{minute:02}",
            f"PM{hour}:{minute:02}",
            f"{hour + 12}時{minute}分",
        ],
        "夜": [f"夜{6 + n % 6}時", f"午後{6 + n % 6}時", f"{18 + n % 6}:00"],
        "日付": [f"{month}月{day}日", f"{month}/{day}", f"{month:02}月{day:02}日"],
        "和暦": [f"令和{1 + n % 20}年", f"{2019 + n % 20}年", f"R{1 + n % 20}年"],
        "価格": [
            f"{price:,}円",
            f"{price}円",
            f"￥{price:,}",
            f"{price:,}円".translate(str.maketrans("0123456789,", "０１２３４５６７８９，")),
        ],
        "電話": [f"03-{1000 + n}-5678", f"03‐{1000 + n}‐5678", f"03({1000 + n})5678"],
        "番地": [f"{1 + n % 9}丁目{2 + n % 7}番{3 + n}号"],
        "期間": [f"{n + 2}日", f"{n + 2}日間"],
        "範囲": [f"{n + 2}〜{n + 4}日", f"{n + 2}-{n + 4}日", f"{n + 2}–{n + 4}日", f"{n + 2}日から{n + 4}日"],
        "およそ": [f"{KANJI[1 + n % 8]}、{KANJI[2 + n % 8]}人", f"{1 + n % 8}〜{2 + n % 8}人"],
        "割合": [f"{n + 1}%", f"{n + 1}パーセント", f"{n + 1}％"],
        "広さ": [f"{n + 10}㎡", f"{n + 10}平方メートル"],
        "温度": [f"マイナス{n + 1}度", f"-{n + 1}℃"],
        "年半": [f"{n + 1}年半", f"{n + 1}年6か月"],
        "型番": [f"MX-{100 + n}B"],
        "知らない単位": [f"{n + 2}錠", f"{n + 2} 錠"],
        "time": [f"{hour}:{minute:02} p.m.", f"{hour}:{minute:02}PM", f"{hour + 12}:{minute:02}"],
        "date": [f"{MONTHS[month - 1]} {day}", f"{day} {MONTHS[month - 1]}", f"{MONTHS[month - 1][:3]}. {day}th"],
        "price": [f"${price:,}.50", f"${price}.50", f"{price:,}.50 dollars"],
        "phone": [f"555-{1000 + n}"],
        "address": [f"{n + 11} Baker Street"],
        "days": [f"{2 + n % 11} days", f"{WORDS[2 + n % 11]} days"],
        "range": [
            f"{2 + n % 9} to {3 + n % 9} weeks",
            f"{2 + n % 9}-{3 + n % 9} weeks",
            f"{WORDS[2 + n % 9]} to {WORDS[3 + n % 9]} weeks",
        ],
        "hours": [f"{1 + n % 8}:00 to {2 + n % 8} p.m.", f"from {1 + n % 8} p.m. to {2 + n % 8} p.m."],
        "percent": [f"{n}.8%", f"{n}.8 percent", f"{n}.8 per cent"],
        "ordinal": [f"the {n + 4}th"],
        "half": [f"{1 + n % 9} and a half hours", f"{1 + n % 9}.5 hours", f"{60 * (1 + n % 9) + 30} minutes"],
    }  # 番目の値ごとに、書き方の一つを使う
    return r.sample(forms[kind], len(forms[kind]))


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
