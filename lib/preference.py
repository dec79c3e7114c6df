"""選好学習の下働き: 回答の対数確率と、ペアの正解率。

損失そのもの（DPO・ORPO）はノートブック 05 に書く。
"""

from collections.abc import Sequence
from typing import Any

import torch

from lib.answering import render


def encode_pair(tokenizer: Any, row: dict[str, Any], side: str) -> tuple[list[int], list[int]]:
    """選好データの 1 行を (入力の ID, 回答の ID) にする。回答は EOS で終わる。

    Args:
        tokenizer: チャットテンプレートを持つトークナイザ。
        row: `prompt` / `chosen` / `rejected` を持つ行。
        side: "chosen" か "rejected"。
    """
    prompt = render(tokenizer, row["prompt"])
    whole = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return ids, tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]


def answer_logprobs(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], side: str) -> torch.Tensor:
    """各行の回答の対数確率の合計（nat）を返す。形は (行数,)、fp32。

    勾配は呼び出し側の文脈に従う（評価では `torch.inference_mode()` の中で呼ぶ）。
    """
    encoded = [encode_pair(tokenizer, row, side) for row in rows]
    width = max(len(prompt) + len(reply) for prompt, reply in encoded)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    attention = torch.zeros((len(rows), width), dtype=torch.long)
    target = torch.full((len(rows), width), -100)
    for index, (prompt, reply) in enumerate(encoded):
        length = len(prompt) + len(reply)
        ids[index, :length] = torch.tensor(prompt + reply)
        attention[index, :length] = 1
        target[index, len(prompt) : length] = torch.tensor(reply)
    ids, attention, target = (tensor.to(model.device) for tensor in (ids, attention, target))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(input_ids=ids, attention_mask=attention).last_hidden_state[:, :-1]
    labels = target[:, 1:]
    keep = labels != -100  # 出力層は回答の位置だけ通す。語彙は 5 万語あり、全部通すと時間の大半を捨てる
    logprobs = base.lm_head(hidden[keep]).float().log_softmax(-1).gather(-1, labels[keep].unsqueeze(-1)).squeeze(-1)
    return torch.zeros(labels.shape, device=labels.device).masked_scatter(keep, logprobs).sum(-1)


def pair_margins(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], batch: int = 8) -> list[float]:
    """各ペアの log π(chosen) − log π(rejected)（nat）を返す。"""
    margins: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            chunk = rows[start : start + batch]
            good = answer_logprobs(model, tokenizer, chunk, "chosen")
            bad = answer_logprobs(model, tokenizer, chunk, "rejected")
            margins += (good - bad).tolist()
    return margins
