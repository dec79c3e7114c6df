"""SFT の Trainer: 損失の値を変えずに、要らない計算を省く。学習の設定はノートブックにある。"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Sampler
from trl import SFTTrainer

_BATCHES_PER_GROUP = 8  # 混ぜる広さ。広いほど詰め物が減り、狭いほど束の中身がよく混ざる


class AnswerOnlyTrainer(SFTTrainer):
    """TRL の SFTTrainer と同じ損失を、次の三つを省いて求める（差は丸めの分だけ。04 が毎回確かめる）。

    1. 出力層に通すのは、損失に数える位置（`labels` が -100 でない所）だけ。
    2. 束のどの例にも共通する先頭（役割の印とシステム文）は、一度だけ計算して全例で使い回す。
       因果的注意では、先頭の計算は後ろの言葉に左右されないので、値も勾配も変わらない。
    3. 長さの近い例を同じ束に入れ、詰め物の計算を減らす（`SimilarLengths`）。

    入力は右詰め物の束（packing と padding_free は使わない）。モデルは `logits_to_keep` を受け取ること。
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """束の損失（nat、答えのトークンの平均）を返す。"""
        ids, mask, labels = (inputs[key] for key in ("input_ids", "attention_mask", "labels"))
        shared = shared_prefix(ids, labels)
        past = None
        if shared:
            past = model(input_ids=ids[:1, :shared], use_cache=True, logits_to_keep=1).past_key_values
            past.batch_repeat_interleave(len(ids))
        output = model(
            input_ids=ids[:, shared:], attention_mask=mask, past_key_values=past, use_cache=bool(shared),
            logits_to_keep=1, output_hidden_states=True,
        )  # fmt: skip
        labels = labels[:, shared + 1 :]  # t 番目の出力が t+1 番目のトークンを当てる
        keep = labels != -100
        logits = self.accelerator.unwrap_model(model).lm_head(output.hidden_states[-1][:, :-1][keep])
        loss = F.cross_entropy(logits.float(), labels[keep], reduction="sum")
        if num_items_in_batch is None:
            loss = loss / keep.sum()
        else:  # 何台かに分けたときは台数で平均されるので、先に掛けておく
            loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        lengths = [len(ids) for ids in dataset["input_ids"]]
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        return SimilarLengths(lengths, batch, self.args.seed)


def shared_prefix(ids: torch.Tensor, labels: torch.Tensor) -> int:
    """束の全行で同じ、先頭のトークンの数。最初の答えを当てる位置は含めない。

    Args:
        ids: トークン。形は (行, 幅)。
        labels: 損失に数える位置。数えない所は -100。形は ids と同じ。
    """
    same = int((ids == ids[0]).all(0).cumprod(0).sum())
    counted = (labels != -100).any(0).nonzero()
    return max(0, min(same, int(counted[0]) - 1)) if len(counted) else 0


class SimilarLengths(Sampler[int]):
    """かき混ぜてから 8 束ぶんずつ長さで並べ、束の順をまたかき混ぜる。

    Transformers の `group_by_length` は、例が少ないと並べる範囲が 3 束ぶんほどに狭まり、詰め物が減りにくい。
    並びは種と周回だけで決まるので、周回の途中から続けても同じ束になる。

    Args:
        lengths: 例ごとのトークン数。
        batch: 一歩で読む例の数（全プロセスの合計）。
        seed: 乱数の種。
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int = 0) -> None:
        self.lengths, self.batch, self.seed, self.epoch = list(lengths), batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """周回の番号を受け取る（accelerate が周の始めに呼ぶ）。"""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        wide = self.batch * _BATCHES_PER_GROUP
        groups = [sorted(order[i : i + wide], key=lambda k: -self.lengths[k]) for i in range(0, len(order), wide)]
        ordered = [k for group in groups for k in group]
        batches = [ordered[i : i + self.batch] for i in range(0, len(ordered), self.batch)]
        # 端数の束だけは最後に置く（途中にあると、後ろの束の区切りがずれる）。
        last = [batches.pop()] if len(batches[-1]) < self.batch else []
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return iter([k for part in shuffled + last for k in part])
