"""SFT の Trainer: 損失の値を変えずに、要らない計算を省く。学習の設定はノートブックにある。"""

from typing import Any

import torch.nn.functional as F
from trl import SFTTrainer

from lib.packing import answer_logits


class AnswerOnlyTrainer(SFTTrainer):
    """TRL の SFTTrainer と同じ損失を、次の三つを省いて求める（差は丸めの分だけ。04 が毎回確かめる）。

    1. 出力層に通すのは、損失に数える位置（`labels` が -100 でない所）だけ。
    2. 例に共通する先頭（役割の印とシステム文）は、束ごとに一度だけ計算する（`lib/packing.py`）。
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
