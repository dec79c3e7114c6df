"""全角・漢数字・万や億・桁区切りを、算用数字に読み替える。単位や日付のことは知らない。"""

import re
import unicodedata
from fractions import Fraction

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
