"""ハブに置く形のフォルダを作り、何が送られるかをオフラインで確かめる。送りはしない。"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.files import write_text
from lib.profiles import ModelSpec

_UNSAFE = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}  # 読むだけでコードが動きうる形
_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit"}  # ハブでの書き方。ほかは other


def fill(target: Path, files: Iterable[Path], card: str, spec: ModelSpec) -> list[dict[str, Any]]:
    """フォルダに重みと説明を入れ、検算用の SHA256SUMS を書き、送られるファイルの一覧を返す。

    Args:
        target: 空のフォルダ。
        files: 入れるファイル（重み・トークナイザ・GGUF）。
        card: 説明の本文（Markdown）。前置き（YAML）はここで付ける。
        spec: もとのモデルの身元。

    Returns:
        1 ファイル 1 辞書（file・MB・sha256）。SHA256SUMS 自身は入らない。

    Raises:
        WorkshopError: 安全でない形式のファイルがあるとき。
    """
    from huggingface_hub import CommitOperationAdd

    for file in files:
        if file.suffix in _UNSAFE:
            raise WorkshopError("pickle 形式のファイルは配れません", "safetensors で保存し直してください", file)
        _place(file, target / file.name)
    write_text(target / "README.md", _front_matter(spec) + card)
    # ハブへ送るときと同じ部品に読ませる。送らなくても、大きさと SHA-256 が分かる。
    planned = [CommitOperationAdd(path.name, str(path)) for path in sorted(target.iterdir())]
    rows = [
        {"file": add.path_in_repo, "MB": add.upload_info.size / 1e6, "sha256": add.upload_info.sha256.hex()}
        for add in planned
    ]
    # `sha256sum -c SHA256SUMS` で確かめられる形
    write_text(target / "SHA256SUMS", "".join(f"{row['sha256']}  {row['file']}\n" for row in rows))
    return rows


def _place(source: Path, target: Path) -> None:
    """数 GB を二重に持たないように、同じ実体に名前を付ける。できないファイルシステムでは写す。"""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _front_matter(spec: ModelSpec) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        language="ja",
        license=_LICENCES.get(spec.licence, "other"),
        license_name=None if spec.licence in _LICENCES else spec.licence,
        base_model=spec.hub_id,
        pipeline_tag="text-generation",
        tags=["lora", "sft", "gguf"],
    )
    return f"---\n{data.to_yaml()}\n---\n\n"
