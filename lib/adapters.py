"""アダプタとベースが合っているか。合わない組を、黙って読み込まない。"""

import json
from pathlib import Path
from typing import Any

from lib.weights import fingerprint


def base_of(folder: Path) -> Path:
    """アダプタを作ったときの、ベースの重みのフォルダ（今もあるとは限らない）。"""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return Path(config.get("base_model_name_or_path") or "no-base")


def mismatches(folder: Path, model: Any) -> list[str]:
    """アダプタの各テンソルを、載せる先の層の形と比べ、合わないものを文で返す。空なら合っている。

    PEFT は、名前の合わないテンソルを黙って捨てる（捨てた分は学習しなかったのと同じになる）。
    """
    from safetensors import safe_open

    modules, found = dict(model.named_modules()), []
    with safe_open(folder / "adapter_model.safetensors", "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 （辞書ではなく、ファイルを開いたもの）
            name, _, part = key.removeprefix("base_model.model.").rpartition(".lora_")
            name = name or key.removeprefix("base_model.model.").removesuffix(".weight")
            shape, layer = tensors.get_slice(key).get_shape(), modules.get(name)
            if layer is None or not hasattr(layer, "weight"):
                found.append(f"{name} がベースにありません")
                continue
            rows, columns = layer.weight.shape
            fits = {"A": shape[-1] == columns, "B": shape[0] == rows}.get(part[:1], shape == [rows, columns])
            if not fits and not part.startswith(("embedding", "magnitude")):
                found.append(f"{name} の形 {'×'.join(map(str, shape))} が、ベースの {rows}×{columns} に合いません")
    return found


def other_base(folder: Path, base: Path) -> bool:
    """アダプタの記録にあるベースと、載せる先のベースで、重みが違うか。記録が無ければ False。"""
    record = folder / "manifest.json"
    recorded = json.loads(record.read_text(encoding="utf-8")).get("base") if record.exists() else None
    return recorded is not None and recorded != fingerprint(base)
