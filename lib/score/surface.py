"""文字と語の似かた: 完全一致・文字 F1・BLEU・ROUGE・chrF と、文の見た目。

どれも「正しいか」は見ない。年だけが違う答えは、正しい言い換えより高い点になる。主役は `lib.text.quantities`。
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sacrebleu
from rapidfuzz import fuzz
from rouge_score import rouge_scorer, tokenizers

from lib.text.quantities import nfkc
from lib.text.words import words

BLIND_SPOTS = {
    "exact_match": "一字でも違えば 0 なので、正しい言い換えも、正しい答えに一言添えたものも、間違いに見える。",
    "char_f1": "字の重なりだけを見るので、一字違いの年も、打ち消しも、ほとんど満点に見える。",
    "bleu": "続いた語の重なりだけを見るので、年の間違いは一語の違いに、正しい言い換えは全部の違いに見える。",
    "rouge": "語の重なりだけを見るので、大事な語とそうでない語の区別も、打ち消しも見えない。",
    "chrf": "続いた字の重なりだけを見るので、一字違いの年も、打ち消しも、ほとんど満点に見える。",
    "appearance": "文の見た目だけを数えるので、内容も、日本語と中国語の漢字の区別も見えない。",
}
"""指標ごとの、見えないもの。"""


class JapaneseTokenizer(tokenizers.Tokenizer):
    """ROUGE に渡す分かち書き（NFKC → fugashi → 記号を除く）。既定のものは英小文字と数字のほかを捨てる。"""

    def tokenize(self, text: str) -> list[str]:
        """語の列。"""
        return words(text)


def llm_jp_text(text: str) -> str:
    """llm-jp-eval の前処理: 前後の空白を除き、最初の空行で切り、NFKC にそろえる。波ダッシュはそろえない。"""
    return unicodedata.normalize("NFKC", text.strip().split("\n\n")[0]).strip()


def exact_match(answer: str, reference: str) -> float:
    """llm-jp-eval の完全一致（0 か 1）。

    Source: Han et al. (2024), llm-jp-eval。
    """
    return float(llm_jp_text(answer) == llm_jp_text(reference))


def char_f1(answer: str, reference: str) -> float:
    """llm-jp-eval の char_f1（0–1）: 空白で切った語を並べ替えてから、同じ順に並ぶ字の割合。

    Source: rapidfuzz の `fuzz.token_sort_ratio`。
    """
    return fuzz.token_sort_ratio(llm_jp_text(answer), llm_jp_text(reference)) / 100


def jsquad_text(text: str) -> str:
    """JSQuAD の前処理: 英字を小文字にし、文末の「。」を除き、空白をつめる。NFKC は掛けない。"""
    return " ".join(text.lower().rstrip("。").split())


def jsquad_exact_match(answer: str, reference: str) -> float:
    """JSQuAD の完全一致（0 か 1）。

    Source: Kurihara et al. (2022), *JGLUE* と、その公開された採点（transformers への修正）。
    """
    return float(jsquad_text(answer) == jsquad_text(reference))


def jsquad_f1(answer: str, reference: str) -> float:
    """JSQuAD の文字 F1（0–1）: 順を問わない、字の重なり。片方が空なら、両方が空のときだけ 1。

    Source: `jsquad_exact_match` と同じ。
    """
    said, gold = Counter(jsquad_text(answer)), Counter(jsquad_text(reference))
    if not said or not gold:
        return float(said == gold)
    return 2 * (said & gold).total() / (said.total() + gold.total())


def bleu(answers: Sequence[str], references: Sequence[str], split: str = "fugashi") -> float:
    """全体での BLEU（0–100）。

    Args:
        answers: 答え。形は (n,)。
        references: 正解の文。形は (n,)、同じ順。
        split: 語の分け方。"fugashi"（UniDic、記号を除く）、"ja-mecab"（IPADIC、sacrebleu の決まり）、
            sacrebleu の既定の "13a"（日本語では文全体が一語になり、同じ文でも 0 になる、悪い例）。

    Source: Papineni et al. (2002)。計算は sacrebleu（Post 2018）。
    """
    said, gold = list(answers), list(references)
    if split == "fugashi":
        said, gold = ([" ".join(words(text)) for text in texts] for texts in (said, gold))
    tokenize = "none" if split == "fugashi" else split
    return float(sacrebleu.corpus_bleu(said, [gold], tokenize=tokenize, force=True).score)


def chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """全体での chrF（0–100、字の 1〜6 連）。語に分けない。

    Source: Popović (2015)。計算は sacrebleu。
    """
    return float(sacrebleu.corpus_chrf(list(answers), [list(references)]).score)


def rouge(answers: Sequence[str], references: Sequence[str], japanese: bool = True) -> dict[str, float]:
    """ROUGE-1・2・L の F 値（0–1）の平均。

    Args:
        answers: 答え。形は (n,)。
        references: 正解の文。形は (n,)、同じ順。
        japanese: False なら rouge_score の既定の分け方（日本語の字を全部捨てる、悪い例）。

    Source: Lin (2004)。計算は rouge_score。
    """
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(kinds, tokenizer=JapaneseTokenizer() if japanese else None)
    scores = [scorer.score(gold, said) for said, gold in zip(answers, references, strict=True)]
    return {kind: sum(score[kind].fmeasure for score in scores) / max(len(scores), 1) for kind in kinds}


def distinct(text: str, length: int = 1) -> float:
    """字の多様さ（0–1）: length 字の並びの種類 ÷ 数。長い文ほど下がるので、同じくらいの長さで比べる。

    Source: Li et al. (2016) の distinct-n を、字で数えたもの。
    """
    grams = [text[i : i + length] for i in range(len(text) - length + 1)]
    return len(set(grams)) / max(len(grams), 1)


def japanese_share(text: str) -> float:
    """文字（数字・記号・空白を除く）のうち、仮名と漢字の割合（0–1）。文字が無ければ 0。"""
    letters = [letter for letter in nfkc(text) if letter.isalpha()]
    return sum(map(_is_japanese, letters)) / max(len(letters), 1)


def appearance(texts: Sequence[str], tokenizer: Any = None) -> dict[str, float]:
    """文の見た目の平均。

    Args:
        texts: 文章。形は (n,)。
        tokenizer: モデルのトークナイザ。渡すと、トークン数（特別なトークンを除く）も数える。

    Returns:
        `characters`（字数）、`distinct_1`・`distinct_2`（`distinct`）、`japanese_share`、あれば `tokens`。
    """
    found: dict[str, list[float]] = {
        "characters": [len(text) for text in texts],
        "distinct_1": [distinct(text) for text in texts],
        "distinct_2": [distinct(text, 2) for text in texts],
        "japanese_share": [japanese_share(text) for text in texts],
    }
    if tokenizer is not None:
        found["tokens"] = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    return {name: sum(values) / max(len(values), 1) for name, values in found.items()}


def _is_japanese(letter: str) -> bool:
    return "ぁ" <= letter <= "ヿ" or "㐀" <= letter <= "鿿" or letter in "々〆" or letter >= "\U00020000"
