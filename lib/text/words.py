"""日本語を語に分ける（ROUGE・BLEU の分かち書きと、敬語の判定が使う）。半角カナなどの幅をそろえる。"""

import re
import unicodedata
from functools import cache, lru_cache
from typing import Any

import jaconv
from fugashi import Tagger

from lib.errors import WorkshopError

_END = re.compile(r"(?<=[。！？!?\n])(?![。！？!?\n」』）)])")
_EXTRA = str.maketrans({"\u301c": "~", "\u2212": "-"})  # NFKC が写さない波ダッシュとマイナス
# 半角カナ（前の仮名に付く濁点も）、濁点・半濁点の分かれた仮名、全角の英数字。
_WIDTH = re.compile("[ぁ-ヶー]?[\uff61-\uff9f]+|[ぁ-ヶー][\u3099\u309a]+|[０-９Ａ-Ｚａ-ｚ]+")


@cache
def _tagger() -> Tagger:
    try:
        from unidic_lite import DICDIR  # 名指ししないと、fugashi は unidic（中身が別売りの辞書）があればそちらを選ぶ

        return Tagger(f'-d "{DICDIR}" -r "{DICDIR}/mecabrc"')
    except (ImportError, RuntimeError):
        raise WorkshopError("辞書 unidic-lite が見つかりません", "pip install unidic-lite を実行してください") from None


def morphemes(text: str) -> list[Any]:
    """語の列（fugashi の `UnidicNode`。`surface` と、unidic の `feature` を持つ）。空の文なら空の列。

    Raises:
        WorkshopError: 辞書が入っていないとき。

    Source: McCann (2020), *fugashi, a Tool for Tokenizing Japanese in Python*。辞書は unidic-lite（UniDic 2.1.2）。
    """
    return list(_tagger()(text))


@lru_cache(maxsize=64)
def parts_of_speech(text: str) -> list[tuple[int, int, str]]:
    """語の（始まり, 終わりの次, 品詞の細分）。細分は「数詞」「固有名詞」など。"""
    found, end = [], 0
    for word in morphemes(text):
        end = (start := text.index(word.surface, end)) + len(word.surface)
        found.append((start, end, word.feature.pos2))
    return found


def nfkc(text: str) -> str:
    """全角・半角の違いを消す（NFKC、Unicode UAX #15。波ダッシュと全角マイナスも `~` と `-` にする）。"""
    return unicodedata.normalize("NFKC", text).translate(_EXTRA)


def words(text: str) -> list[str]:
    """NFKC にそろえ、記号と空白を除いた語の列（ROUGE と BLEU の単位）。"""
    return [word.surface for word in morphemes(nfkc(text)) if word.feature.pos1 not in ("補助記号", "空白")]


def sentences(text: str) -> list[str]:
    """句点・疑問符・感嘆符・改行で文に分ける。かぎ括弧の中では切らない。空の文は捨てる。"""
    found, depth, current = [], 0, ""
    for piece in _END.split(text):
        current += piece
        depth += sum(piece.count(mark) for mark in "「『") - sum(piece.count(mark) for mark in "」』")
        if depth <= 0 or piece.endswith("\n"):  # 閉じ忘れの括弧が、続く行を飲み込まないように
            found.append(current.strip())
            depth, current = 0, ""
    return [sentence for sentence in [*found, current.strip()] if sentence]


def normalise_width(text: str) -> str:
    """半角カナを全角に、全角の英数字を半角に、分かれた濁点を一字にする。ほかの字は一字も変えない。"""
    # jaconv.normalize は 〜 “ － なども替えるので、直す並びだけに掛ける（NFKC は NFC の合成も含む）。
    return _WIDTH.sub(lambda run: jaconv.normalize(run[0]), text)
