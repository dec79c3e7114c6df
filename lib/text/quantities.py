"""数値の読み取りと照合。全角・桁区切り・万億・漢数字・和暦・英語・単位の書き方をそろえて、文から取り出す。

採点、持ち込みデータ、キーワード、選好データの差し替えは、どれもここで読む。単位と言い換えの表は
`data/text/quantities.toml`。迷う書き方は読まない。読み損ねると「言っていない」になり、言っていないことを正答にはしない。
"""

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from lib.text.words import located_morphemes, nfkc

CODE = "番号"
_Match = re.Match[str]
_New = str | Callable[[_Match], str | None]
_TABLE = tomllib.loads((Path(__file__).parents[2] / "data" / "text" / "quantities.toml").read_text(encoding="utf-8"))
_DIGITS_ONLY = _TABLE["digits_only"].split()
_UNITS = {name: (name, Fraction(1)) for name in (*_TABLE["counters"].split(), *_DIGITS_ONLY)}
for _unit, _row in _TABLE["units"].items():
    for _times, _names in _row.items():
        _UNITS |= {name.replace("_", " "): (_unit, Fraction(_times)) for name in _names.split()}
_MEASURES = _UNITS | {"年": ("か月", Fraction(12))}
_MEASURES |= {sign: (unit, Fraction(1)) for sign, unit in _TABLE["prefixes"].items()}
_CLOCK = {word: hours for words, hours in _TABLE["clock"].items() for word in words.split()}
_ERAS = {name: tuple(row[:2]) for era, row in _TABLE["eras"].items() for name in (era, row[2])}
_ENGLISH, _SCALES = _TABLE["english"], _TABLE["english"]["scales"]
_COUNTS = {word: number for number, word in enumerate(_ENGLISH["words"].split())}
_COUNTS |= {word: 10 * number for number, word in enumerate(_ENGLISH["tens"].split(), 2)}


def _is_word(name: str) -> bool:
    """大文字でも書く、英語の単位か（L と l、g のような記号ではなく）。"""
    return name.isascii() and len(name) > 2


def _any_of(names: Iterable[str]) -> str:
    found = []
    for name in sorted(names, key=len, reverse=True):
        pattern = re.escape(name).replace(r"\ ", r"[\s-]") + ("(?![A-Za-z])" if name[-1].isascii() else "")
        found.append(f"(?i:{pattern})" if _is_word(name) else pattern)
    return "|".join(found)


_UNIT, _NOUN = _any_of(_UNITS), _any_of(filter(_is_word, _UNITS))
_AFTER_KANJI = re.compile(_any_of([*(name for name in _UNITS if name not in _DIGITS_ONLY), "年", "月", "時"]))


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


class _Text:
    """言い換えても、どの字が元の文のどこから来たか（`at`）を覚えている文。"""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, list(range(len(text) + 1))

    def sub(self, pattern: re.Pattern[str], new: _New) -> None:
        """`re.sub` と同じ。new が None を返した所は、そのまま残す。"""
        parts, at, end = list[str](), list[int](), 0
        for match in pattern.finditer(self.text):
            said = match.expand(new) if isinstance(new, str) else new(match)
            if said is not None and said != match[0]:
                start, last = match.start(), max(match.end() - 1, match.start())
                parts += self.text[end:start], said
                at += self.at[end:start] + [self.at[min(start + n, last)] for n in range(len(said))]
                end = match.end()
        self.text, self.at = "".join(parts) + self.text[end:], at + self.at[end:]


def quantities(text: str, codes: bool = False) -> list[Quantity]:
    """文の中の数値を、出てきた順に返す。`codes` なら、番号（`CODE`）も返す。

    「1943年5月」「R6.4.1」「7/31」は日付、「午後6時」「18:00」は時刻、「1時間24分」は 84 分、「7割」は 70%。
    英字の付いた番号（E00593）と電話番号の形（03-1234）は数値と見ない。「午後12時」は 12 時と読む。
    """
    return [found for found, _, _ in places(readable(text)) if codes or found.unit != CODE]


def readable(text: str) -> str:
    """数値の書き方をそろえた文字列（NFKC、か月・か所の表記、算用数字）。読まない言い方は「・」で伏せる。"""
    return _rewritten(text)[0]


@lru_cache(maxsize=4096)
def _rewritten(text: str) -> tuple[str, list[int]]:
    made = _Text(text)
    for pattern, new in _REWRITES:
        made.sub(pattern, new)
    return made.text, made.at


@lru_cache(maxsize=4096)
def places(text: str) -> list[tuple[Quantity, int, int]]:
    """`readable` の文の中の数値と番号を、(数値, 始まり, 終わりの次) で、出てきた順に返す。"""
    found, position = [], 0
    while start := _START.search(text, position):
        position = start.start()
        for pattern, build in _RULES:
            match = pattern.match(text, position)
            if match and (quantity := build(match)):
                found.append((quantity, position, match.end()))
                position = match.end()
                break
        else:
            position += 1
    return found


def located(text: str) -> list[tuple[Quantity, int, int]]:
    """`places` と同じ。ただし text は書かれたままの文で、場所もその文の中で数える。"""
    plain, at = _rewritten(text)
    return [(quantity, at[start], max(at[end], at[end - 1] + 1)) for quantity, start, end in places(plain)]


def key_figures(text: str) -> tuple[str, ...]:
    """答えの文から、正解に必ず入る語を取り出す: 書かれたままの数値と番号。範囲は一つの語。無ければ文の全体。

    どの語も、元の文と照らして `states` が真になる。ならない取り出し方は、しない。
    """
    (plain, at), found, spans = _rewritten(text), places(readable(text)), list[list[int]]()
    for quantity, start, end in found:
        if spans and _JOINT.fullmatch(plain, spans[-1][1], start):  # 「午後1時〜3時」を切ると、3 時が午前になる
            spans[-1][1] = end
        else:
            spans.append([start, end])
        if not quantity.unit and (tail := _ATTACHED.match(plain, end)):  # 「5錠」「5GB」の、知らない単位
            spans[-1][1] = tail.end()
    figures = tuple(text[at[start] : max(at[end], at[end - 1] + 1)].strip() for start, end in spans)
    whole = (text.strip().rstrip("。．. "),)
    return figures if figures and all(states(text, one) for one in figures) else whole


def split_items(text: str) -> list[str]:
    """区切りの字で並べた語を分ける。数値の中の「,」「、」（3,980円、2、3日）では切らない。"""
    inside = [(start, end) for _, start, end in located(text)]
    cuts = [m.start() for m in re.finditer("[、,，;；|｜]", text) if not any(a < m.start() < b for a, b in inside)]
    items = (text[start + 1 : end].strip() for start, end in pairwise([-1, *cuts, len(text)]))
    return [item for item in items if item]


def _one_year(match: _Match) -> str:
    """同じ年を二通りに書いた「1943年(昭和18年)」を「1943年」にする。食い違えば、そのまま二つの年と読む。"""
    return f"{match['year']}年" if sum(_era_and_count(match)) == int(match["year"]) else match[0]


def _era_and_count(match: _Match) -> tuple[int, int]:
    """和暦の（元年の前の西暦、何年）。"""
    return _ERAS[match["era"]][0], 1 if match["count"] == "元" else int(match["count"])


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
        if not 1 <= count <= _ERAS[match["era"]][1]:
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
    """時刻。25 時は翌日の 1 時。"""
    hour, minute = int(match["hour"]), _rest(match.groupdict().get("rest") or "", 30)
    first, last = _CLOCK[match["noon"] or "朝"]
    hour += 12 * (first <= hour <= last)
    return _simple("時刻", (60 * hour + minute) % 1440, match) if hour < 30 and minute < 60 else None


def _share(match: _Match) -> Quantity | None:
    return _simple("比", Fraction(int(match["above"]), int(match["below"])), match) if int(match["below"]) else None


def _measure(match: _Match) -> Quantity:
    """単位のある量。単位を二つ使う「3年半」「1時間24分」「7割5分」も。"""
    written = {name: text or "" for name, text in match.groupdict().items()}
    name = re.sub(r"[\s-]", " ", written["unit"])
    unit, times = _MEASURES[name] if name in _MEASURES else _MEASURES[name.lower()]
    value = times * Fraction(written["number"]).limit_denominator(10**9) + _rest(written.get("rest", ""), times / 2)
    return _simple(unit + written.get("nth", ""), -value if written.get("sign") else value, match)


def _bare(match: _Match) -> Quantity:
    return Quantity(CODE, (), match[0]) if match["code"] else _simple("", Fraction(match[0]), match)


_LEFT, _NUMBER = r"(?<![A-Za-z0-9数何幾])(?<!\d\.)", r"\d+(?:\.\d+)?"
_TO = r"\s?(?:[~-]|から|to|or|か)\s?"
_JOINT = re.compile(r"(?:\s?(?:[~-]|から|to|until|till)?\s?)")
_ATTACHED = re.compile(r"[A-Za-z%°]*|[一-龠々]?|[ァ-ヶー]*")
_MONTH = r"(?P<month>\d{1,2})\s?月(?:\s?の?\s?(?P<day>\d{1,2})\s?日(?![間目]))?"
_SLASHED = r"(?P<mark>[-/.])(?P<month>\d{1,2})(?P=mark)(?P<day>\d{1,2})(?![\d/.-])"
_NOON = _any_of(_CLOCK)
_HOUR = rf"(?:(?<![A-Za-z])(?P<noon>{_NOON})[のは]?\s?|{_LEFT})(?<!\d:)(?P<hour>\d{{1,2}})"
_ERA_COUNT = rf"(?P<era>{'|'.join(_TABLE['eras'])})\s?(?P<count>元|\d{{1,2}})"
_ERA_YEAR, _LETTER = rf"{_ERA_COUNT}\s?年", r"(?<![A-Za-z])(?P<era>[MTSHR])(?P<count>\d{1,2})"
_SIGN = r"(?P<sign>マイナス\s?|[▲△]\s?|(?<![^\s「(:=、。はがで~])-)?"
_CODE = r"(?:\d+[A-Za-z]+|[A-Za-z]+-?)\d[0-9A-Za-z-]*|\d+(?:-\d+)+|\d+(?:\.\d+){2,}|\d+(?::\d+){2,}"
_START = re.compile(rf"[\d¥$€£▲△-]|マ|{_NOON}|{'|'.join(_TABLE['eras'])}|[A-Za-z](?=[A-Za-z$]{{0,30}}[\s-]?\d)")
_RULES: list[tuple[re.Pattern[str], Callable[[_Match], Quantity | None]]] = [
    (re.compile(pattern), build)
    for pattern, build in (  # 上から順に、初めに読めたものを取る
        (rf"{_ERA_YEAR}(?P<fiscal>度)", _date),
        (rf"{_ERA_YEAR}(?![間代生目])(?:\s?の?\s?{_MONTH})?", _date),
        (rf"{_LETTER}年(?:{_MONTH})?", _date),
        (rf"{_LETTER}{_SLASHED}", _date),
        (rf"{_LEFT}(?P<year>\d{{4}}){_SLASHED}", _date),
        (rf"{_LEFT}(?<!/)(?P<month>\d{{1,2}})/(?P<day>\d{{1,2}})(?![\d/])(?!\s?(?:{_UNIT}))", _date),
        (
            rf"{_LEFT}(?P<number>\d{{1,3}})\s?(?P<unit>年|years?)間?(?:と|,?\sand)?\s?(?P<rest>\d{{1,2}}\s?(?:か月|months?)|半)",
            _measure,
        ),
        (rf"{_LEFT}(?P<year>\d{{1,4}})\s?年(?![間度代生目])(?:\s?の?\s?{_MONTH})?", _date),
        (rf"{_LEFT}{_MONTH}", _date),
        (rf"{_LEFT}(?P<month>\d{{1,2}}){_TO}(?=\d{{1,2}}\s?月)", _date),
        (rf"{_HOUR}\s?時(?!間)(?:\s?(?P<rest>\d{{1,2}}\s?分(?!間)|半))?", _clock),
        (rf"{_HOUR}:(?P<rest>\d{{2}})(?![\d:])", _clock),
        (rf"{_HOUR}{_TO}(?=\d{{1,2}}\s?時(?!間))", _clock),
        (
            rf"{_LEFT}(?P<number>\d+)\s?(?P<unit>時間|hours?)(?:と|,?\sand)?\s?(?P<rest>\d+\s?(?:分|min(?:ute)?s?)|半)",
            _measure,
        ),
        (rf"{_LEFT}(?P<number>\d+)\s?(?P<unit>割)\s?(?P<rest>\d)\s?分", _measure),
        (rf"{_LEFT}(?P<below>\d+)\s?分の\s?(?P<above>\d+)", _share),
        (rf"{_SIGN}(?P<unit>{_any_of(_TABLE['prefixes'])})\s?(?P<number>{_NUMBER})", _measure),
        (rf"{_SIGN}{_LEFT}(?P<number>{_NUMBER}){_TO}(?=-?{_NUMBER}[\s-]?(?P<unit>{_UNIT}))", _measure),
        (rf"{_SIGN}{_LEFT}(?P<number>{_NUMBER})(?:\s|-(?=[A-Za-z]))?(?P<unit>{_UNIT})(?P<nth>目)?", _measure),
        (rf"(?P<code>{_CODE})|{_LEFT}(?!0\d){_NUMBER}(?!\d|\.\d|[A-Za-z]+\d)", _bare),
    )
]

_KANJI = {letter: kanji for kanji, letters in _TABLE["numerals"].items() for letter in kanji + letters}
_DIGITS = dict(zip("〇一二三四五六七八九", "0123456789", strict=True))
_SIZES = {"兆": 10**12, "億": 10**8, "万": 10**4, "千": 1000, "百": 100, "十": 10}
_ARABIC = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_NUMERAL = "".join(_KANJI).translate({ord(circle): None for circle in "○◯"})
# 丸（○）は漢数字の後ろでだけ 0 と、空白は兆・億・万の後ろでだけ数の中と見る。
_RUN = rf"(?:{_ARABIC}|[{_NUMERAL}][○◯]*|(?<=[兆億万])\s(?=[\d{_NUMERAL},]+[兆億万千]))+"
_RANGE_OR_UNIT = re.compile(rf"\s?(?:~\s?{_RUN}\s?)?(?:{_AFTER_KANJI.pattern})")


def _arabic(match: _Match) -> str | None:
    """数の部分だけを「1450」「97415000000」「2.4」の形に直す。

    算用数字で始まる数（`5万`、`974億1,500万`）はいつも読む。漢字だけの数は、後ろに単位があり、形態素解析が
    ほかの語の一部（三井、六本木、八百屋）と言わないときだけ読む。「数百円」「何十人」は、数が決まらないので読まない。
    """
    run, text = match[0], match.string
    if not re.search(r"\d", run):
        follows = _RANGE_OR_UNIT.match(text, match.end()) or text.endswith("分の", 0, match.start())
        if not follows or not _is_number(text, match.start(), match.end()):
            return None
    if re.fullmatch(_ARABIC, run):
        return run.replace(",", "")  # 先頭の 0 を残すため、数にはしない
    value = read_number(re.sub(r"\s", "", run))
    return None if value is None else str(value)


def _is_number(text: str, start: int, end: int) -> bool:
    """漢数字を含む語が、固有名詞（千歳）ではなく、数と単位からはみ出さない（八百屋、二本松）か。"""
    unit = _AFTER_KANJI.match(text, end)
    limit = unit.end() if unit else end
    words = [word for word in located_morphemes(text) if word[0] < end and word[1] > start]
    return all(kind != "固有名詞" and start <= first and last <= limit for first, last, kind in words)


def read_number(run: str) -> int | None:
    """「千九百四十三」「二〇二四」「974億1,500万」「97,415百万」「1.5億」を読む。読めなければ None。

    位の並びが大きい順でない（百千）、位だけで数が無い（万）、おおよその数（二三日）、整数にならない数は読まない。
    """
    value = _read("".join(_KANJI.get(letter, letter) for letter in run), "".join(_SIZES))
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
    if rest is None and mark == "百" and len(tail) == 2:  # 百二三
        rest = _read_digits("〇" + tail)
    return None if many is None or rest is None or (large and not many) else many * _SIZES[mark] + rest


def _read_digits(run: str) -> Fraction | None:
    if re.fullmatch(rf"(?:{_ARABIC})?", run):
        return Fraction(run.replace(",", "") or 0)
    digits = "".join(_DIGITS.get(letter, "?") for letter in run)
    # 二三日 は 23 日ではなく、2〜3 日
    return None if "?" in digits or (len(digits) == 2 and digits in "123456789") else Fraction(digits)


def _narrow(match: _Match) -> str:
    return nfkc(match[0])


def _hide(match: _Match) -> str:
    return "・" * len(match[0])


def _decimal(match: _Match) -> str | None:
    """「1 1/2 時間」の分数。"""
    return f"{int(match[1] or 0) + int(match[2]) / int(match[3]):.12g}" if int(match[3]) else None


def _from_english(match: _Match) -> str | None:
    """「twenty-four」「two hundred and fifty」「1.5 million」。語だけの数は、後ろに単位があるときだけ読む。"""
    if match["follows"] is None and not match[0][0].isdigit():
        return None
    total = part = Fraction(0)
    for word in re.findall(r"[a-z]+|[\d.]+", match[0].lower()):
        size = _SCALES.get(word)
        if size == 100:
            part = (part or 1) * size
        elif size:
            total, part = total + (part or 1) * size, Fraction(0)
        elif word not in ("a", "and"):
            part += _COUNTS[word] if word in _COUNTS else Fraction(word)
    total += part
    return str(total) if total.denominator == 1 else str(float(total))


def _from_noon(match: _Match) -> str:
    """「1:30-3 p.m.」を「13:30-15時」にする。初めの時が後の時より大きければ、初めは反対の半日（11-3 p.m.）。"""
    first, second, after = int(match[1] or 0), int(match[4]), match[6] in "pP"
    before = after == (first % 12 < second % 12)
    said = f"{second % 12 + 12 * after if second <= 12 else second}{match[5] or '時'}"
    start = f"{first % 12 + 12 * before if first <= 12 else first}{match[2] or '時'}{match[3]}" if match[1] else ""
    return start + said


def _carry_noon(match: _Match) -> str | None:
    """「午後1時〜3時」の 3 時も午後。"""
    return match[0] + match[1] if int(match[3]) < int(match[5]) < 12 else None


def _month(match: _Match) -> str:
    """「March 3rd, 2024」「the 3rd of March」を「2024年3月3日」にする。"""
    written = match.groupdict()
    number = next(n for n, month in enumerate(_MONTHS, 1) if re.fullmatch(month, written["month"], re.I))
    year, day = (
        f"{written[part]}{unit}" if written.get(part) else "" for part, unit in (("year", "年"), ("day", "日"))
    )
    return f"{year}{number}月{day}"


def _one_of(names: Iterable[str]) -> str:
    return f"(?:{'|'.join(names)})"


_MONTHS = _ENGLISH["months"].split()
_NAMED, _OF_YEAR, _NTH = rf"\b(?P<month>(?i:{'|'.join(_MONTHS)}))\b\.?", r"(?P<year>\d{4})\b", "(?:st|nd|rd|th)?"
_ONES, _SCALE = _one_of(_COUNTS), _one_of(_SCALES)
_SMALL = rf"(?:{_one_of(_ENGLISH['tens'].split())}[\s-]{_ONES}|{_ONES})(?![a-z])"
_CHUNK = rf"(?:{_SMALL}|\d+(?:\.\d+)?|a)(?:[\s-]{_SCALE}\b)+"
_FOLLOWS = rf"(?=(?:\s?(?:to|or|-|~)\s?(?:{_SMALL}|\d+))?(?:\sand a half)?[\s-](?:{_NOUN}))"

_HALF_DAY = (
    r"(?<![\d:.,$])(?:(\d{1,2})(:\d\d)?(\s?(?:-|~|to|until|till)\s?))?(\d{1,2})(:\d\d)?\s?([ap])\.?\s?m(?![a-z])\.?"
)
_AFTERNOON = _any_of(word for word, (first, last) in _CLOCK.items() if last > first)
_REWRITES: list[tuple[re.Pattern[str], _New]] = [
    (re.compile(pattern.replace("<unit>", _UNIT).replace("<noun>", _NOUN)), new)
    for pattern, new in (
        (r"(?<=\d)(?=[¼-¾⅐-⅞])", " "),  # 1½ が 11/2 にならないように
        # ①は数の印なので、そのままにする。² は、単位の一部（m²）だけを読む
        (
            r"[^\0-\x7fぁ-ゖァ-ヺー一-鿿、。「」・①-⓿❶-➓㈠-㈩㉑-㉟㊀-㊉㊱-㊿🄀-🄊²³¹⁰-⁹]+|(?<=[mｍ])[²³]|[ぁ-ヺ][\u3099\u309a]",
            _narrow,
        ),
        *_TABLE["rewrite"]["first"],
        ("|".join(_TABLE["ignore"]["patterns"]), _hide),
        (r"(?:(?<![\d/])(\d+)\s)?(?<![\d/⁄])(\d+)(?:⁄|/(?=[2-9]\s?(?:<unit>)))(\d+)", _decimal),
        (
            rf"(?i)(?<![a-z\d.-])(?:{_CHUNK}(?:\s(?:and\s)?{_CHUNK})*(?:\s(?:and\s)?{_SMALL})?|{_SMALL})(?P<follows>{_FOLLOWS})?",
            _from_english,
        ),
        (rf"{_NAMED}\s{_OF_YEAR}", _month),
        (rf"{_NAMED}\s(?P<day>\d{{1,2}}){_NTH}(?![\d:]|\s?[ap]\.?m)(?:,?\s{_OF_YEAR})?", _month),
        (rf"(?:the\s)?(?<![\d.])(?P<day>\d{{1,2}}){_NTH}\s(?:of\s)?{_NAMED}(?:,?\s{_OF_YEAR})?", _month),
        *_TABLE["rewrite"]["then"],
        ("(?i)" + _HALF_DAY, _from_noon),
        (rf"(?<![数何幾\d.]){_RUN}", _arabic),
        (
            rf"({_AFTERNOON})([のは]?\s?)(\d{{1,2}})((?:時(?:\d{{1,2}}分|半)?|:\d\d)?\s?(?:~|-|から)\s?)(?=(\d{{1,2}})(?:時(?!間)|:\d\d))",
            _carry_noon,
        ),
        (rf"(?<!\d)(?P<year>\d{{4}})\s?年?\s?[(/・]\s?{_ERA_COUNT}(?:\s?年)?(?:\s?\)(?:\s?年)?)?", _one_year),
        (rf"{_ERA_COUNT}\s?年?\s?[(/・]\s?(?<!\d)(?P<year>\d{{4}})(?:\s?年)?(?:\s?\)(?:\s?年)?)?", _one_year),
    )
]
_FILLER = re.compile(
    r"約|およそ|ごろ|頃|ほど|くらい|から|まで|[~、・,\s]|(?i:\b(?:by|at|on|about|around|from|to|until|or|the)\b)"
)


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


def unexpected(answer: str, expected: Iterable[str]) -> list[Quantity]:
    """答えが言った数値と番号のうち、正解に無いもの。正解が「1943年」なら、「1943年5月」の 5 月も正解に無い。"""
    known = [one for text in expected for one in quantities(text, codes=True)]
    return [
        said
        for said in quantities(answer, codes=True)
        if not any(said.covers(one) or (not one.unit and one.covers(said)) for one in known)
    ]


def matches(answer: str, expected: Iterable[str], reference: str = "") -> bool:
    """正解の数値と語をすべて言い、ほかの数値を言っていないか。打ち消しや、以上か未満かは見えない。

    正解の文（reference）があれば、そこに書いてある数値は「ほかの数値」ではない。
    """
    return all(states(answer, one) for one in expected) and not unexpected(answer, [*expected, reference])


def _contains(text: str, words: str) -> bool:
    """同じ字の並びがあるか。英数字の途中（18011 の 8011、nice の ice）では合わせない。"""
    left = r"(?<![a-z0-9])(?<!\d\.)" if re.match("[a-z0-9]", words) else ""
    right = r"(?![a-z0-9]|\.\d)" if re.search("[a-z0-9]$", words) else ""
    between = re.sub(r"\\? |(?<=\d)(?=[a-z])", " ?", re.escape(words))
    return re.search(left + between + right, text) is not None


def _compact(text: str) -> str:
    """空白を除く。英語の語の切れ目だけは残す（costs 690 yen の s と 6 をつなげないため）。"""
    return re.sub(r"(?<![a-z0-9])\s+|\s+(?![a-z0-9])", "", re.sub(r"\s+", " ", readable(text).lower()))
