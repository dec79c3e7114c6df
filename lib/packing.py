"""束を一列に並べる: 同じ先頭を二度計算せず、詰め物も計算しない。"""

from dataclasses import dataclass
from typing import Any

import torch


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
