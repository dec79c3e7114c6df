"""数値の読み取りと照合。全角・桁区切り・万億・漢数字・和暦・単位の書き方をそろえて、文から取り出す。

迷う書き方は読まない。読み損ねると「言っていない」になり、言っていないことを正答にはしない。
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

CODE = "番号"
_Match = re.Match[str]
_CONVERSIONS: dict[str, dict[str, Any]] = {  # そろえた単位 → {書き方: 倍率}
    "%": {"% パーセント": 1, "割": 10},
    "%ポイント": {"%ポイント パーセントポイント": 1},
    "ポイント": {"ポイント pt": 1},
    "分": {"分間 分": 1, "時間": 60, "秒間 秒": "1/60"},
    "日": {"日間 日": 1, "週間": 7},
    "か月": {"か月間 か月": 1, "年間": 12},
    "キロ": {"キロ": 1000},
    "m": {"m メートル": 1, "km キロメートル": 1000, "cm センチメートル センチ": "0.01"}
    | {"mm ミリメートル ミリ": "0.001"},
    "g": {"g グラム": 1, "kg キログラム": 1000},
    "L": {"L l リットル": 1, "mL ml ミリリットル": "1/1000"},
    "人": {"人 名様 名": 1},
    "個": {"個 コ つ": 1},
    "歳": {"歳 才": 1},
    "店": {"店舗 店": 1},
}
_COUNTERS = (
    *("円", "ドル", "ユーロ", "か所", "年度", "年代", "年生", "年目", "周年", "世紀", "文字", "種類", "売り場"),
    *("フロア", "クラス", "工程", *"本枚冊席台回点期坪階着足杯件組校社色倍章泊班袋箱束匹頭羽字位"),
)
_DIGITS_ONLY = ("番", "号", "度", "部", "行", "品", "通")
"""漢数字の後ろでは単位と見ない語（一番、一度、一部、一行、一品、一通り）。"""
_UNITS = {name: (name, Fraction(1)) for name in (*_COUNTERS, *_DIGITS_ONLY)}
for _unit, _row in _CONVERSIONS.items():
    for _names, _times in _row.items():
        _UNITS |= dict.fromkeys(_names.split(), (_unit, Fraction(_times)))
_MEASURES = {**_UNITS, "年": ("か月", Fraction(12)), "¥": ("円", Fraction(1)), "$": ("ドル", Fraction(1))}


def _any_of(names: Iterable[str]) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    return "|".join(re.escape(name) + ("(?![A-Za-z])" if name[-1].isascii() else "") for name in longest_first)


_UNIT = _any_of(_UNITS)
_AFTER_KANJI = _any_of([*(name for name in _UNITS if name not in _DIGITS_ONLY), "年", "月", "時"])
_NOT_A_QUANTITY = re.compile(
    r"(?<![時\d一二三四五六七八九])十分(?!間|後|前|ほど|以内|以上|程度|くらい|ぐらい)|一時(?=的|停止|金|預)"
    r"|(?<=の)[1一]つ|もう[1一]つ|[1一](?:つ(?:[1一]|ひと)つ|人(?:[1一]人|ひとり|暮らし)|[日年]中)"  # 数ではない
    r"|[\d,〇零一二三四五六七八九十百千万億兆]{41,}"  # 壊れた出力の、果てしない数字
)
_ERAS = {"明治": 1867, "大正": 1911, "昭和": 1925, "平成": 1988, "令和": 2018}
_LAST_YEAR = {1867: 45, 1911: 15, 1925: 64, 1988: 31}
_LETTERS = dict(zip("MTSHR", _ERAS, strict=True))
_ERA_COUNT, _WEST = rf"(?P<era>{'|'.join(_ERAS)})\s?(?P<count>元|\d{{1,2}})", r"(?<!\d)(?P<year>\d{4})"
_YEAR_TWICE = [
    re.compile(rf"{first}\s?年?\s?[(/・]\s?{second}(?:\s?年)?(?:\s?\)(?:\s?年)?)?")
    for first, second in ((_WEST, _ERA_COUNT), (_ERA_COUNT, _WEST))
]


@dataclass(frozen=True)
class Quantity:
    """一つの数値。

    unit はそろえた単位か、「日付」（value は西暦の年, 月, 日。無い部分は None）、「時刻」（0 時からの分）、「比」、
    「番号」（E00593 など。value は空）、空（単位が無い）。text は書かれていた形（算用数字に直してある）。
    """

    unit: str
    value: tuple[Fraction | None, ...]
    text: str = field(compare=False, default="")

    def covers(self, other: "Quantity") -> bool:
        """other が、この数値を（より詳しくてもよいので）言っているか。単位が無いこの数値は、値だけで比べる。"""
        if self.unit == CODE:
            return other.unit == CODE and self.text.lower() == other.text.lower()
        if not self.unit:
            return self.value == other.value[:1] and not any(other.value[1:])
        comparable = self.unit == other.unit or {self.unit, other.unit} in ({"キロ", "m"}, {"キロ", "g"})
        return comparable and all(mine in (None, yours) for mine, yours in zip(self.value, other.value, strict=True))


def quantities(text: str, codes: bool = False) -> list[Quantity]:
    """文の中の数値を、出てきた順に返す。`codes` なら、番号（`CODE`）も返す。

    「1943年5月」「R6.4.1」「7/31」は日付、「午後6時」「18:00」は時刻、「1時間24分」は 84 分、「7割」は 70%。
    英字の付いた番号（E00593）と電話番号の形（03-1234）は数値と見ない。「午後12時」は 12 時と読む。
    """
    return [found for found, _, _ in places(readable(text)) if codes or found.unit != CODE]


def readable(text: str) -> str:
    """数値の書き方をそろえた文字列（NFKC、か月・か所の表記、算用数字）。読まない言い方は「・」で伏せる。"""
    text = re.sub(r"[ヶヵカケ箇](?=[月所])", "か", nfkc(text)).replace("正午", "12時")
    text = to_arabic(_NOT_A_QUANTITY.sub(lambda match: "・" * len(match[0]), text), _AFTER_KANJI)
    for pattern in _YEAR_TWICE:
        text = pattern.sub(_one_year, text)
    return text


def places(text: str) -> list[tuple[Quantity, int, int]]:
    """`readable` の文の中の数値と番号を、(数値, 始まり, 終わりの次) で、出てきた順に返す。"""
    found, position = [], 0
    while position < len(text):
        for pattern, build in _RULES:
            match = pattern.match(text, position)
            if match and (quantity := build(match)):
                found.append((quantity, position, match.end()))
                position = match.end()
                break
        else:
            position += 1
    return found


def _one_year(match: _Match) -> str:
    """同じ年を二通りに書いた「1943年(昭和18年)」を「1943年」にする。食い違えば、そのまま二つの年と読む。"""
    return f"{match['year']}年" if sum(_era_and_count(match)) == int(match["year"]) else match[0]


def _era_and_count(match: _Match) -> tuple[int, int]:
    """和暦の（元年の前の西暦、何年）。"""
    return _ERAS[_LETTERS.get(match["era"], match["era"])], 1 if match["count"] == "元" else int(match["count"])


def _simple(unit: str, value: Fraction | int, match: _Match) -> Quantity:
    return Quantity(unit, (Fraction(value),), match[0])


def _date(match: _Match) -> Quantity | None:
    """日付。和暦は西暦に直す。「令和6年度」は年度、月の無い「5年短縮」「3年契約」は期間。"""
    written = match.groupdict()
    year, month, day = (int(written[part]) if written.get(part) else None for part in ("year", "month", "day"))
    if "era" in written:
        before, count = _era_and_count(match)
        year = before + count
        if "fiscal" in written:
            return _simple("年度", year, match)
        if not 1 <= count <= _LAST_YEAR.get(before, 99):
            return None
    elif year is not None and year < 1000 and month is None:
        return _simple("か月", 12 * year, match)
    if month not in (None, *range(1, 13)) or day not in (None, *range(1, 32)):
        return None
    return Quantity("日付", tuple(None if part is None else Fraction(part) for part in (year, month, day)), match[0])


def _rest(text: str, half: Fraction | int) -> Fraction | int:
    """「3年半」「6時24分」の、半や 24分 の所。"""
    return half if text == "半" else int(re.sub(r"\D", "", text) or 0)


def _clock(match: _Match) -> Quantity | None:
    hour, minute = int(match["hour"]), _rest(match["rest"] or "", 30)
    afternoon = match["noon"] == "午後" and hour < 12
    return _simple("時刻", 60 * (hour + 12 * afternoon) + minute, match) if hour <= 24 and minute <= 59 else None


def _share(match: _Match) -> Quantity | None:
    return _simple("比", Fraction(int(match["above"]), int(match["below"])), match) if int(match["below"]) else None


def _measure(match: _Match) -> Quantity:
    """単位のある量。単位を二つ使う「3年半」「1時間24分」「7割5分」も。"""
    written = {name: text or "" for name, text in match.groupdict().items()}
    unit, times = _MEASURES[written["unit"]]
    value = times * Fraction(written["number"]) + _rest(written.get("rest", ""), times / 2)
    return _simple(unit + written.get("nth", ""), -value if written.get("sign") else value, match)


def _bare(match: _Match) -> Quantity:
    return Quantity(CODE, (), match[0]) if match["code"] else _simple("", Fraction(match[0]), match)


_LEFT, _NUMBER = r"(?<![A-Za-z0-9数何幾])(?<!\d\.)", r"\d+(?:\.\d+)?"
_MONTH = r"(?P<month>\d{1,2})\s?月(?:\s?の?\s?(?P<day>\d{1,2})\s?日(?![間目]))?"
_SLASHED = r"(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})(?![\d/.-])"
_HOUR = rf"(?P<noon>午前|午後)?\s?{_LEFT}"
_ERA_YEAR, _LETTER = rf"{_ERA_COUNT}\s?年", r"(?<![A-Za-z])(?P<era>[MTSHR])(?P<count>\d{1,2})"
_SIGN = r"(?P<sign>マイナス\s?|[▲△]\s?|(?<![^\s「(:=、。はがで])-)?"
_CODE = r"(?:\d+[A-Za-z]+|[A-Za-z]+-?)\d[0-9A-Za-z-]*|\d+(?:-\d+)+|\d+(?:\.\d+){2,}|\d+(?::\d+){2,}"
_RULES: list[tuple[re.Pattern[str], Callable[[_Match], Quantity | None]]] = [
    (re.compile(pattern), build)
    for pattern, build in (  # 上から順に、初めに読めたものを取る
        (rf"{_ERA_YEAR}(?P<fiscal>度)", _date),
        (rf"{_ERA_YEAR}(?![間代生目])(?:\s?の?\s?{_MONTH})?", _date),
        (rf"{_LETTER}年(?:{_MONTH})?", _date),
        (rf"{_LETTER}{_SLASHED}", _date),
        (rf"{_LEFT}(?P<year>\d{{4}}){_SLASHED}", _date),
        (rf"{_LEFT}(?<!/)(?P<month>\d{{1,2}})/(?P<day>\d{{1,2}})(?![\d/])(?!\s?(?:{_UNIT}))", _date),
        (rf"{_LEFT}(?P<number>\d{{1,3}})\s?(?P<unit>年)間?(?:と?\s?(?P<rest>\d{{1,2}}\s?か月|半))", _measure),
        (rf"{_LEFT}(?P<year>\d{{1,4}})\s?年(?![間度代生目])(?:\s?の?\s?{_MONTH})?", _date),
        (rf"{_LEFT}{_MONTH}", _date),
        (rf"{_HOUR}(?P<hour>\d{{1,2}})\s?時(?!間)(?:\s?(?P<rest>\d{{1,2}}\s?分(?!間)|半))?", _clock),
        (rf"{_HOUR}(?<!:)(?P<hour>\d{{1,2}}):(?P<rest>\d{{2}})(?![\d:])", _clock),
        (rf"{_LEFT}(?P<number>\d+)\s?(?P<unit>時間)と?\s?(?P<rest>\d+\s?分|半)", _measure),
        (rf"{_LEFT}(?P<number>\d+)\s?(?P<unit>割)\s?(?P<rest>\d)\s?分", _measure),
        (rf"{_LEFT}(?P<below>\d+)\s?分の\s?(?P<above>\d+)", _share),
        (rf"(?P<unit>[¥$])\s?(?P<number>{_NUMBER})", _measure),
        (rf"{_LEFT}(?P<number>{_NUMBER})\s?[~-]\s?(?={_NUMBER}\s?(?P<unit>{_UNIT}))", _measure),
        (rf"{_SIGN}{_LEFT}(?P<number>{_NUMBER})\s?(?P<unit>{_UNIT})(?P<nth>目)?", _measure),
        (rf"(?P<code>{_CODE})|{_LEFT}(?!0\d){_NUMBER}(?!\d|\.\d|[A-Za-z]+\d)", _bare),
    )
]

_EXTRA = str.maketrans({"\u301c": "~", "\u2212": "-"})
"""NFKC が写さない波ダッシュとマイナスを、写したあとの字にそろえる。"""
_DIGITS = dict(zip("〇一二三四五六七八九零", "01234567890", strict=True))
_SIZES = {"兆": 10**12, "億": 10**8, "万": 10**4, "千": 1000, "百": 100, "十": 10}
_ARABIC = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_RUN = rf"(?:{_ARABIC}|[{''.join((*_DIGITS, *_SIZES))}])+"


def nfkc(text: str) -> str:
    """全角・半角の違いを消す（NFKC、Unicode UAX #15。波ダッシュと全角マイナスも `~` と `-` にする）。"""
    return unicodedata.normalize("NFKC", text).translate(_EXTRA)


def to_arabic(text: str, follows: str) -> str:
    """数の部分だけを「1450」「97415000000」「2.4」の形に直した文字列を返す。

    算用数字で始まる数（`5万`、`974億1,500万`）はいつも読む。漢字だけの数は、後ろに単位（follows、正規表現）が
    あるときだけ読む（三井、四谷、一般 を数と取り違えないため）。「数百円」「何十人」は、数が決まらないので読まない。
    """
    unit = re.compile(rf"\s?(?:~\s?{_RUN}\s?)?(?:{follows})")

    def rewrite(match: _Match) -> str:
        run = match[0]
        if not re.search(r"\d", run) and not (unit.match(text, match.end()) or text.endswith("分の", 0, match.start())):
            return run
        if re.fullmatch(_ARABIC, run):
            return run.replace(",", "")  # 先頭の 0 を残すため、数にはしない
        value = read_number(run)
        return run if value is None else str(value)

    return re.sub(rf"(?<![数何幾\d.]){_RUN}", rewrite, text)


def read_number(run: str) -> int | None:
    """「千九百四十三」「二〇二四」「974億1,500万」「97,415百万」「1.5億」を読む。読めなければ None。

    位の並びが大きい順でない（百千）、位だけで数が無い（万）、おおよその数（二三日）、整数にならない数は読まない。
    """
    value = _read(run, "".join(_SIZES))
    return int(value) if value is not None and value.denominator == 1 else None


def _read(run: str, marks: str) -> Fraction | None:
    """大きい位から順に、その前（いくつ分か）と後ろ（残り）に分けて読む。"""
    if not marks or not run:
        return _read_digits(run)
    head, mark, tail = run.partition(marks[0])
    if not mark:
        return _read(run, marks[1:])
    large = mark in "兆億万"
    many = _read(head, "千百十") if large else _read_digits(head or "1")
    rest = _read(tail, marks[1:])
    return None if many is None or rest is None or (large and not many) else many * _SIZES[mark] + rest


def _read_digits(run: str) -> Fraction | None:
    if re.fullmatch(rf"(?:{_ARABIC})?", run):
        return Fraction(run.replace(",", "") or 0)
    digits = "".join(_DIGITS.get(letter, "?") for letter in run)
    # 二三日 は 23 日ではなく、2〜3 日
    return None if "?" in digits or (len(digits) == 2 and digits in "123456789") else Fraction(digits)


_FILLER = re.compile(r"約|およそ|ごろ|頃|ほど|くらい|から|まで|[~、・,\s]")


def states(answer: str, expected: str) -> bool:
    """答えが、その数値または語を言っているか。

    単位のある数値は読み取って比べる（「16日」は「6日」ではない）。その前後の語（「2015年春夏」の「春夏」）は、
    どこかにあればよい。単位の無い番号（8011）と語（三井物産）は、同じ字の並びがあるかを見る。数字の途中では切らない。
    """
    wanted = [one for one in quantities(expected) if one.unit]
    if not wanted:
        return _contains(_compact(answer), _compact(expected))
    said, rest = quantities(answer), readable(expected)
    for one in wanted:
        rest = rest.replace(one.text, " ", 1)
    words = _FILLER.sub(" ", rest).split()
    return all(any(map(one.covers, said)) for one in wanted) and all(_compact(w) in _compact(answer) for w in words)


def unexpected(answer: str, expected: Sequence[str]) -> list[Quantity]:
    """答えが言った数値と番号のうち、正解に無いもの。正解が「1943年」なら、「1943年5月」の 5 月も正解に無い。"""
    known = [one for text in expected for one in quantities(text, codes=True)]
    return [
        said
        for said in quantities(answer, codes=True)
        if not any(said.covers(one) or (not one.unit and one.covers(said)) for one in known)
    ]


def matches(answer: str, expected: Sequence[str]) -> bool:
    """正解の数値と語をすべて言い、ほかの数値を言っていないか。打ち消しや、以上か未満かは見えない。"""
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
