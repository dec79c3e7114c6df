"""数値の読み取り。全角・桁区切り・万億・漢数字・和暦・単位の書き方をそろえて、文から取り出す。

迷う書き方は読まない。読み損ねると「言っていない」になり、言っていないことを正答にはしない。
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

CODE = "番号"
_CONVERSIONS: tuple[tuple[str, Fraction, str], ...] = (  # そろえた単位、倍率、書き方
    ("%", Fraction(1), "% パーセント"),
    ("%", Fraction(10), "割"),
    ("%ポイント", Fraction(1), "%ポイント パーセントポイント"),
    ("ポイント", Fraction(1), "ポイント pt"),
    ("分", Fraction(1), "分間 分"),
    ("分", Fraction(60), "時間"),
    ("分", Fraction(1, 60), "秒間 秒"),
    ("日", Fraction(1), "日間 日"),
    ("日", Fraction(7), "週間"),
    ("か月", Fraction(1), "か月間 か月"),
    ("か月", Fraction(12), "年間"),
    ("キロ", Fraction(1000), "キロ"),
    ("m", Fraction(1000), "km キロメートル"),
    ("m", Fraction(1), "m メートル"),
    ("m", Fraction(1, 100), "cm センチメートル センチ"),
    ("m", Fraction(1, 1000), "mm ミリメートル ミリ"),
    ("g", Fraction(1000), "kg キログラム"),
    ("g", Fraction(1), "g グラム"),
    ("L", Fraction(1), "L l リットル"),
    ("L", Fraction(1, 1000), "mL ml ミリリットル"),
    ("人", Fraction(1), "人 名様 名"),
    ("個", Fraction(1), "個 コ つ"),
    ("歳", Fraction(1), "歳 才"),
    ("店", Fraction(1), "店舗 店"),
)
_COUNTERS = (
    *("円", "ドル", "ユーロ", "か所", "年度", "年代", "年生", "年目", "周年", "世紀", "文字", "種類", "売り場"),
    *("フロア", "クラス", "工程", *"本枚冊席台回点期坪階着足杯件組校社色倍章泊班袋箱束匹頭羽字位"),
)
_DIGITS_ONLY = ("番", "号", "度", "部", "行", "品", "通")
"""漢数字の後ろでは単位と見ない語（一番、一度、一部、一行、一品、一通り）。"""

_UNITS = {
    **{name: (name, Fraction(1)) for name in (*_COUNTERS, *_DIGITS_ONLY)},
    **{spelling: (unit, times) for unit, times, names in _CONVERSIONS for spelling in names.split()},
}


def _any_of(names: Sequence[str]) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    return "|".join(re.escape(name) + ("(?![A-Za-z])" if name[-1].isascii() else "") for name in longest_first)


_UNIT = _any_of(list(_UNITS))
_AFTER_KANJI = _any_of([*(name for name in _UNITS if name not in _DIGITS_ONLY), "年", "月", "時"])
_NOT_A_FIGURE = re.compile(
    r"(?<![時\d一二三四五六七八九])十分(?!間|後|前|ほど|以内|以上|程度|くらい|ぐらい)|一時(?=的|停止|金|預)"
    r"|(?<=の)[1一]つ|もう[1一]つ|[1一](?:つ(?:[1一]|ひと)つ|人(?:[1一]人|ひとり|暮らし)|[日年]中)"  # 数ではない
    r"|[\d,〇零一二三四五六七八九十百千万億兆]{41,}"  # 壊れた出力の、果てしない数字
)
_ERAS = {"明治": 1867, "大正": 1911, "昭和": 1925, "平成": 1988, "令和": 2018}
_ERA_LENGTHS = {"明治": 45, "大正": 15, "昭和": 64, "平成": 31}
_ERA_COUNT, _WEST = rf"(?P<era>{'|'.join(_ERAS)})\s?(?P<count>元|\d{{1,2}})", r"(?<!\d)(?P<year>\d{4})"
_YEAR_TWICE = [
    re.compile(rf"{first}\s?年?\s?[(/・]\s?{second}(?:\s?年)?(?:\s?\)(?:\s?年)?)?")
    for first, second in ((_WEST, _ERA_COUNT), (_ERA_COUNT, _WEST))
]
_LETTERS = dict(zip("MTSHR", _ERAS, strict=True))
_SAME_UNIT = {("キロ", "m"), ("キロ", "g"), ("m", "キロ"), ("g", "キロ")}


@dataclass(frozen=True)
class Figure:
    """一つの数値。

    Attributes:
        unit: そろえた単位。「日付」（西暦の年, 月, 日）、「時刻」（0 時からの分）、「比」、単位が無ければ空。
            数ではない番号（E00593、03-1234）は「番号」。
        value: 値。日付だけは三つで、書かれていない部分は None。番号では空。
        text: 書かれていた形（漢数字などは算用数字に直してある）。比べるときには見ない。
    """

    unit: str
    value: tuple[Fraction | None, ...]
    text: str = field(compare=False, default="")

    def covers(self, other: "Figure") -> bool:
        """other が、この数値を（より詳しくてもよいので）言っているか。単位が無いこの数値は、値だけで比べる。"""
        if self.unit == CODE:
            return other.unit == CODE and self.text.lower() == other.text.lower()
        if not self.unit:
            return self.value == other.value[:1] and not any(other.value[1:])
        if self.unit != other.unit and (self.unit, other.unit) not in _SAME_UNIT:
            return False
        return all(mine is None or mine == yours for mine, yours in zip(self.value, other.value, strict=True))


def figures(text: str) -> list[Figure]:
    """文の中の数値を、出てきた順に返す。

    「1943年5月」「R6.4.1」「7/31」は日付、「午後6時」「18:00」は時刻、「1時間24分」は 84 分、「7割」は 70%。
    英字の付いた番号（E00593）と電話番号の形（03-1234）は数値と見ない。「午後12時」は 12 時と読む。
    """
    return [figure for figure in figures_and_codes(text) if figure.unit != CODE]


def figures_and_codes(text: str) -> list[Figure]:
    """文の中の数値と番号（`CODE`）を、出てきた順に返す。"""
    return [figure for figure, _, _ in places(readable(text))]


def readable(text: str) -> str:
    """数値の書き方をそろえた文字列（NFKC、か月・か所の表記、算用数字）。読まない言い方は「・」で伏せる。"""
    text = re.sub(r"[ヶヵカケ箇](?=[月所])", "か", nfkc(text)).replace("正午", "12時")
    text = to_arabic(_NOT_A_FIGURE.sub(lambda match: "・" * len(match[0]), text), _AFTER_KANJI)
    for pattern in _YEAR_TWICE:
        text = pattern.sub(_one_year, text)
    return text


def _one_year(match: re.Match[str]) -> str:
    """同じ年を二通りに書いた「1943年(昭和18年)」を「1943年」にする。食い違えば、そのまま二つの年と読む。"""
    agrees = _ERAS[match["era"]] + (1 if match["count"] == "元" else int(match["count"])) == int(match["year"])
    return f"{match['year']}年" if agrees else match[0]


def places(text: str) -> list[tuple[Figure, int, int]]:
    """`readable` の文の中の数値と番号を、(数値, 始まり, 終わりの次) で、出てきた順に返す。"""
    found, position = [], 0
    while position < len(text):
        figure, end = _read_at(text, position)
        if figure:
            found.append((figure, position, end))
        position = end
    return found


def _read_at(text: str, position: int) -> tuple[Figure | None, int]:
    """その位置の数値か番号と、次に読む位置。"""
    for pattern, build in _RULES:
        match = pattern.match(text, position)
        figure = build(match) if match else None
        if match and figure:
            return figure, match.end()
    code = _CODE.match(text, position)
    if code:
        return Figure(CODE, (), code[0]), code.end()
    bare = _BARE.match(text, position)
    if bare:
        return Figure("", (Fraction(bare[0]),), bare[0]), bare.end()
    return None, position + 1


def _date(match: re.Match[str], year: int | None = None) -> Figure | None:
    month, day = (int(match[name]) if match[name] else None for name in ("month", "day"))
    if (month is not None and not 1 <= month <= 12) or (day is not None and not 1 <= day <= 31):
        return None
    return Figure("日付", tuple(None if part is None else Fraction(part) for part in (year, month, day)), match[0])


def _era(match: re.Match[str]) -> Figure | None:
    era = _LETTERS.get(match["era"], match["era"])
    number = 1 if match["count"] == "元" else int(match["count"])
    return _date(match, _ERAS[era] + number) if 1 <= number <= _ERA_LENGTHS.get(era, 99) else None


def _era_fiscal(match: re.Match[str]) -> Figure:
    number = 1 if match["count"] == "元" else int(match["count"])
    return Figure("年度", (Fraction(_ERAS[match["era"]] + number),), match[0])


def _years(match: re.Match[str]) -> Figure | None:
    if match["month"] is None and int(match["year"]) < 1000:  # 5年短縮、3年契約
        return Figure("か月", (Fraction(12 * int(match["year"])),), match[0])
    return _date(match, int(match["year"]))


def _months(match: re.Match[str]) -> Figure:
    rest = 6 if match["rest"] == "半" else int(match["rest"].rstrip("か月"))
    return Figure("か月", (Fraction(12 * int(match["years"]) + rest),), match[0])


def _minutes(match: re.Match[str]) -> Figure:
    rest = 30 if match["rest"] == "半" else int(match["rest"].rstrip("分"))
    return Figure("分", (Fraction(60 * int(match["hours"]) + rest),), match[0])


def _clock(match: re.Match[str]) -> Figure | None:
    hour, rest = int(match["hour"]), match["rest"] or "0"
    minute = 30 if rest == "半" else int(rest.rstrip("分"))
    if hour > 24 or minute > 59:
        return None
    afternoon = match["noon"] == "午後" and hour < 12
    return Figure("時刻", (Fraction(60 * (hour + 12 * afternoon) + minute),), match[0])


def _tenths(match: re.Match[str]) -> Figure:
    return Figure("%", (Fraction(10 * int(match["tenths"]) + int(match["hundredths"])),), match[0])


def _share(match: re.Match[str]) -> Figure | None:
    below = int(match["below"])
    return Figure("比", (Fraction(int(match["above"]), below),), match[0]) if below else None


def _money(match: re.Match[str]) -> Figure:
    return Figure("円" if match["mark"] == "¥" else "ドル", (Fraction(match["number"]),), match[0])


def _quantity(match: re.Match[str]) -> Figure:
    unit, times = _UNITS[match["unit"]]
    value = times * Fraction(match["number"])
    return Figure(unit + (match["nth"] or ""), (-value if match["sign"] else value,), match[0])


def _range_start(match: re.Match[str]) -> Figure:
    unit, times = _UNITS[match["unit"]]
    return Figure(unit, (times * Fraction(match["number"]),), match[0])


_LEFT = r"(?<![A-Za-z0-9数何幾])(?<!\d\.)"
_NUMBER = r"\d+(?:\.\d+)?"
_MONTH = r"(?P<month>\d{1,2})\s?月(?:\s?の?\s?(?P<day>\d{1,2})\s?日(?![間目]))?"
_SLASHED = r"(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})(?![\d/.-])"
_ERA_YEAR = rf"{_ERA_COUNT}\s?年"
_RULES: list[tuple[re.Pattern[str], Callable[[re.Match[str]], Figure | None]]] = [
    (re.compile(pattern), build)
    for pattern, build in (
        (rf"{_ERA_YEAR}度", _era_fiscal),
        (rf"{_ERA_YEAR}(?![間代生目])(?:\s?の?\s?{_MONTH})?", _era),
        (rf"(?<![A-Za-z])(?P<era>[MTSHR])(?P<count>\d{{1,2}})年(?:{_MONTH})?", _era),
        (rf"(?<![A-Za-z])(?P<era>[MTSHR])(?P<count>\d{{1,2}}){_SLASHED}", _era),
        (rf"{_LEFT}(?P<year>\d{{4}}){_SLASHED}", lambda match: _date(match, int(match["year"]))),
        (rf"{_LEFT}(?<!/)(?P<month>\d{{1,2}})/(?P<day>\d{{1,2}})(?![\d/])(?!\s?(?:{_UNIT}))", _date),
        (rf"{_LEFT}(?P<years>\d{{1,3}})\s?年間?(?:と?\s?(?P<rest>\d{{1,2}}\s?か月|半))", _months),
        (rf"{_LEFT}(?P<year>\d{{1,4}})\s?年(?![間度代生目])(?:\s?の?\s?{_MONTH})?", _years),
        (rf"{_LEFT}{_MONTH}", _date),
        (
            rf"(?P<noon>午前|午後)?\s?{_LEFT}(?P<hour>\d{{1,2}})\s?時(?!間)(?:\s?(?P<rest>\d{{1,2}}\s?分(?!間)|半))?",
            _clock,
        ),
        (rf"(?P<noon>午前|午後)?\s?{_LEFT}(?<!:)(?P<hour>\d{{1,2}}):(?P<rest>\d{{2}})(?![\d:])", _clock),
        (rf"{_LEFT}(?P<hours>\d+)\s?時間と?\s?(?P<rest>\d+\s?分|半)", _minutes),
        (rf"{_LEFT}(?P<tenths>\d+)\s?割\s?(?P<hundredths>\d)\s?分", _tenths),
        (rf"{_LEFT}(?P<below>\d+)\s?分の\s?(?P<above>\d+)", _share),
        (rf"(?P<mark>[¥$])\s?(?P<number>{_NUMBER})", _money),
        (rf"{_LEFT}(?P<number>{_NUMBER})\s?[~-]\s?(?={_NUMBER}\s?(?P<unit>{_UNIT}))", _range_start),
        (
            rf"(?P<sign>マイナス\s?|[▲△]\s?|(?<![^\s「(:=、。はがで])-)?{_LEFT}(?P<number>{_NUMBER})\s?(?P<unit>{_UNIT})(?P<nth>目)?",
            _quantity,
        ),
    )
]
_CODE = re.compile(r"(?:\d+[A-Za-z]+|[A-Za-z]+-?)\d[0-9A-Za-z-]*|\d+(?:-\d+)+|\d+(?:\.\d+){2,}|\d+(?::\d+){2,}")
_BARE = re.compile(rf"{_LEFT}(?!0\d){_NUMBER}(?!\d|\.\d|[A-Za-z]+\d)")


# NFKC が写さない波ダッシュとマイナスを、写したあとの字にそろえる。
_EXTRA = str.maketrans({"\u301c": "~", "\u2212": "-"})
_DIGITS = {"〇": 0, "零": 0, **{kanji: value for value, kanji in enumerate("一二三四五六七八九", start=1)}}
_SMALL = {"十": 10, "百": 100, "千": 1000}
_LARGE = {"万": 10**4, "億": 10**8, "兆": 10**12}
_ARABIC = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_PART = re.compile(rf"{_ARABIC}|[{''.join(_DIGITS)}]+|[十百千万億兆]")
_RUN = rf"(?<![数何幾\d.])(?:{_PART.pattern})+"


def nfkc(text: str) -> str:
    """全角・半角の違いを消す（NFKC、Unicode UAX #15。波ダッシュと全角マイナスも `~` と `-` にする）。"""
    return unicodedata.normalize("NFKC", text).translate(_EXTRA)


def to_arabic(text: str, follows: str) -> str:
    """数の部分だけを「1450」「97415000000」「2.4」の形に直した文字列を返す。

    算用数字で始まる数（`5万`、`974億1,500万`）はいつも読む。漢字だけの数は、後ろに単位があるときだけ読む
    （三井、四谷、一般 を数と取り違えないため）。「数百円」「何十人」「二三日」は、数が決まらないので読まない。

    Args:
        text: NFKC にそろえた文字列。
        follows: 漢字だけの数の後ろに来てよい単位の正規表現。
    """
    unit = re.compile(rf"\s?(?:~\s?(?:{_PART.pattern})+\s?)?(?:{follows})")

    def rewrite(match: re.Match[str]) -> str:
        run = match[0]
        if not re.search(r"\d", run) and not (unit.match(text, match.end()) or text.endswith("分の", 0, match.start())):
            return run
        if re.fullmatch(_ARABIC, run):
            return run.replace(",", "")  # 先頭の 0 を残すため、数にはしない
        value = read_number(run)
        return run if value is None else str(value)

    return re.sub(_RUN, rewrite, text)


def read_number(run: str) -> int | None:
    """「千九百四十三」「二〇二四」「974億1,500万」「97,415百万」「1.5億」を読む。数として読めなければ None。

    位の並びが大きい順でない（百千）、位だけで数が無い（万円の「万」）、おおよその数（二三日）、
    整数にならない数は読まない。
    """
    total, section, current = Fraction(0), Fraction(0), None
    small = large = 10**16
    for part in _PART.findall(run):
        if part in _SMALL:
            if _SMALL[part] >= small:
                return None
            small = _SMALL[part]
            section += small * (1 if current is None else current)
            current = None
        elif part in _LARGE:
            amount = section + (current or 0)
            if _LARGE[part] >= large or amount == 0:
                return None
            large, small = _LARGE[part], 10**16
            total, section, current = total + amount * large, Fraction(0), None
        elif current is not None:
            return None
        else:
            current = _read_digits(part)
            if current is None:
                return None
    value = total + section + (current or 0)
    return int(value) if value.denominator == 1 else None


def _read_digits(part: str) -> Fraction | None:
    if part[0] not in _DIGITS:
        return Fraction(part.replace(",", ""))
    digits = [_DIGITS[kanji] for kanji in part]
    if len(digits) == 2 and digits[0] > 0 and digits[1] == digits[0] + 1:
        return None  # 二三日 は 23 日ではなく、2〜3 日
    return Fraction("".join(map(str, digits)))


BLIND_SPOT = (
    "数値と語を言ったかだけを見る。「690円ではない」の打ち消し、何の数か、以上か未満か、文の良し悪しは見えない。"
)

_FILLER = re.compile(r"約|およそ|ごろ|頃|ほど|くらい|から|まで|[~、・,\s]")


def states(answer: str, expected: str) -> bool:
    """答えが、その数値または語を言っているか。

    単位のある数値は読み取って比べる（「16日」は「6日」ではなく、「7月9日」は「9日」ではない）。
    数値の前後の語（「2015年春夏」の「春夏」）は、答えのどこかに同じ字があればよい。
    単位の無い番号（8011）と語（三井物産）は、同じ字の並びがあるかを見る。数字の途中では切らない。
    """
    wanted = [figure for figure in figures(expected) if figure.unit]
    if not wanted:
        return _contains(_compact(answer), _compact(expected))
    said = figures(answer)
    rest = readable(expected)
    for figure in wanted:
        rest = rest.replace(figure.text, " ", 1)
    words = _FILLER.sub(" ", rest).split()
    return all(any(one.covers(other) for other in said) for one in wanted) and all(
        _compact(word) in _compact(answer) for word in words
    )


def unexpected(answer: str, expected: Sequence[str]) -> list[Figure]:
    """答えが言った数値と番号のうち、正解に無いもの。正解が「1943年」なら、「1943年5月」の 5 月も正解に無い。"""
    known = [figure for text in expected for figure in figures_and_codes(text)]
    return [
        said
        for said in figures_and_codes(answer)
        if not any(said.covers(one) or (not one.unit and one.covers(said)) for one in known)
    ]


def matches(answer: str, expected: Sequence[str]) -> bool:
    """正解の数値と語をすべて言い、ほかの数値を言っていないか。"""
    return all(states(answer, one) for one in expected) and not unexpected(answer, expected)


def _contains(text: str, words: str) -> bool:
    """同じ字の並びがあるか。英数字の途中（18011 の 8011、nice の ice）では合わせない。"""
    left = r"(?<![a-z0-9])(?<!\d\.)" if re.match("[a-z0-9]", words) else ""
    right = r"(?![a-z0-9]|\.\d)" if re.search("[a-z0-9]$", words) else ""
    between = re.sub(r"\\? |(?<=\d)(?=[a-z])", " ?", re.escape(words))
    return re.search(left + between + right, text) is not None


def _compact(text: str) -> str:
    """空白を除く。英語の語の切れ目だけは残す（costs 690 yen の s と 6 をつなげないため）。"""
    return re.sub(r"(?<![a-z0-9])\s+|\s+(?![a-z0-9])", "", re.sub(r"\s+", " ", readable(text).lower()))
