"""GGUF の大きさを、重みを持たずに、形だけから計算する。"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from lib.export import tensor_type


@dataclass(frozen=True)
class Shape:
    """Llama 系のモデルの形（`config.json` にある数）。

    Attributes:
        width: 隠れ層の幅。
        hidden: FFN の幅。
        layers: 層の数。
        heads, kv_heads: クエリとキーのヘッド数。
        head: ヘッド 1 つの幅。
        vocabulary: 語彙の数。
        tied: 出力層が埋め込みを兼ねるか。
    """

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool

    def tensors(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """行列の (名前, (行の幅, 行数))。長さ 1 行の正規化は、全体の 0.1% に満たないので数えない。"""
        yield "token_embd.weight", (self.width, self.vocabulary)
        if not self.tied:
            yield "output.weight", (self.width, self.vocabulary)
        query, key = self.heads * self.head, self.kv_heads * self.head
        layer = {
            "attn_q": (self.width, query),
            "attn_k": (self.width, key),
            "attn_v": (self.width, key),
            "attn_output": (query, self.width),
            "ffn_gate": (self.width, self.hidden),
            "ffn_up": (self.width, self.hidden),
            "ffn_down": (self.hidden, self.width),
        }
        for index in range(self.layers):
            for name, size in layer.items():
                yield f"blk.{index}.{name}.weight", size

    def parameters(self) -> int:
        """行列のパラメータ数。"""
        return sum(width * rows for _, (width, rows) in self.tensors())

    def types(self, kind: str) -> Counter[str]:
        """量子化したときの、型ごとの行列の数。"""
        return Counter(self._type(name, size, kind).name for name, size in self.tensors())

    def megabytes(self, kind: str, per_token: float) -> float:
        """GGUF の大きさ（MB = 10^6 バイト）。

        Args:
            kind: "F16" / "Q8_0" / "Q6_K" / "Q4_K_M" / "Q2_K"。
            per_token: トークナイザなどの付帯情報の、語彙 1 語あたりのバイト数。
        """
        total = self.vocabulary * per_token
        for name, size in self.tensors():
            block, size_of_block = GGML_QUANT_SIZES[self._type(name, size, kind)]
            total += size[0] * size[1] / block * size_of_block
        return total / 1e6

    def _type(self, name: str, size: tuple[int, int], kind: str) -> GGMLQuantizationType:
        if kind == "F16":
            return GGMLQuantizationType.F16
        return tensor_type(name, size, kind, self.layers, self.heads // self.kv_heads, self.tied)
