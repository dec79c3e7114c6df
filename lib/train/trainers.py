"""SFT と選好学習の Trainer。パディングを計算せず、同じ先頭を一度だけ計算するように、バッチを一列に並べる。"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer, SFTTrainer

from lib.errors import WorkshopError
from lib.model.generate import render

LONGEST_LINE = 512  # トークン。先頭を共有しない 8 行では、512 で 1.7 倍、1,024 で 4.6 倍遅くなった（1 コアで実測）


def pack(ids: Tensor, attention: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """右パディングのバッチ（トークンと、パディングでない所が 1 の印）を、先頭を共有する木にして一列に並べる。

    因果的な注意では、ある語の計算は前の語だけで決まる。そこまでが同じなら、一度の計算で足り、値も勾配も変わらない。
    システム文はバッチで一度、DPO の質問は良い答えと悪い答えで一度になる。返すのは、トークン (n,)、例の中の位置 (n,)、
    i が j を見てよいか (n, n)、元の各トークンの列の中の番号（行, 幅。パディングは -1）。
    """
    nodes: dict[tuple[int, int], int] = {}  # (直前の語の番号, トークン) → 番号
    place = torch.full(ids.shape, -1)
    for row, (tokens, length) in enumerate(zip(ids.tolist(), attention.sum(1).tolist(), strict=True)):
        node = -1
        for column in range(length):
            node = nodes.setdefault((node, tokens[column]), len(nodes))
            place[row, column] = node
    seen = torch.eye(len(nodes), dtype=torch.bool)
    for node, (parent, _) in enumerate(nodes):
        if parent >= 0:
            seen[node] |= seen[parent]
    line, to = torch.tensor([token for _, token in nodes], dtype=torch.long), ids.device
    return line.to(to), (seen.sum(1) - 1).to(to), seen.to(to), place.to(to)


def answer_logits(model: Any, config: Any, ids: Tensor, attention: Tensor, labels: Tensor) -> tuple[Any, Tensor]:
    """損失の計算対象のトークン（`labels[:, 1:] != -100` の並び）を当てるロジットだけを求める。

    model は分散などの包みが付いていてもよく、config は中のモデルの設定。ids は右パディング、attention は実の所が 1、
    labels は対象でない所が -100 で、どれも (行, 幅)。返すのは、モデルの出力と、ロジット (対象の数, 語彙)。
    """
    counted = labels[:, 1:] != -100
    window = getattr(config, "sliding_window", None)
    # 一列のマスクは長さの 2 乗になる。長いバッチと、マスクを渡すと効かなくなる窓つきの注意では、並べずに計算する
    if attention.sum() > LONGEST_LINE or (window and ids.shape[1] > window):
        columns = counted.any(0).nonzero().flatten()
        output = model(input_ids=ids, attention_mask=attention, use_cache=False, logits_to_keep=columns)
        return output, output.logits[counted[:, columns]]
    tokens, positions, seen, place = pack(ids, attention)
    dtype = config.dtype or torch.float32
    mask = torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]  # 点数に足す値
    options = {"position_ids": positions[None], "attention_mask": mask, "use_cache": False}
    output = model(tokens[None], logits_to_keep=place[:, :-1][counted], **options)  # 出力層は、対象の語の一つ前だけ
    return output, output.logits[0]


class AnswerOnlyTrainer(SFTTrainer):
    """TRL の SFTTrainer と同じ損失を、計算対象でない位置の出力層、共通の先頭の二度目から、パディングを省いて求める。"""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """バッチの損失（nat、答えのトークンの平均）を返す。"""
        ids, attention, labels = (inputs[key] for key in ("input_ids", "attention_mask", "labels"))
        config = self.accelerator.unwrap_model(model).config
        output, logits = answer_logits(model, config, ids, attention, labels)
        targets = labels[:, 1:][labels[:, 1:] != -100]
        loss = F.cross_entropy(logits.float(), targets, reduction="sum") / (num_items_in_batch or len(targets))
        if num_items_in_batch is not None:  # 何台かに分けたときは台数で平均されるので、先に掛けておく
            loss = loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss


def keep_float32(model: Any) -> None:
    """学習する差分を fp32 に戻す。TRL は QLoRA の差分を bf16 に丸めるが、T4 は bf16 で計算できない。"""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def encode_pair(tokenizer: Any, row: dict[str, Any], side: str) -> list[list[int]]:
    """選好データの行の `side`（"chosen" か "rejected"）を [入力の ID, 回答の ID] にする。回答は EOS で終わる。"""
    prompt = render(tokenizer, row["prompt"])
    whole = render(tokenizer, row["prompt"] + row[side], ask=False)
    if not whole.startswith(prompt) or row[side][-1]["content"].strip() not in whole[len(prompt) :]:
        what = f"チャットテンプレートでは、生成の直前の形（…{prompt[-30:]!r}）の後に答えが続きません"
        raise WorkshopError(what, "<think> を開かない形に直すか、別のモデルを選んでください", tokenizer.name_or_path)
    return tokenizer([prompt, whole[len(prompt) :]], add_special_tokens=False)["input_ids"]


def answer_logprobs(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], *sides: str) -> Tensor:
    """各行の回答の対数確率の合計（nat）を返す。形は (側の数, 行数)、側が一つなら (行数,)。fp32。

    側を二つ渡すと、同じ質問は一度だけ計算する。評価では `torch.inference_mode()` の中で呼ぶ。
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


def _batch(tokenizer: Any, rows: Sequence[dict[str, Any]], sides: Sequence[str], device: Any) -> list[Tensor]:
    """右パディングのバッチ（トークン、パディングでない所、対象のトークン）。形はどれも (側の数 × 行数, 幅)。"""
    encoded = [encode_pair(tokenizer, row, side) for side in sides for row in rows]
    ids = [prompt + reply for prompt, reply in encoded]
    labels = [[-100] * len(prompt) + reply for prompt, reply in encoded]
    columns = ((ids, tokenizer.pad_token_id), ([[1] * len(row) for row in ids], 0), (labels, -100))
    return [pad_sequence([torch.tensor(x) for x in rows], True, fill).to(device) for rows, fill in columns]


def _spread(values: Tensor, counted: Tensor) -> Tensor:
    """対象の位置だけの値を、形 (行, 幅 - 1) に並べ直す。対象でない所は 0。"""
    return torch.zeros(counted.shape, device=counted.device).masked_scatter(counted, values.float())


def _per_token(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """各トークンの対数確率（行, 幅 - 1。対象でない所は 0）、対象の所の全語彙の対数確率、対象の所の正解。"""
    counted, whole = labels[:, 1:] != -100, logits.float().log_softmax(-1)
    targets = labels[:, 1:][counted]
    return _spread(whole.gather(-1, targets.unsqueeze(-1)).squeeze(-1), counted), whole, targets


class PairTrainer(DPOTrainer):
    """TRL の DPOTrainer と同じ損失を、ペアの質問を一度だけ計算して求める（先に計算する参照も）。"""

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
            log_probs, whole, targets = _per_token(logits, labels)
            with torch.no_grad():  # ほかは、記録にだけ使う
                rest = {"entropy": -(whole.exp() * whole).sum(-1), "mean_logits": logits.mean(-1)}
                rest["is_top1"] = whole.argmax(-1) == targets
                spread = {name: _spread(values, labels[:, 1:] != -100) for name, values in rest.items()}
            return SimpleNamespace(log_probs=log_probs, **{**spread, "is_top1": spread["is_top1"].bool()})

        return forward
