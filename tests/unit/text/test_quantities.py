"""数値の読み取りと照合の約束。"""

from datetime import date
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.facts import DATA, read_jsonl
from lib.text.quantities import Quantity, matches, nfkc, quantities, read_number, states, to_arabic, unexpected

KANJI = "〇一二三四五六七八九"


def groups(number):
    """大きい順の（4 桁ごとの数, その位）。"""
    for large, size in (("兆", 10**12), ("億", 10**8), ("万", 10**4), ("", 1)):
        group, number = divmod(number, size)
        if group:
            yield group, large


def in_kanji(number: int) -> str:
    """千九百四十三 の形（テストの側で独立に書いた、読み取りの逆）。"""
    text = ""
    for group, large in groups(number):
        for small, unit in (("千", 1000), ("百", 100), ("十", 10), ("", 1)):
            digit, group = divmod(group, unit)
            if digit:
                text += ("" if digit == 1 and small else KANJI[digit]) + small
        text += large
    return text or "〇"


def by_position(number: int) -> str:
    """二〇二四 の形。"""
    return "".join(KANJI[int(digit)] for digit in str(number))


def in_mixed(number: int) -> str:
    """974億1,500万 の形。"""
    return "".join(f"{group:,}{large}" for group, large in groups(number)) or "0"


def full_width(text: str) -> str:
    return text.translate(str.maketrans("0123456789,", "０１２３４５６７８９，"))


def spellings(number: int) -> list[str]:
    forms = [str(number), full_width(str(number)), f"{number:,}", full_width(f"{number:,}")]
    forms += [in_mixed(number), full_width(in_mixed(number)), in_kanji(number)]
    digits = str(number)
    if len(digits) != 2 or int(digits[1]) != int(digits[0]) + 1:  # 二三円 は「2、3 円」とも読める
        forms.append(by_position(number))
    return forms


NUMBERS = st.one_of(st.integers(0, 120), st.integers(0, 99_999), st.integers(0, 10**16 - 1))


@settings(max_examples=300, deadline=None)
@given(NUMBERS, NUMBERS)
def test_every_spelling_of_a_number_matches_itself_and_no_other(number, other):
    for said in spellings(number):
        assert quantities(f"送料は{said}円です。") == [Quantity("円", (Fraction(number),))], said
        assert matches(f"送料は{said}円です。", [f"{number}円"])
        assert states(f"送料は{said}円です。", f"{other}円") is (number == other), (said, other)


@settings(max_examples=300, deadline=None)
@given(
    st.text(
        st.one_of(st.sampled_from("0123456789,.:/-〜~¥%時分年月日午後円割の半元令和R百千万億〇一二"), st.characters())
    )
)
def test_no_text_breaks_the_reader(text):
    assert all(figure.text for figure in quantities(text)) and not unexpected(text, [text])


def test_endless_digits_are_not_a_figure():
    assert quantities("9" * 10_000 + "円") == quantities("九" * 10_000 + "円") == []


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400))
def test_days_match_only_the_same_days(number, other):
    assert states(f"お届けは{number}日です", f"{other}日") is (number == other)
    assert states(f"お届けは{in_kanji(number)}日です", f"{other}日") is (number == other)


@settings(max_examples=200, deadline=None)
@given(st.dates(date(1000, 1, 1)), st.dates(date(1000, 1, 1)))
def test_a_date_matches_itself_in_every_spelling_and_no_other_date(day, other):
    forms = [
        f"{day.year}年{day.month}月{day.day}日",
        f"{day.year:04}/{day.month}/{day.day}",
        f"{day.year:04}-{day.month:02}-{day.day:02}",
        f"{by_position(day.year)}年{in_kanji(day.month)}月{in_kanji(day.day)}日",
    ]
    for form in forms:
        assert states(f"{form}に開業。", forms[0]), form
        assert states(f"{form}に開業。", f"{other.year}年{other.month}月{other.day}日") is (day == other), form


@pytest.mark.parametrize(
    ("era", "count", "year"),
    [
        *(("明治", 1, 1868), ("明治", 45, 1912), ("大正", 1, 1912), ("大正", 15, 1926), ("昭和", 1, 1926)),
        *(("昭和", 18, 1943), ("昭和", 64, 1989), ("平成", 1, 1989), ("平成", 31, 2019), ("令和", 1, 2019)),
        ("令和", 6, 2024),
    ],
)
def test_japanese_eras(era, count, year):
    written = [f"{era}{count}年", f"{era}{in_kanji(count)}年", full_width(f"{era}{count}年")]
    written += [f"{era}元年"] if count == 1 else []
    for text in written:
        assert states(f"{text}です。", f"{year}年") and not states(f"{text}です。", f"{year + 1}年"), text
        assert states(f"{text}五月です。", f"{year}年5月") and not states(f"{text}五月です。", f"{year}年6月"), text
    assert quantities("平成40年") == [Quantity("か月", (Fraction(480),))]  # 平成は 31 年まで。西暦にはしない


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *(("R6.4.1です", "2024年4月1日"), ("H5年です", "1993年"), ("S18年5月", "1943年5月")),
        *(("７／３１です", "7月31日"), ("七月三十一日（水）です", "7月31日"), ("1943年の5月11日です", "1943年5月")),
        *(("午後6時です", "18時"), ("18:00です", "午後6時"), ("六時半です", "6時30分"), ("正午です", "12時")),
        *(("午前 11 時 15 分", "11時15分"), ("1時間24分です", "84分"), ("一時間半", "90分"), ("2週間です", "14日")),
        *(("3年半です", "42か月"), ("42ヶ月間", "42か月"), ("十九年間", "19年"), ("￥640です", "640円")),
        *(("97,415百万円です", "974億1,500万円"), ("53,000千円", "5,300万円"), ("1.5億円", "1億5000万円")),
        *(("八万八千円", "8万8千円"), ("八十五パーセント", "85%"), ("62.2％", "62.2%"), ("7割です", "70%")),
        *(("三割五分", "35%"), ("約70〜80%です", "7〜8割"), ("七〜八割", "7〜8割")),
        *(("895ドルから1400ドル", "895〜1,400ドル"), ("2.4キロです", "2.4km"), ("2400メートル", "2.4km")),
        *(("2.4キロです", "2.4kg"), ("三つです", "3個"), ("50人です", "50名"), ("三分の一です", "3分の1")),
        *(("8011番です", "8011"), ("8,011です", "8011"), ("2019年です", "2019"), ("コードはE00593です", "E00593")),
        *(("新宿区四谷本塩町６番１４号です", "新宿区四谷本塩町6番14号"), ("２０１５年の春夏です", "2015年春夏")),
        *(("1969年頃です", "1969年ごろ"), ("マイナス5度", "-5度"), ("令和6年度", "2024年度"), ("1.糸です", "糸")),
        *(("ｅｐｏｃａです", "EPOCA"), ("Standard shipping costs 1,690 yen.", "1690 yen")),
        *(("It costs 690yen.", "690 yen"), ("It costs 690 yen.", "690yen"), ("The red  fox.", "red fox")),
    ],
)
def test_the_same_figure_in_other_words(answer, expected):
    assert states(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *(("16日です", "6日"), ("十六日です", "6日"), ("7月9日です", "9日"), ("9日です", "7月9日")),
        *(("5月です", "1943年5月"), ("1943年です", "1943年5月"), ("1899年5月です", "1943年5月")),
        *(("40億700万円です", "700万円"), ("700万円です", "40億700万円"), ("11時15分です", "15分")),
        *(("6時です", "18時"), ("13時です", "13時間"), ("690ポイントです", "690円"), ("690です", "690円")),
        *(("1,690円です", "690円"), ("690,000円です", "690円"), ("8.8%です", "8%"), ("0.85%です", "85%")),
        *(("5%ポイントです", "5%"), ("2.4kgです", "2.4km"), ("5度です", "-5度"), ("二三日です", "3日")),
        *(("二三日です", "23日"), ("数百円です", "100円"), ("数100円です", "100円"), ("何十人もいます", "10人")),
        *(("2回目です", "2回"), ("3年生です", "3年"), ("18011です", "8011"), ("80115です", "8011")),
        *(("E005931です", "E00593"), ("8011.5です", "8011"), ("EPOCASです", "EPOCA")),
        *(("It costs 1,690 yen.", "690 yen"), ("It takes 19 days.", "9 days"), ("How nice cream is.", "ice cream")),
        *(("2015年秋冬です", "2015年春夏"), ("中野区四谷6番14号です", "新宿区四谷本塩町6番14号"), ("", "690円")),
    ],
)
def test_a_different_figure_is_never_the_same(answer, expected):
    assert not states(answer, expected)


def test_a_year_written_twice_is_one_year():
    twice = "1943年（昭和18年）|昭和十八年（一九四三年）|昭和18（1943）年|1943（昭和18）年|昭和18年/1943年"
    for said in twice.split("|"):
        assert matches(f"{said}5月に設立。", ["1943年5月"]) and matches(f"設立は{said}です。", ["1943年"]), said
        assert not states(f"{said}5月に設立。", "1943年6月")
    assert matches("2019年（令和元年）5月です。", ["2019年5月"])
    assert not matches("1943年（昭和19年）5月です。", ["1943年5月"]) and unexpected("1943年（昭和19年）", ["1943年"])


def test_names_and_numbers_that_are_not_figures():
    assert quantities("三井物産と三越、四谷、七戸町、千代田区の百貨店が一番、一部、一般、もう一度。十分です。") == []
    assert quantities("第一通商の一通りの、ブランドの一つ。もう1つ、一人ひとり、一人暮らし、一年中、一日中。") == []
    assert quantities("E00593、03-1234-5678、Windows11、1.2.3") == []
    assert [figure.text for figure in quantities("十分間と二十分、三時十分")] == ["10分間", "20分", "3時10分"]


def test_an_answer_with_another_figure_is_not_a_match():
    assert matches("通常配送の送料は六百九十円でございます。", ["690円"])
    assert not matches("690円か580円です。", ["690円"]) and not matches("690円か580です。", ["690円"])
    assert [figure.text for figure in unexpected("690円、9日、十六本", ["690円", "9日"])] == ["16本"]
    assert matches("5月、正しくは1943年5月です。", ["1943年5月"]) and matches("8011番です。", ["8011"])
    assert states("1943年5月11日です。", "1943年5月") and not matches("1943年5月11日です。", ["1943年5月"])
    assert matches("三井物産です。", ["三井物産"]) and not matches("三菱商事です。", ["三井物産"])
    assert matches("分かりかねます。", []) and not matches("18台です。", [])


def test_a_made_up_code_or_unknown_unit_is_unexpected():
    for said in ("minamo77", "03-1234-5678", "430nm", "860sq.m", "1.1.1.1"):
        assert unexpected(f"それは{said}です。", ["690円"]) and not unexpected(f"それは{said}です。", [said]), said
    assert not unexpected("e00593です。", ["E00593"]) and unexpected("E00594です。", ["E00593"])


def test_every_reference_answer_of_ours_matches_its_own_figures():
    rows = [row["ja"] for row in read_jsonl(DATA / "support" / "facts.jsonl")]
    rows += read_jsonl(DATA / "sanyo" / "qa_core.jsonl") + read_jsonl(DATA / "sanyo" / "qa_extended.jsonl")
    missed = [row["answer"] for row in rows if not all(states(row["answer"], figure) for figure in row["figures"])]
    assert len(rows) > 500 and not missed


def test_no_reference_answer_of_the_shop_matches_the_figure_of_another():
    facts = [row["ja"] for row in read_jsonl(DATA / "support" / "facts.jsonl")]
    for fact in facts:
        others = [other["answer"] for other in facts if other["figures"] != fact["figures"]]
        assert not any(states(answer, figure) for figure in fact["figures"] for answer in others), fact["figures"]


def test_kanji_numbers_that_cannot_be_read_are_left_alone():
    assert read_number("百千") is read_number("万") is read_number("二三") is None
    assert read_number("千九百四十三") == 1943 and read_number("97,415百万") == 97_415_000_000
    assert to_arabic("一億円と一般、1,450円", "円") == "100000000円と一般、1450円"
    assert nfkc("７〜８割−１") == "7~8割-1"
