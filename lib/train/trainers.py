"""束を一列に並べる: 同じ先頭を二度計算せず、詰め物も計算しない。"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from trl import DPOTrainer, SFTTrainer

from lib.model.generate import render


@dataclass(frozen=True)
class Row:
    """一列に並べた束。長さ n。

    Attributes:
        tokens: トークン。形は (n,)。
        positions: それぞれの例の中での位置（0 から）。形は (n,)。
        seen: i 番目が j 番目を見てよいか。形は (n, n)。
        place: 元の束の各トークンの、列の中での番号。詰め物は -1。形は (行, 幅)。
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    seen: torch.Tensor
    place: torch.Tensor

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """注意の点数に足す値。見える所は 0、ほかは dtype の最小の数。形は (n, n)。"""
        empty = torch.zeros(self.seen.shape, dtype=dtype, device=self.seen.device)
        return empty.masked_fill(~self.seen, torch.finfo(dtype).min)


def pack(ids: torch.Tensor, attention: torch.Tensor) -> Row:
    """右詰め物の束を、先頭を共有する木にして並べる。

    因果的注意では、ある語の計算は、それより前の語だけで決まる。だから、そこまでの語がすべて同じなら、
    どの例のものでも一度計算すれば足り、値も勾配も変わらない。システム文は束で一度、
    DPO の質問は良い答えと悪い答えで一度になる。

    Args:
        ids: トークン。形は (行, 幅)。
        attention: 詰め物でない所が 1。形は同じ。
    """
    nodes: dict[tuple[int, int], int] = {}  # (直前の語の番号, トークン) → 番号
    place = torch.full(ids.shape, -1)
    for row, (tokens, length) in enumerate(zip(ids.tolist(), attention.sum(1).tolist(), strict=True)):
        node = -1
        for column in range(length):
            node = nodes.setdefault((node, tokens[column]), len(nodes))
            place[row, column] = node
    positions = torch.zeros(len(nodes), dtype=torch.long)
    seen = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
    for chain in place:
        chain = chain[chain >= 0]
        positions[chain] = torch.arange(len(chain))
        seen[chain[:, None], chain] |= torch.ones(len(chain), len(chain), dtype=torch.bool).tril()
    tokens = torch.tensor([token for _, token in nodes], dtype=torch.long)
    return Row(*(tensor.to(ids.device) for tensor in (tokens, positions, seen, place)))


def answer_logits(
    model: Any, config: Any, ids: torch.Tensor, attention: torch.Tensor, labels: torch.Tensor
) -> tuple[Any, torch.Tensor]:
    """損失に数えるトークンを当てるロジットだけを求める。

    Args:
        model: 因果的言語モデル（PEFT や分散の包みが付いていてもよい）。
        config: そのモデルの設定（精度と、注意の窓の幅を見る）。
        ids: トークン。右詰め物。形は (行, 幅)。
        attention: 詰め物でない所が 1。形は同じ。
        labels: 数えるトークン。数えない所は -100。形は同じ。

    Returns:
        (モデルの出力, ロジット)。ロジットの形は (数える数, 語彙)、順は `labels[:, 1:] != -100` の並び。
    """
    counted = labels[:, 1:] != -100
    window = getattr(config, "sliding_window", None)
    if window and ids.shape[1] > window:  # 注意の隠し方を渡すと窓が効かなくなるので、省かずに計算する
        output = model(input_ids=ids, attention_mask=attention, use_cache=False)
        return output, output.logits[:, :-1][counted]
    row = pack(ids, attention)
    output = model(
        input_ids=row.tokens[None],
        position_ids=row.positions[None],
        attention_mask=row.mask(config.dtype or torch.float32)[None, None],
        logits_to_keep=row.place[:, :-1][counted],  # 出力層に通すのは、数える語の一つ前だけ
        use_cache=False,
    )
    return output, output.logits[0]


class AnswerOnlyTrainer(SFTTrainer):
    """TRL の SFTTrainer と同じ損失を、次の三つを省いて求める（差は丸めの分だけ。04 が毎回確かめる）。

    1. 出力層に通すのは、損失に数える位置（`labels` が -100 でない所）だけ。
    2. 例に共通する先頭（役割の印とシステム文）は、束ごとに一度だけ計算する（`lib/train/trainers.py`）。
    3. 詰め物は計算しない。

    入力は、TRL が作る右詰め物の束。
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """束の損失（nat、答えのトークンの平均）を返す。"""
        ids, attention, labels = (inputs[key] for key in ("input_ids", "attention_mask", "labels"))
        config = self.accelerator.unwrap_model(model).config
        output, logits = answer_logits(model, config, ids, attention, labels)
        targets = labels[:, 1:][labels[:, 1:] != -100]
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        if num_items_in_batch is None:
            loss = loss / len(targets)
        else:  # 何台かに分けたときは台数で平均されるので、先に掛けておく
            loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss


def keep_float32(model: Any) -> None:
    """学習する差分を fp32 に戻す。TRL は QLoRA の差分を bf16 に丸めるが、T4 は bf16 で計算できない。"""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


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
