"""数値の読み取りと照合。全角・桁区切り・万億・漢数字・和暦・英語・単位の書き方をそろえて、文から取り出す。

採点、持ち込みデータ、キーワード、選好データの差し替えは、どれもここで読む。単位と数値の形は `data/text/quantities.toml`
の表にある。迷う書き方は読まない。読み損ねると「言っていない」になり、言っていないことを正答にはしない。
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from lib.text.words import nfkc, parts_of_speech

CODE = "番号"
_Match = re.Match[str]
_Built = tuple[str, tuple[Fraction | None, ...]] | None  # 表の形から作る、数値の単位と値
_TABLE = tomllib.loads((Path(__file__).parents[2] / "data" / "text" / "quantities.toml").read_text(encoding="utf-8"))
_GRAMMAR, _ENGLISH, _DIGITS_ONLY = _TABLE["grammar"], _TABLE["english"], _TABLE["digits_only"].split()
_UNITS = {name: (name, Fraction(1)) for name in (*_TABLE["counters"].split(), *_DIGITS_ONLY)}
for _unit, _row in _TABLE["units"].items():
    for _times, _names in _row.items():
        _UNITS |= {name.replace("_", " "): (_unit, Fraction(_times)) for name in _names.split()}
_MEASURES = {**_UNITS, "年": ("か月", Fraction(12)), "分の": ("比", Fraction(1)), "": ("", Fraction(1))}
_MEASURES |= {sign: (unit, Fraction(1)) for sign, unit in _TABLE["prefixes"].items()}
_CLOCK = {word: hours for words, hours in _TABLE["clock"].items() for word in words.split()}
_ERAS = {name: (first, last) for era, (first, last, letter) in _TABLE["eras"].items() for name in (era, letter)}
_COUNTS = {word: number for number, word in enumerate(_ENGLISH["words"].split())}
_COUNTS |= {word: 10 * number for number, word in enumerate(_ENGLISH["tens"].split(), 2)}
_KANJI = {letter: kanji for kanji, letters in _TABLE["numerals"].items() for letter in kanji + letters}
_DIGITS = dict(zip("〇一二三四五六七八九", "0123456789", strict=True))
_SIZES = {"兆": 10**12, "億": 10**8, "万": 10**4, "千": 1000, "百": 100, "十": 10}


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
    return _rewritten(text)[0]


@lru_cache(maxsize=4096)
def _rewritten(text: str) -> tuple[str, list[int]]:
    """`readable` の文と、その一字一字が元の文の何字目から来たか。"""
    at = list(range(len(text) + 1))
    for pattern, new, *way in _REWRITES:
        parts, origin, end = list[str](), list[int](), 0
        for match in pattern.finditer(text):
            said = _reworded(match, *way) if way else match.expand(new)
            start, last = match.start(), max(match.end() - 1, match.start())
            parts += text[end:start], said
            origin += at[end:start] + [at[min(start + n, last)] for n in range(len(said))]
            end = match.end()
        text, at = "".join(parts) + text[end:], origin + at[end:]
    return text, at


@lru_cache(maxsize=4096)
def places(text: str) -> list[tuple[Quantity, int, int]]:
    """`readable` の文の中の数値と番号を、(数値, 始まり, 終わりの次) で、出てきた順に返す。"""
    found, position = [], 0
    while start := _START.search(text, position):
        position = start.start()
        tried = ((build, pattern.match(text, position)) for pattern, build in _RULES)
        read = next(((*built, m) for build, m in tried if m and (built := build(m))), None)
        position = read[2].end() if read else position + 1
        found += [(Quantity(read[0], read[1], read[2][0]), start.start(), position)] if read else []
    return found


def located(text: str) -> list[tuple[Quantity, int, int]]:
    """`places` と同じ。ただし text は書かれたままの文で、場所もその文の中で数える。"""
    plain, at = _rewritten(text)
    return [(quantity, at[start], max(at[end], at[end - 1] + 1)) for quantity, start, end in places(plain)]


def key_figures(text: str) -> tuple[str, ...]:
    """答えの文から、正解に必ず入る語（書かれたままの数値と番号。範囲は一つの語）を取り出す。無ければ文の全体。

    どの語も、元の文と照らして `states` が真になるものだけを返す。
    """
    (plain, at), spans = _rewritten(text), list[list[int]]()
    for quantity, start, end in places(plain):
        if not quantity.unit and (tail := _ATTACHED.match(plain, end)):  # 「5錠」「5GB」の、知らない単位
            end = tail.end()
        if spans and _JOINT.fullmatch(plain, spans[-1][1], start):  # 「午後1時〜3時」を切ると、3 時が午前になる
            start = spans.pop()[0]
        spans.append([start, end])
    figures = tuple(text[at[start] : max(at[end], at[end - 1] + 1)].strip() for start, end in spans)
    return figures if figures and all(states(text, one) for one in figures) else (text.strip().rstrip("。．. "),)


def split_items(text: str) -> list[str]:
    """区切りの字で並べた語を分ける。数値の中の「,」「、」（3,980円、2、3日）では切らない。"""
    inside = {n for _, start, end in located(text) for n in range(start, end)}
    cuts = [match.start() for match in re.finditer("[、,，;；|｜]", text) if match.start() not in inside]
    items = (text[start + 1 : end].strip() for start, end in pairwise([-1, *cuts, len(text)]))
    return [item for item in items if item]


def _date(match: _Match) -> _Built:
    """日付。和暦は西暦に直す。「令和6年度」は年度、月の無い「5年短縮」「3年契約」は期間。"""
    written = match.groupdict()
    year, month, day = (int(written[part]) if written.get(part) else None for part in ("year", "month", "day"))
    if "era" in written:
        (before, last), count = _ERAS[match["era"]], int(match["count"])
        year = before + count
        if "fiscal" in written:
            return "年度", (Fraction(year),)
        if not 1 <= count <= last:
            return None
    elif year is not None and year < 1000 and month is None:
        return "か月", (Fraction(12 * year),)
    if month not in (None, *range(1, 13)) or day not in (None, *range(1, 32)):
        return None
    return "日付", tuple(None if part is None else Fraction(part) for part in (year, month, day))


def _clock(match: _Match) -> _Built:
    """時刻。25 時は翌日の 1 時。"""
    hour, minute = int(match["hour"]), int(match.groupdict().get("rest") or 0)
    first, last = _CLOCK[match["noon"] or "朝"]
    hour += 12 * (first <= hour <= last)
    return ("時刻", (Fraction((60 * hour + minute) % 1440),)) if hour < 30 and minute < 60 else None


def _measure(match: _Match) -> _Built:
    """量（単位を二つ使う「3年6か月」「1時間24分」「7割5分」も）、分数、単位の無い数、番号。"""
    written = {name: text or "" for name, text in match.groupdict().items()}
    if written.get("code"):
        return CODE, ()
    name = re.sub(r"[\s-]", " ", written.get("unit", ""))
    unit, times = _MEASURES[name] if name in _MEASURES else _MEASURES[name.lower()]
    number = Fraction(written["number"]).limit_denominator(10**9 if name else 10**99)  # 0.333333333333時間 は 20 分
    value = times * number / int(written.get("below", 1)) + int(written.get("rest") or 0)
    return unit + written.get("nth", ""), (-value if written.get("sign") else value,)


def _reworded(match: _Match, way: str) -> str:
    """決まった形に替えるだけでは済まない言い換え（way は、表の rewrites の三つ目）。"""
    said = match[0]
    if way == "narrow":
        return nfkc(said)
    if way == "hide":
        return "・" * len(said)
    if way == "month":
        return f"§{_ENGLISH['months'].split().index(said[:3].lower()) + 1}月"
    if way == "decimal" and int(match[3]):  # 「1 1/2 時間」の分数
        return f"{int(match[1] or 0) + int(match[2]) / int(match[3]):.12g}"
    if way == "carry":  # 「午後1時〜3時」の 3 時も午後
        return said + match[1] * (int(match[2]) < int(match[3]) < 12)
    if way == "one_year" and _ERAS[match["era"]][0] + int(match["count"]) == int(match["year"]):
        return f"{match['year']}年"  # 同じ年を二通りに書いた「1943年(昭和18年)」。食い違えば、二つの年と読む
    return _english(match) if way == "english" else _arabic(match) if way == "arabic" else said


def _english(match: _Match) -> str:
    """「twenty-four」「two hundred and fifty」「1.5 million」。語だけの数は、後ろに単位があるときだけ読む。"""
    if match["follows"] is None and not match[0][0].isdigit():
        return match[0]
    total = part = Fraction(0)
    for word in re.findall(r"[a-z]+|[\d.]+", match[0].lower()):
        size = _ENGLISH["scales"].get(word, 1)
        if size > 1:
            total, part = (total + (part or 1) * size, Fraction(0)) if size > 100 else (total, (part or 1) * size)
        elif word not in ("a", "and"):
            part += _COUNTS[word] if word in _COUNTS else Fraction(word)
    return str(total + part) if (total + part).denominator == 1 else str(float(total + part))


def _arabic(match: _Match) -> str:
    """数の部分だけを「1450」「97415000000」「2.4」の形に直す。

    算用数字で始まる数（`5万`、`974億1,500万`）はいつも読む。漢字だけの数は、後ろに単位があり、形態素解析が
    ほかの語の一部（三井、六本木、八百屋）と言わないときだけ読む。「数百円」「何十人」は、数が決まらないので読まない。
    """
    run, (start, end), text = match[0], match.span(), match.string
    if not re.search(r"\d", run):
        if not _FOLLOWS_KANJI.match(text, end) and not text.endswith("分の", 0, start):
            return run
        unit = _AFTER_KANJI.match(text, end)
        limit = unit.end() if unit else end  # 数を含む語は、固有名詞ではなく、数と単位からはみ出さない
        words = [word for word in parts_of_speech(text) if word[0] < end and word[1] > start]
        if any(kind == "固有名詞" or first < start or last > limit for first, last, kind in words):
            return run
    if re.fullmatch(_ARABIC, run):
        return run.replace(",", "")  # 先頭の 0 を残すため、数にはしない
    value = read_number(re.sub(r"\s", "", run))
    return str(value) if value is not None and value.denominator == 1 else run


def read_number(run: str, marks: str = "兆億万千百十") -> Fraction | None:
    """「千九百四十三」「二〇二四」「974億1,500万」「97,415百万」「1.5億」を読む。読めなければ None。

    大きい位（marks）から順に、その前（いくつ分か）と後ろ（残り）に分けて読む。位の並びが大きい順でない（百千）、
    位だけで数が無い（万）、おおよその数（二三日）は読まない。
    """
    if re.fullmatch(rf"(?:{_ARABIC})?", run):
        return Fraction(run.replace(",", "") or 0)
    run = "".join(_KANJI.get(letter, letter) for letter in run)
    if not marks:
        digits = "".join(_DIGITS.get(letter, "?") for letter in run)
        return None if "?" in digits or (len(digits) == 2 and digits in "123456789") else Fraction(digits)
    head, mark, tail = run.partition(marks[0])
    if not mark:
        return read_number(run, marks[1:])
    large = mark in "兆億万"
    many = read_number(head, "千百十") if large else read_number(head or "1", "")
    rest = read_number(tail, marks[1:])
    if rest is None and mark == "百" and len(tail) == 2:  # 百二三
        rest = read_number("〇" + tail, "")
    return None if many is None or rest is None or (large and not many) else many * _SIZES[mark] + rest


def _any_of(names: Iterable[str]) -> str:
    """どれかの語。英字の語は語の終わりまで見て、記号（L と l、g）でなければ大文字でもよい。"""
    found = []
    for name in sorted(names, key=len, reverse=True):
        pattern = re.escape(name).replace(r"\ ", r"[\s-]") + ("(?![A-Za-z])" if name[-1].isascii() else "")
        found.append(f"(?i:{pattern})" if name.isascii() and len(name) > 2 else pattern)
    return "|".join(found)


def _compile(pattern: str) -> re.Pattern[str]:
    while named := re.search(r"\{([a-z_]+)\}", pattern):
        pattern = pattern.replace(named[0], _PARTS[named[1]])
    return re.compile(pattern)


_PARTS: dict[str, str] = _TABLE["parts"] | {
    "unit": _any_of(_UNITS),
    "noun": _any_of(name for name in _UNITS if name.isascii() and len(name) > 2),
    "after_kanji": _any_of([*(name for name in _UNITS if name not in _DIGITS_ONLY), "年", "月", "時"]),
    "prefix": _any_of(_TABLE["prefixes"]),
    "noon": _any_of(_CLOCK),
    "afternoon": _any_of(word for word, (first, last) in _CLOCK.items() if last > first),
    "era": "|".join(_TABLE["eras"]),
    "numeral": "".join(letter for letter in _KANJI if letter not in "○◯"),
    "scales": "|".join(_ENGLISH["scales"]),
    **{name: _ENGLISH[name].replace(" ", "|") for name in ("words", "tens")},
    "ignore": "|".join([*_GRAMMAR["idioms"].split(), *_GRAMMAR["ignore"]]),
}
_ARABIC, _AFTER_KANJI, _FOLLOWS_KANJI = _PARTS["arabic"], _compile("{after_kanji}"), _compile("{follows_kanji}")
_START, _JOINT, _ATTACHED, _FILLER = (_compile(_PARTS[name]) for name in ("start", "joint", "attached", "filler"))
_RULES = [(_compile(pattern), globals()["_" + build]) for build, pattern in _GRAMMAR["rules"]]
_REWRITES = [(_compile(pattern), new, *way) for pattern, new, *way in _GRAMMAR["rewrites"]]


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
    said = quantities(answer, codes=True)
    return [it for it in said if not any(it.covers(one) or (not one.unit and one.covers(it)) for one in known)]


def matches(answer: str, expected: Iterable[str], reference: str = "") -> bool:
    """正解の数値と語をすべて言い、ほかの数値を言っていないか。打ち消しや、以上か未満かは見えない。

    正解の文（reference）があれば、そこに書いてある数値は「ほかの数値」ではない。
    """
    return all(states(answer, one) for one in expected) and not unexpected(answer, [*expected, reference])


def _contains(text: str, words: str) -> bool:
    """同じ字の並びがあるか。英数字の途中（18011 の 8011、nice の ice）では合わせない。"""
    left = r"(?<![a-z0-9])(?<!\d\.)" if re.match("[a-z0-9]", words) else ""
    left += "(?<![数何一二三四五六七八九十百千])" if words[:1] in _KANJI else ""  # 二十数名 の 十数名
    right = r"(?![a-z0-9]|\.\d)" if re.search("[a-z0-9]$", words) else ""
    return re.search(left + re.sub(r"\\? |(?<=\d)(?=[a-z])", " ?", re.escape(words)) + right, text) is not None


def _compact(text: str) -> str:
    """空白を除く。英語の語の切れ目だけは残す（costs 690 yen の s と 6 をつなげないため）。"""
    return re.sub(r"(?<![a-z0-9])\s+|\s+(?![a-z0-9])", "", re.sub(r"\s+", " ", readable(text).lower()))
