"""文字の検査と修理: 文字化け、見えない文字、半角・全角、別の言語の文字、個人情報らしい並び。

問題の無い文は、`is_suspect` のふるいだけで済ませる（10 万行を分単位で見るため）。
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress

# GB2312 の漢字から JIS X 0213 の漢字を除いた、日本語では使わない簡体字。
_HANZI = bytes(b for high in range(0xB0, 0xF8) for low in range(0xA1, 0xFF) for b in (high, low)).decode(
    "gb2312", "ignore"
)
_SIMPLIFIED = "".join(sorted(set(_HANZI) - set(_HANZI.encode("euc_jis_2004", "ignore").decode("euc_jis_2004"))))

_JAPANESE = re.compile("[ぁ-んァ-ヶ一-鿿]")
_KANA = re.compile("[ぁ-んァ-ヶ]")
_HALF_KANA = "\uff61-\uff9f"
_FULL_ALNUM = "０-９Ａ-Ｚａ-ｚ"
_NARROW = re.compile(f"[{_HALF_KANA}]+|[{_FULL_ALNUM}]+")
# 絵文字をつなぐ U+200D は正しい使い方なので除く。
_HIDDEN = (
    "\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
)
_INVISIBLE = re.compile(f"[{_HIDDEN}]|(?<![\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])\u200d")
CONTROL_TOKEN = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:start_of_turn|end_of_turn|bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>"
)
"""会話の区切りに使われる印。文の中にあると、そこで会話が切れたと読まれる。"""
CHARACTERS = {
    "control-token": CONTROL_TOKEN,
    "invisible": _INVISIBLE,
    "half-width-kana": re.compile(f"[{_HALF_KANA}]"),
    "full-width-alnum": re.compile(f"[{_FULL_ALNUM}]"),
}
"""文字の種類の検査（種類 → あれば問題になる並び）。"""
# 文字の範囲と、何字続いたら数えるか。キリル・アラビア・タイの字は顔文字に一字だけ使われる。
_FOREIGN = {
    "ハングル": ("\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3", 1),
    "キリル文字": ("\u0400-\u04ff", 2),
    "アラビア文字": ("\u0600-\u06ff", 2),
    "タイ文字": ("\u0e00-\u0e7f", 2),
    "簡体字": (_SIMPLIFIED, 1),
}
_FOREIGN_PATTERNS = {name: re.compile(f"[{chars}]{{{run}}}") for name, (chars, run) in _FOREIGN.items()}

# UTF-8 を cp932 で開くと、仮名は 縺・繧・繝、よく使う漢字は 譁・荳 などで始まる並びになる。
_LEADS = "縺繧繝縲譁蟄譛荳蜷螟莉鬮髟驥遘"
_AS_CP932 = re.compile("[縺繧繝][\uff61-\uff9f・]|縺[^ぁ-ん\\s].{0,3}縺[^ぁ-ん\\s]")
# UTF-8 を latin-1 か cp1252 で開くと、続きのバイトがこの範囲の字になる。
_NEXT = "[\x80-\xbf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€]"
_AS_LATIN = re.compile(
    f"[ÂÃ][\x80-\xbf]|â€|ã[\x80-\x9f]|ã{_NEXT}{{2}}|(?:ã{_NEXT}){{2}}|(?:[äåæçèéï]{_NEXT}{{2}}.{{0,2}}){{2}}"
)
_LATIN_RUN = re.compile("[\x80-\xff‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€]+")

# 全角の数字と記号、横棒の異体を半角にそろえてから個人情報を探す。字数は変えない。
_PLAIN = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20} | dict.fromkeys(map(ord, "‐‑‒–—―−ー"), 0x2D)

_ODD = re.compile(
    f"[@＠\ufffdÂÃâãäåæçèéï{_LEADS}{_HALF_KANA}{_FULL_ALNUM}{_HIDDEN}\u200d"
    + "".join(chars for chars, _ in _FOREIGN.values())
    + "]"
)
_LONG_NUMBER = re.compile("\\d(?:[-‐‑‒–—―−ー－()（）\\s]{0,3}\\d){8}")


def is_suspect(text: str) -> bool:
    """どれかの検査に掛かるかもしれないか。False なら、この先の検査は要らない。"""
    return any(pattern.search(text) for pattern in (_ODD, _LONG_NUMBER, CONTROL_TOKEN))


def is_mojibake(text: str) -> bool:
    """文字化けしているか。「縺れる」「繧繝」のような正しい語は数えない。"""
    if "\ufffd" in text or _AS_CP932.search(text) or _AS_LATIN.search(text):
        return True
    leads = sum(map(text.replace("繧繝", "").count, _LEADS))
    return (leads >= 3 and leads * 10 >= len(text)) or undo_mojibake(text) is not None


def undo_mojibake(text: str) -> str | None:
    """文字化けを逆にたどって戻す。きれいな日本語に戻らなければ None。"""
    found = [_LATIN_RUN.sub(_latin_to_utf8, text)]
    with suppress(UnicodeError):
        found.append(text.encode("cp932").decode("utf-8"))
    for new in found:
        clean = not (_AS_CP932.search(new) or _AS_LATIN.search(new) or _INVISIBLE.search(new))
        if new != text and _JAPANESE.search(new) and clean and "\ufffd" not in new:
            return new
    return None


def _latin_to_utf8(run: re.Match[str]) -> str:
    try:
        return b"".join(c.encode("latin-1" if c < "\u0100" else "cp1252") for c in run[0]).decode("utf-8")
    except UnicodeError:
        return run[0]


def foreign_scripts(text: str) -> list[str]:
    """日本語の文に混じった、別の言語の文字の種類。仮名の無い文は日本語と見ない。"""
    if not _KANA.search(text):
        return []
    return [name for name, pattern in _FOREIGN_PATTERNS.items() if pattern.search(text)]


def _luhn(digits: str) -> bool:
    """カード番号の検査数字（ISO/IEC 7812-1）。"""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0


def _my_number(digits: str) -> bool:
    """個人番号の検査数字（平成26年総務省令第85号 第5条）。"""
    body = [int(d) for d in reversed(digits[:-1])]
    rest = sum(p * (n + 1 if n <= 6 else n - 5) for n, p in enumerate(body, 1)) % 11
    return int(digits[-1]) == (0 if rest <= 1 else 11 - rest)


def _phone(digits: str) -> bool:
    return re.fullmatch("0[5-9]0\\d{8}|0[1-9]\\d{8}", digits) is not None


_ALONE, _GAP = "(?<!\\d)(?<!\\d-)", "[-() ]{0,2}"
_PERSONAL: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "card": (re.compile(f"{_ALONE}(?:[3-6](?:[- ]?\\d){{12,18}}|2[2-7](?:[- ]?\\d){{14}})(?!-?\\d)"), _luhn),
    "my-number": (re.compile(f"{_ALONE}\\d{{4}}([- ]?)\\d{{4}}\\1\\d{{4}}(?!-?\\d)"), _my_number),
    "freephone": (re.compile(f"{_ALONE}0(?:120|570|800){_GAP}\\d{{2,3}}{_GAP}\\d{{3,4}}(?!\\d)"), bool),
    "phone": (
        re.compile(
            f"{_ALONE}(?:\\+81[- ]?(?:\\(0\\))?|0|\\(0)\\d{{1,4}}[-() ]{{1,2}}\\d{{1,4}}{_GAP}\\d{{4}}(?!\\d)"
            f"|{_ALONE}(?:\\+81|0)[5-9]0\\d{{8}}(?!\\d)"
        ),
        _phone,
    ),
    "mail": (re.compile("[\\w.%+-]+@(?!example\\.)[A-Za-z0-9-]+(?:\\.[A-Za-z0-9-]+)+", re.ASCII), bool),
}


def personal_data(text: str) -> Iterator[tuple[str, str]]:
    """個人情報らしい並びを (種類, 伏せ字) で返す。値そのものは返さない。

    種類は card・my-number・phone・mail と、個人のものではない freephone。example.com などは数えない。
    """
    plain = text.translate(_PLAIN)
    for kind, (pattern, is_valid) in _PERSONAL.items():
        rest, end = "", 0
        for found in pattern.finditer(plain):
            digits = re.sub("\\D", "", found[0].replace("(0)", "").replace("+81", "0"))
            if is_valid(digits or found[0]):
                yield kind, re.sub("\\w", "*", found[0])
                rest, end = rest + plain[end : found.start()] + " ", found.end()
        plain = rest + plain[end:]


def repair(text: str) -> tuple[str, list[str]]:
    """決まったやり方で直せるところだけを直し、(直した文, したこと) を返す。

    戻せない文字化けのある文は、ほかの修理でさらに壊さないよう、そのまま返す。
    """
    steps: list[tuple[str, str]] = []
    if is_suspect(text):
        if is_mojibake(text):
            back = undo_mojibake(text)
            if back is None:
                return text, []
            steps.append(("文字化けを戻した", back))
        visible = _INVISIBLE.sub("", steps[-1][1] if steps else text)
        steps.append(("見えない文字を除いた", visible))
        steps.append(("半角カナと全角英数字をそろえた", _NARROW.sub(lambda run: _nfkc(run[0]), visible)))
    steps.append(("前後の空白を除いた", (steps[-1][1] if steps else text).strip()))
    befores = [text] + [after for _, after in steps]
    return befores[-1], [what for before, (what, after) in zip(befores, steps, strict=False) if before != after]


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
