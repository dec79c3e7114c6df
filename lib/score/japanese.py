"""敬語の評価: 一文ごとに、丁寧体か・尊敬語があるか・謙譲語があるかを見る。

分類は「敬語の指針」（文化審議会答申、2007）による。謙譲語は、謙譲語Ⅰ（伺う・申し上げる）と
謙譲語Ⅱ（丁重語: 参る・申す・いたす・おる）を合わせて数える。名詞の敬語（お名前）と美化語（お茶）は数えない。
"""

import re
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

from lib.text.words import morphemes, sentences

_QUOTE = re.compile(r"「[^「」]*」|『[^『』]*』")
_RESPECTFUL = {"いらっしゃる", "仰る", "為さる", "下さる", "召し上がる", "御覧"}
_HUMBLE = {
    *("致す", "頂く", "伺う", "参る", "申す", "申し上げる", "存ずる", "存じる", "存じ上げる"),
    *("差し上げる", "承る", "賜る", "頂戴", "拝見", "拝借", "拝聴", "拝読", "拝受"),
}
_NOT_ACTS = {"世話", "馳走", "迷惑", "邪魔"}  # お…になる の形でも、尊敬語でない名詞
# 一文の敬語: 述語が丁寧体（です・ます・ございます・ください）で終わるか、尊敬語・謙譲語の動詞があるか。
Style = namedtuple("Style", "polite respectful humble")


def style(sentence: str) -> Style:
    """一文（`lib.text.words.sentences` で分けたもの）の敬語を、unidic の cType と lemma で判定する。

    かぎ括弧の中は書き手の言葉ではないので見ない（文全体がかぎ括弧なら、その中を見る）。
    """
    own = sentence
    while (without := _QUOTE.sub("", own)) != own:
        own = without
    tokens = morphemes(own if re.search(r"\w", own) else re.sub(r"[「」『』]", "", sentence))
    return Style(_is_polite(tokens), *_honorifics([token.feature for token in tokens]))


def shares(texts: Sequence[str]) -> dict[str, float]:
    """丁寧体・尊敬語・謙譲語の文の割合（0–1、文が無ければ 0）と、文の数。"""
    found = [style(sentence) for text in texts for sentence in sentences(text)]
    rates = {kind: sum(getattr(one, kind) for one in found) / max(len(found), 1) for kind in Style._fields}
    return {**rates, "sentences": float(len(found))}


def _marks_politeness(token: Any) -> bool:
    feature = token.feature
    if feature.cType == "助動詞-デス":
        return token.surface not in ("でしょ", "っす")  # くだけた話し言葉
    return feature.cType == "助動詞-マス" or (feature.lemma == "下さる" and feature.cForm == "命令形")


def _is_polite(tokens: list[Any]) -> bool:
    """最後の述語が丁寧体で、そこで文が終わるか（後ろに続くのは終助詞か、倒置された語だけ）。"""
    predicates = [i for i, token in enumerate(tokens) if token.feature.pos1 in ("動詞", "形容詞", "助動詞")]
    if not predicates or (tokens[predicates[-1]].feature.cForm or "").startswith("仮定形"):
        return False
    first = last = predicates[-1]
    while first > 0 and tokens[first - 1].feature.pos1 == "助動詞":
        first -= 1
    kinds = [f"{token.feature.pos1}-{token.feature.pos2}" for token in tokens[last + 1 :]] or ["補助記号"]
    if kinds[0] == "助詞-接続助詞":  # 「思いますけど。」で終われば述語、続きがあれば途中
        ends = not any(kind.startswith("名詞") for kind in kinds)
    else:
        ends = kinds[0].startswith(("助詞-終助詞", "助詞-副助詞", "補助記号"))
    return ends and any(map(_marks_politeness, tokens[first : last + 1]))


def _honorifics(words: list[Any]) -> tuple[bool, bool]:
    """（尊敬語があるか、謙譲語があるか）。words は unidic の feature の列。"""
    respectful = humble = False
    for i, word in enumerate(words):
        respectful |= word.lemma in _RESPECTFUL and (word.lemma, word.cForm) != ("為さる", "命令形")
        humble |= word.lemma in _HUMBLE or (word.lemma == "居る" and word.lForm == "オル")
        if (word.pos1, word.lemma) != ("接頭辞", "御") or not words[i + 1 :]:
            continue
        act, after = words[i + 1], [follower.lemma for follower in words[i + 2 : i + 4]]
        derived = act.pos3 == "サ変可能" or re.search(r"[ぁ-ん]$", act.lemma or "")  # サ変の名詞か、転成名詞（知らせ）
        if act.pos1 != "動詞" and not (act.pos1 == "名詞" and derived):  # お・ご の後ろが動作でない
            continue
        humble |= after[:1] in (["為る"], ["出来る"], ["願う"]) or after == ["に", "上がる"]
        asked = act.pos1 == "動詞" and after and words[i + 2].cType == "助動詞-デス"  # お探しですか
        respectful |= act.lemma not in _NOT_ACTS and (after == ["に", "成る"] or bool(asked))
    return respectful, humble
