"""長さの近い例を同じ束に入れる並べ方。詰め物（padding）の計算を減らす。"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_BATCHES_PER_GROUP = 8  # 混ぜる広さ。広いほど詰め物が減り、狭いほど束の中身がよく混ざる


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
