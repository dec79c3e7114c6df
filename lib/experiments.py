"""設定を変えた学習の結果を、設定ごとに一度だけ計算して残す。どこから来た数字かを必ず添える。

順に探す: `outputs/experiments/`（この機械で前に計算した）→ その場で計算（`full` プロファイルだけ）
→ `data/recorded/experiments.json`（録画）。
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lib.errors import command_line
from lib.files import REPOSITORY, read_json, write_json
from lib.run import OUTPUTS, Run, versions

FOLDER = OUTPUTS / "experiments"
RECORDED = REPOSITORY / "data" / "recorded" / "experiments.json"


@dataclass(frozen=True)
class Point:
    """一つの設定の結果。

    Attributes:
        settings: 結果を左右する設定のすべて。
        result: 測った値（秒は `seconds`）。どこにも無く、計算もしないときは空。
        origin: 「いま計算」「前に計算（日付）」「録画（日付、機械）」「まだ測っていない」。
    """

    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    origin: str


def key_of(settings: Mapping[str, Any]) -> str:
    """設定の指紋。順序によらず、値が一つでも違えば変わる。"""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measured(run: Run, settings: Mapping[str, Any], compute: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Point:
    """その設定の結果を探し、無ければ（`profile.experiments` のときだけ）計算して残す。

    Args:
        run: プロファイルを見るための実行。
        settings: 結果を左右する設定のすべて（モデルとデータの指紋も入れる）。
        compute: 設定から結果を計算する関数。
    """
    path = FOLDER / f"{key_of(settings)}.json"
    if path.exists():
        found = read_json(path)
        return Point(settings, found["result"], f"前に計算（{found['date']}）")
    if run.profile.experiments:
        result = compute(settings)
        record = {"settings": dict(settings), "result": result, "date": time.strftime("%Y-%m-%d")}
        write_json(path, {**record, "machine": _machine(), "versions": versions()})
        return Point(settings, result, "いま計算")
    recorded = read_json(RECORDED) if RECORDED.exists() else {}
    if found := recorded.get(key_of(settings)):
        return Point(settings, found["result"], f"録画（{found['date']}、{found['machine']}）")
    return Point(settings, {}, "まだ測っていない（PROFILE=full で計算する）")


def _machine() -> str:
    import torch

    return f"{torch.get_num_threads()} スレッドの {platform.machine()}"


def record_all() -> None:
    """`outputs/experiments/` の結果を、録画として `data/recorded/experiments.json` に加える。"""
    recorded = read_json(RECORDED) if RECORDED.exists() else {}
    for path in sorted(FOLDER.glob("*.json")):
        recorded[path.stem] = read_json(path)
    write_json(RECORDED, recorded)
    print(f"{len(recorded)} 件を書きました: {RECORDED}")


if __name__ == "__main__":
    with command_line():
        record_all()
