"""敬語の評価: 一文ごとに、丁寧体か・尊敬語があるか・謙譲語があるかを見る。

分類は「敬語の指針」（文化審議会答申、2007）による。謙譲語は、謙譲語Ⅰ（伺う・申し上げる）と
謙譲語Ⅱ（丁重語: 参る・申す・いたす・おる）を合わせて数える。名詞の敬語（お名前）と美化語（お茶）は数えない。
"""

import re
import tomllib
from collections import namedtuple

from lib.files import REPOSITORY
from lib.text.words import morphemes

_QUOTE = re.compile(r"「[^「」]*」|『[^『』]*』")
_RULES = tomllib.loads((REPOSITORY / "data" / "politeness" / "rules.toml").read_text(encoding="utf-8"))
_PARTS = _RULES.pop("parts")
_FORMS = {name: re.compile(re.sub(r"\{([a-z_]+)\}", lambda m: f"(?:{_PARTS[m[1]]})", text), re.M | re.X)
          for name, text in _RULES.items()}  # fmt: skip
# 一文の敬語: 述語が丁寧体（です・ます・ございます・ください）で終わるか、尊敬語・謙譲語の動詞があるか。
Style = namedtuple("Style", "polite respectful humble")


def style(sentence: str) -> Style:
    """一文（`lib.text.words.sentences` で分けたもの）の敬語を、`data/politeness/rules.toml` の形で判定する。

    かぎ括弧の中は書き手の言葉ではないので見ない（文全体がかぎ括弧なら、その中を見る）。
    """
    own = sentence
    while (without := _QUOTE.sub("", own)) != own:
        own = without
    said = ""
    for token in morphemes(own if re.search(r"\w", own) else re.sub(r"[「」『』]", "", sentence)):
        word = token.feature
        parts = (f"{word.pos1}-{word.pos2}-{word.pos3}", word.lemma, word.lForm, token.surface, word.cType, word.cForm)
        said += " ".join(map(str, parts)) + "\n"
    return Style(**{name: bool(form.search(said)) for name, form in _FORMS.items()})
