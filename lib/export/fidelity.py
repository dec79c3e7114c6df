"""二つの形の同じモデルが、どれだけ同じかを測る。自由に書かせず、同じ文を読ませて次の語の確率を比べる。

自由に書かせると、僅差の 1 か所で分かれた後はすべて別の文になり、比べられない。
llama.cpp のサーバは、読ませた文の途中の確率を返さない。そこで最後の層の出力（隠れ状態）を返させ、
GGUF の中の出力の行列を掛けて確率にする。掛け算の前の丸めも llama.cpp に合わせる。
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, dequantize

from lib.errors import WorkshopError
from lib.export.gguf import open_gguf

Turn = tuple[list[int], list[int]]
"""(質問までのトークン, 答えのトークン)。"""


@dataclass(frozen=True)
class Reading:
    """同じ対話を読ませたときの、次の語の確率。

    Attributes:
        answers: 対話ごとの、答えの各位置の対数確率（位置, 語彙）。
        perplexity: 質問までの文の、1 トークンあたりの perplexity。
    """

    answers: list[np.ndarray]
    perplexity: float


@dataclass(frozen=True)
class Difference:
    """いちばん確からしい語が食い違った位置。

    Attributes:
        turn: 対話の番号。
        position: 答えの中の位置。
        margin: 基準の側の、1 位と 2 位の対数確率の差。0 に近いほど僅差。
        ours, theirs: 基準の側と、比べた側の 1 位の語。
    """

    turn: int
    position: int
    margin: float
    ours: int
    theirs: int


@dataclass(frozen=True)
class Agreement:
    """比べた結果。

    Attributes:
        total: 比べた位置の数。
        differences: 1 位の語が食い違った位置。
        kl: 基準から見た KL ダイバージェンスの平均（nat）。
    """

    total: int
    differences: list[Difference]
    kl: float

    @property
    def rate(self) -> float:
        """1 位の語が同じだった割合。"""
        return 1 - len(self.differences) / self.total


def read(logits: Callable[[list[int]], np.ndarray], turns: Sequence[Turn]) -> Reading:
    """対話を読ませ、答えの各位置の確率と、質問の perplexity を得る。

    Args:
        logits: トークンの列を受け取り、各位置の次の語のロジット（位置, 語彙）を返す関数。
        turns: 対話。
    """
    answers, losses = [], list[float]()
    for asked, answered in turns:
        table = _log_softmax(logits(asked + answered))
        losses += [-float(table[place, token]) for place, token in enumerate(asked[1:])]
        answers.append(table[len(asked) - 1 : -1].copy())  # 切り出しただけでは、表の全体がメモリに残る
    return Reading(answers, float(np.exp(np.mean(losses))))


def compare(ours: Reading, theirs: Reading) -> Agreement:
    """基準（ours）に対する一致と KL。"""
    differences, gaps = list[Difference](), list[float]()
    for turn, (mine, other) in enumerate(zip(ours.answers, theirs.answers, strict=True)):
        gaps += (np.exp(mine) * (mine - other)).sum(axis=1).tolist()
        for place in np.flatnonzero(mine.argmax(axis=1) != other.argmax(axis=1)).tolist():
            second, first = np.sort(mine[place])[-2:]
            found = int(mine[place].argmax()), int(other[place].argmax())
            differences.append(Difference(turn, place, float(first - second), *found))
    return Agreement(len(gaps), differences, float(np.mean(gaps)))


def greedy_same(reading: Reading, turns: Sequence[Turn]) -> list[bool]:
    """対話ごとに、貪欲に書かせればこの答えと 1 字も違わないか（どの位置でも 1 位がその答えの語か）。"""
    return [
        table.argmax(axis=1).tolist() == answered for table, (_, answered) in zip(reading.answers, turns, strict=True)
    ]


def torch_logits(model: Any) -> Callable[[list[int]], np.ndarray]:
    """transformers のモデルの、各位置のロジットを返す関数。"""
    import torch

    def logits(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([ids], device=model.device)).logits[0].float().cpu().numpy()

    return logits


def gguf_logits(path: Path, hidden: Callable[[list[int]], np.ndarray]) -> Callable[[list[int]], np.ndarray]:
    """llama.cpp の隠れ状態に、GGUF の出力の行列を掛けてロジットにする関数。

    Args:
        path: GGUF。
        hidden: トークンの列を受け取り、各位置の隠れ状態を返す関数（`lib.export.serve.Chat.hidden`）。

    Raises:
        WorkshopError: ロジットを後から加工する形のモデルのとき（この測り方では正しく測れない）。
    """
    reader = open_gguf(path)
    arch = str(reader.fields["general.architecture"].contents())
    if {f"{arch}.logit_scale", f"{arch}.final_logit_softcapping"} & reader.fields.keys():
        raise WorkshopError(f"{arch} はロジットを加工するので、この方法では測れません", "別のモデルを選んでください")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    weight = dequantize(head.data, head.tensor_type).astype(np.float32)
    return lambda ids: _rounded(hidden(ids), head.tensor_type) @ weight.T


def _rounded(hidden: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """llama.cpp が行列を掛ける前にするのと同じ丸め（F16 なら F16、Q8_0 なら Q8_0）。"""
    import libgguf

    if kind == GGMLQuantizationType.F16:
        return hidden.astype(np.float16).astype(np.float32)
    if kind == GGMLQuantizationType.Q8_0:
        rows, width = hidden.shape
        raw = libgguf.quantize_rows_raw(int(kind), np.ascontiguousarray(hidden), rows, width)
        return dequantize(np.frombuffer(raw, dtype=np.uint8).reshape(rows, -1), kind)
    return hidden  # K 量子化の中間の型 Q8_K は約 8 bit で、丸めなくても差は小さい


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
