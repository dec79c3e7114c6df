"""敬語: 一文ごとに、丁寧体か・尊敬語があるか・謙譲語があるかを見る。

分類は「敬語の指針」（文化審議会答申、2007）による。謙譲語は、謙譲語Ⅰ（伺う・申し上げる）と
謙譲語Ⅱ（丁重語: 参る・申す・いたす・おる）を合わせて数える。名詞の敬語（お名前）と美化語（お茶）は数えない。
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib.text.words import morphemes, sentences

BLIND_SPOT = "言葉づかいの形だけを見る。内容が正しいか、敬語の向きが正しいか、尊敬の「れる・られる」は見えない。"

_QUOTE = re.compile(r"「[^「」]*」|『[^『』]*』")
_PREDICATE = ("動詞", "形容詞", "助動詞")
_TAIL = ("助詞-終助詞", "助詞-副助詞", "補助記号")
_RESPECTFUL = {"いらっしゃる", "仰る", "為さる", "下さる", "召し上がる", "御覧"}
_HUMBLE = {
    *("致す", "頂く", "伺う", "参る", "申す", "申し上げる", "存ずる", "存じる", "存じ上げる"),
    *("差し上げる", "承る", "賜る", "頂戴", "拝見", "拝借", "拝聴", "拝読", "拝受"),
}
_NOT_ACTS = {"世話", "馳走", "迷惑", "邪魔"}
"""「お世話になる」のように、お…になる の形でも尊敬語でない名詞。"""


@dataclass(frozen=True)
class Style:
    """一文の敬語。

    Attributes:
        polite: 述語が丁寧体（です・ます・ございます・ください）で終わるか。
        respectful: 動詞・補助動詞に尊敬語があるか。
        humble: 動詞・補助動詞に謙譲語（Ⅰ・Ⅱ）があるか。
    """

    polite: bool
    respectful: bool
    humble: bool


def style(sentence: str) -> Style:
    """一文の敬語を、unidic の cType（助動詞-デス／助動詞-マス）と lemma で判定する。

    かぎ括弧の中は書き手の言葉ではないので見ない（文全体がかぎ括弧なら、その中を見る）。

    Args:
        sentence: 一文。文章は `lib.text.words.sentences` で分けておく。

    Source: 文化審議会答申「敬語の指針」（2007）。
    """
    own = sentence
    while (without := _QUOTE.sub("", own)) != own:
        own = without
    if not re.search(r"\w", own):
        own = re.sub(r"[「」『』]", "", sentence)
    tokens = morphemes(own)
    return Style(_is_polite(tokens), _is_respectful(tokens), _is_humble(tokens))


def shares(texts: Sequence[str]) -> dict[str, float]:
    """文章の列の、丁寧体・尊敬語・謙譲語の文の割合（0–1）と文の数。

    文が一つも無ければ、割合は 0。
    """
    found = [style(sentence) for text in texts for sentence in sentences(text)]
    total = len(found)
    return {
        "polite": sum(one.polite for one in found) / max(total, 1),
        "respectful": sum(one.respectful for one in found) / max(total, 1),
        "humble": sum(one.humble for one in found) / max(total, 1),
        "sentences": float(total),
    }


def _marks_politeness(token: Any) -> bool:
    feature = token.feature
    if feature.cType == "助動詞-デス":
        return token.surface not in ("でしょ", "っす")  # くだけた話し言葉
    return feature.cType == "助動詞-マス" or (feature.lemma == "下さる" and feature.cForm == "命令形")


def _is_polite(tokens: list[Any]) -> bool:
    """最後の述語が丁寧体で、そこで文が終わるか（後ろに続くのは終助詞か、倒置された語だけ）。"""
    last = next((i for i in reversed(range(len(tokens))) if tokens[i].feature.pos1 in _PREDICATE), None)
    if last is None or (tokens[last].feature.cForm or "").startswith("仮定形"):
        return False
    first = last
    while first > 0 and tokens[first - 1].feature.pos1 == "助動詞":
        first -= 1
    if not any(map(_marks_politeness, tokens[first : last + 1])):
        return False
    rest = tokens[last + 1 :]
    kinds = [f"{token.feature.pos1}-{token.feature.pos2}" for token in rest]
    if kinds and kinds[0] == "助詞-接続助詞":  # 「思いますけど。」で終われば述語、続きがあれば途中
        return not any(kind.startswith("名詞") for kind in kinds)
    return not kinds or kinds[0].startswith(_TAIL)


def _is_respectful(tokens: list[Any]) -> bool:
    for i, token in enumerate(tokens):
        lemma = token.feature.lemma
        if lemma in _RESPECTFUL and not (lemma == "為さる" and token.feature.cForm == "命令形"):
            return True
        act = _act_after_prefix(tokens, i)
        if act is None or tokens[act - 1].feature.lemma in _NOT_ACTS:
            continue
        follows = [follower.feature for follower in tokens[act : act + 2]]
        if len(follows) == 2 and follows[0].lemma == "に" and follows[1].lemma == "成る":
            return True
        if tokens[act - 1].feature.pos1 == "動詞" and follows and follows[0].cType == "助動詞-デス":
            return True  # お探しですか
    return False


def _is_humble(tokens: list[Any]) -> bool:
    for i, token in enumerate(tokens):
        feature = token.feature
        if feature.lemma in _HUMBLE or (feature.lemma == "居る" and feature.lForm == "オル"):
            return True
        act = _act_after_prefix(tokens, i)
        if act is None:
            continue
        follows = [follower.feature.lemma for follower in tokens[act : act + 2]]
        if follows[:1] in (["為る"], ["出来る"], ["願う"]) or follows == ["に", "上がる"]:
            return True
    return False


def _act_after_prefix(tokens: list[Any], i: int) -> int | None:
    """お/ご ＋ 動作（動詞の連用形、サ変の名詞、「知らせ」のような転成名詞）の次の位置。動作でなければ None。"""
    if tokens[i].feature.pos1 != "接頭辞" or tokens[i].feature.lemma != "御" or i + 1 >= len(tokens):
        return None
    act = tokens[i + 1].feature
    derived = act.pos3 == "サ変可能" or re.search(r"[ぁ-ん]$", act.lemma or "")
    return i + 2 if act.pos1 == "動詞" or (act.pos1 == "名詞" and derived) else None
