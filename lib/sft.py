"""SFT の Trainer: 損失の値を変えずに、要らない計算を省く。学習の設定はノートブックにある。"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from trl import SFTTrainer


class AnswerOnlyTrainer(SFTTrainer):
    """TRL の SFTTrainer と同じ損失を、次の三つを省いて求める（差は丸めの分だけ。04 が毎回確かめる）。

    1. 出力層に通すのは、損失に数える位置（`labels` が -100 でない所）だけ。
    2. 束のどの例にも共通する先頭（役割の印とシステム文）は、一度だけ計算する。
    3. 詰め物は計算しない。

    そのために、束を一列に並べ（`pack`）、よその例が見えないように注意を隠す。
    入力は、TRL が作る右詰め物の束。
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """束の損失（nat、答えのトークンの平均）を返す。"""
        ids, attention, labels = (inputs[key] for key in ("input_ids", "attention_mask", "labels"))
        config = self.accelerator.unwrap_model(model).config
        window = getattr(config, "sliding_window", None)
        if window and ids.shape[1] > window:  # 注意の隠し方を渡すと窓が効かなくなるので、省かずに計算する
            output = model(input_ids=ids, attention_mask=attention, use_cache=False)
            counted = labels[:, 1:] != -100
            logits, targets = output.logits[:, :-1][counted], labels[:, 1:][counted]
        else:
            row = pack(ids, attention, labels)
            places = (row.targets != -100).nonzero().squeeze(-1)
            output = model(
                input_ids=row.tokens[None],
                position_ids=row.positions[None],
                attention_mask=row.mask(config.dtype or torch.float32)[None, None],
                logits_to_keep=places - 1,  # t 番目の出力が t+1 番目のトークンを当てる
                use_cache=False,
            )
            logits, targets = output.logits[0], row.targets[places]
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        if num_items_in_batch is None:
            loss = loss / len(targets)
        else:  # 何台かに分けたときは台数で平均されるので、先に掛けておく
            loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss


@dataclass(frozen=True)
class Row:
    """一列に並べた束。長さ n。

    Attributes:
        tokens: トークン。形は (n,)。
        targets: 損失に数えるトークン。数えない所は -100。形は (n,)。
        positions: それぞれの例の中での位置（0 から）。形は (n,)。
        owner: どの例のものか。共通の先頭は -1。形は (n,)。
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    owner: torch.Tensor

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """注意の点数に足す値。見える所は 0、後ろの語とよその例は dtype の最小の数。形は (n, n)。"""
        mine = (self.owner[:, None] == self.owner) | (self.owner == -1)
        hidden = ~(mine & (self.positions[:, None] >= self.positions))
        empty = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return empty.masked_fill(hidden, torch.finfo(dtype).min)


def pack(ids: torch.Tensor, attention: torch.Tensor, labels: torch.Tensor) -> Row:
    """右詰め物の束を一列に並べる: 共通の先頭を一度だけ置き、その後に各例の残りを続ける。

    因果的注意では、先頭の計算は後ろの言葉に左右されない。だから一度で済ませても、値も勾配も変わらない。

    Args:
        ids: トークン。形は (行, 幅)。
        attention: 詰め物でない所が 1。形は同じ。
        labels: 損失に数えるトークン。数えない所は -100。形は同じ。
    """
    shared = _shared_prefix(ids, labels)
    rest = attention[:, shared:].bool()
    owner, column = rest.nonzero(as_tuple=True)
    first = torch.arange(shared, device=ids.device)
    return Row(
        tokens=torch.cat([ids[0, :shared], ids[:, shared:][rest]]),
        targets=torch.cat([labels[0, :shared], labels[:, shared:][rest]]),
        positions=torch.cat([first, column + shared]),
        owner=torch.cat([first * 0 - 1, owner]),
    )


def _shared_prefix(ids: torch.Tensor, labels: torch.Tensor) -> int:
    """どの行でも同じ、先頭のトークンの数。最初の答えを当てる位置は含めない（行ごとに要る）。"""
    same = int((ids == ids[0]).all(0).cumprod(0).sum())
    counted = (labels != -100).any(0).nonzero()
    return max(0, min(same, int(counted[0]) - 1)) if len(counted) else 0
