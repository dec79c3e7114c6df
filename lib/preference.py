"""選好学習の下働き: 回答の対数確率と、速い DPO の Trainer。

損失そのもの（DPO・ORPO）はノートブック 05 に書く。
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer

from lib.answering import render
from lib.packing import answer_logits


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


def answer_logprobs(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], *sides: str) -> torch.Tensor:
    """各行の回答の対数確率の合計（nat）を返す。形は (側の数, 行数)、側が一つなら (行数,)。fp32。

    側を二つ渡すと、同じ質問は一度だけ計算する。勾配は呼び出し側の文脈に従う
    （評価では `torch.inference_mode()` の中で呼ぶ）。
    """
    batch = _batch(tokenizer, rows, sides, model.device)
    _, logits = answer_logits(model, model.config, *batch)
    sums = _per_token(logits, batch[2])[0].sum(-1)
    return sums.view(len(sides), len(rows)) if len(sides) > 1 else sums


def answer_kl(model: Any, reference: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], side: str) -> float:
    """回答の各トークンでの KL(モデル ‖ 参照) の平均（nat）。参照からどれだけ離れたかを表す。"""
    batch = _batch(tokenizer, rows, [side], model.device)
    with torch.inference_mode():
        new, old = (answer_logits(m, m.config, *batch)[1].float().log_softmax(-1) for m in (model, reference))
    return (new.exp() * (new - old)).sum(-1).mean().item()


def _batch(tokenizer: Any, rows: Sequence[dict[str, Any]], sides: Sequence[str], device: Any) -> tuple[Any, Any, Any]:
    """右詰め物の束（トークン、詰め物でない所、数えるトークン）。形はどれも (側の数 × 行数, 幅)。"""
    encoded = [encode_pair(tokenizer, row, side) for side in sides for row in rows]
    width = max(len(prompt) + len(reply) for prompt, reply in encoded)
    ids = torch.full((len(encoded), width), tokenizer.pad_token_id)
    attention = torch.zeros((len(encoded), width), dtype=torch.long)
    labels = torch.full((len(encoded), width), -100)
    for index, (prompt, reply) in enumerate(encoded):
        length = len(prompt) + len(reply)
        ids[index, :length] = torch.tensor(prompt + reply)
        attention[index, :length] = 1
        labels[index, len(prompt) : length] = torch.tensor(reply)
    return ids.to(device), attention.to(device), labels.to(device)


def _per_token(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(各トークンの対数確率, 数える所の全語彙の対数確率)。前者の形は (行, 幅 - 1) で、数えない所は 0。"""
    whole = logits.float().log_softmax(-1)
    targets = labels[:, 1:]
    counted = targets != -100
    chosen = whole.gather(-1, targets[counted].unsqueeze(-1)).squeeze(-1)
    return torch.zeros(targets.shape, device=labels.device).masked_scatter(counted, chosen), whole


def pair_margins(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], batch: int = 8) -> list[float]:
    """各ペアの log π(chosen) − log π(rejected)（nat）を返す。"""
    margins: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            good, bad = answer_logprobs(model, tokenizer, rows[start : start + batch], "chosen", "rejected")
            margins += (good - bad).tolist()
    return margins


class PairTrainer(DPOTrainer):
    """TRL の DPOTrainer と同じ損失を、ペアの質問を一度だけ計算して求める（差は丸めの分だけ。05 が毎回確かめる）。

    参照の対数確率も同じように省くには、`precompute_ref_log_probs=True` にする。
    """

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return super()._compute_loss(self._packed(model), inputs, return_outputs)

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """参照の対数確率。"""
        return super().compute_ref_log_probs(self._packed(model), inputs)

    def _packed(self, model: Any) -> Any:
        """TRL がモデルを呼ぶ所に差し込む関数。TRL が読む 4 つの値を、形 (行, 幅 - 1) で返す。"""
        config = self.accelerator.unwrap_model(model).config

        def forward(input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> SimpleNamespace:
            _, logits = answer_logits(model, config, input_ids, attention_mask, labels)
            log_probs, whole = _per_token(logits, labels)
            targets = labels[:, 1:]
            counted = targets != -100

            def fill(values: torch.Tensor) -> torch.Tensor:
                return torch.zeros(targets.shape, device=labels.device).masked_scatter(counted, values.float())

            with torch.no_grad():  # 記録にだけ使う
                return SimpleNamespace(
                    log_probs=log_probs,
                    entropy=fill(-(whole.exp() * whole).sum(-1)),
                    mean_logits=fill(logits.mean(-1)),
                    is_top1=fill(whole.argmax(-1) == targets[counted]).bool(),
                )

        return forward
