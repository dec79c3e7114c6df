"""一回の実行のフォルダ `outputs/<run>/` の読み書き（動かすのは execute）。`metrics.json` が完了の印。"""

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.files import REPOSITORY, file_sha256, find_data, fingerprint, read_json, write_json, write_manifest
from lib.profiles import MODELS, Profile, get_profile

OUTPUTS = Path(os.environ.get("WORKSHOP_OUTPUTS") or REPOSITORY / "outputs").resolve()
EXPERIMENTS = OUTPUTS / "experiments"
RECORDED = REPOSITORY / "data" / "recorded" / "experiments.json"
_MAIN = "01_concepts 02_dataset 03_baseline 04_lora_sft 05_preference 06_merge_to_gguf 07_evaluation 08_ladder"
STAGES = tuple(_MAIN.split())
APPENDICES = ("A0_experiments", "A1_methods", "A2_rlhf", "A3_failure_lab", "A4_company_case", "A5_form_and_voice")
BUILT_IN = "support"
# 一回の実行だけで替えてよいプロファイルの値と、その確かめかた。
_CHANGEABLE = {"lang": ("ja", "en").__contains__, "mix": lambda share: 0 <= float(share) < 1}
_NEEDED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
_PACKAGES = (*_NEEDED, "xllamacpp", "libgguf", "gguf")


def versions() -> dict[str, str]:
    """結果を左右する部品の版。"""
    found = {name: next((part.version for part in distributions(name=name)), "なし") for name in _PACKAGES}
    return {"python": platform.python_version(), **found}


@dataclass(frozen=True)
class Run:
    """一回の実行。"""

    folder: Path  # `outputs/<run>`
    profile: Profile
    seed: int
    data: str = BUILT_IN  # データの場所（作り付けなら "support"）

    def __str__(self) -> str:
        """準備のセルが出す文: 版と、出力先・モデル・言語・デバイス。使っていない GPU があれば、使うプロファイルも。"""
        numbers = "  ".join(f"{name} {number}" for name, number in list(versions().items())[:5])
        place = f"出力先: {self.folder}   モデル: {self.profile.model}"
        mac = platform.system() == "Darwin" and platform.machine() == "arm64"
        colab = os.environ.get("COLAB_GPU", "0") not in ("", "0")  # Colab の CPU では "0"
        gpu = "mac" if mac else "colab" if colab else "cuda" if shutil.which("nvidia-smi") else ""
        said = f'\nこの機械の GPU を使うなら PROFILE = "{gpu}"（日本語を読むモデルと、日本語のデータ）'
        place += f"   データ: {self.profile.lang}   デバイス: {self.profile.device} / {self.profile.dtype}"
        return f"{numbers}\n{place}{said if gpu and self.profile.device == 'cpu' else ''}"

    @property
    def stages(self) -> tuple[str, ...]:
        """この実行で通す段。01 は概念の章でデータを使わないので、自分のデータの実行では省く。"""
        return STAGES if self.data == BUILT_IN else STAGES[1:]

    def stage(self, name: str) -> Path:
        """その段のフォルダ（無ければ作る）。"""
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def is_done(self, name: str) -> bool:
        """その段が最後まで終わっているか。"""
        return (self.folder / name / "metrics.json").exists()

    def metrics(self, name: str) -> dict[str, float]:
        """その段が記録した指標。"""
        return read_json(self.folder / name / "metrics.json")

    def finish(self, name: str, metrics: dict[str, float]) -> dict[str, float]:
        """指標を書いて、段を「終わった」とする。ノートブックの最後（あれば練習の手前）のセルで呼ぶ。"""
        write_json(self.stage(name) / "metrics.json", metrics)
        return metrics

    @contextmanager
    def making(self, path: Path) -> Iterator[Path]:
        """フォルダごとの成果物（アダプタなど）を、身元の記録（manifest.json）を添えて、書き終えてから本来の名前にする。"""
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*"):  # 前の実行が kill -9 などで残した、書きかけ
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
            work = Path(temporary) / "new"
            work.mkdir()
            yield work
            write_manifest(work, self._identity(work))
            if path.exists():
                path.rename(Path(temporary) / "old")
            work.rename(path)

    def _identity(self, work: Path) -> dict[str, Any]:
        """成果物が何から作られたか。トークナイザとテンプレートの指紋は、ファイルごとの SHA-256 に入る。"""
        train = self.folder / "02_dataset" / "train.jsonl"
        facts = {"profile": self.profile.name, "model": MODELS[self.profile.model].hub_id, "seed": self.seed}
        facts |= {"precision": read_json(self.folder / "precision.json", {}).get("precision")}
        facts |= {"data": self.data, "train_sha256": file_sha256(train) if train.exists() else None}
        if (config := work / "adapter_config.json").exists():
            base = Path(read_json(config).get("base_model_name_or_path") or "no-base")  # 今もあるとは限らない
            facts["base"] = fingerprint(base) if base.is_dir() else None
        return {**facts, "versions": versions()}


def data_path(data: str) -> Path | None:
    """DATA に書かれた場所の絶対パス（探し方は `find_data`）。作り付けのデータなら None。無ければ WorkshopError。"""
    if data in ("", BUILT_IN):
        return None
    if not (found := find_data(data)):
        remedy = 'data/my/ に CSV か JSONL を置いて DATA = "my" とするか、ファイルの場所を書いてください'
        raise WorkshopError(f"データ「{data}」が見つかりません", remedy)
    return found.resolve()


def open_run(
    profile: str, run: str | None = None, seed: int = 0, outputs: Path | None = None, data: str = "", **changed: Any
) -> Run:
    """実行の作業場を開く。初めてなら作り、二度目なら同じ設定か確かめる。開けなければ WorkshopError。

    `run` を省くとプロファイル名（自分のデータなら、その名前も付く）、`data` を省くとその実行が覚えているものになる。
    `changed` は、この実行だけで替えるプロファイルの値（lang・mix。空か None なら替えない）。実行が覚える。
    """
    chosen = get_profile(profile)
    if lacking := [name for name in _NEEDED if versions()[name] == "なし"]:
        remedy = f"make setup を実行するか、python {REPOSITORY / 'lib' / 'bootstrap.py'} で入れてください"
        raise WorkshopError(f"部品がありません: {'、'.join(lacking)}", remedy)
    changed = {key: value for key, value in changed.items() if value not in (None, "")}
    if wrong := [f"{key}={value}" for key, value in changed.items() if not _CHANGEABLE[key](value)]:
        raise WorkshopError(f"{wrong[0]} は使えません", "DATA_LANG は ja か en、MIX は 0 以上 1 未満の数にしてください")
    name = run or "-".join([chosen.name, *(f"{key}-{value}" for key, value in changed.items())])
    if path := data_path(data):
        # リポジトリの中なら相対で覚える（別の機械に写した実行でも同じ意味になるように）。
        data = str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)
        name = run or f"{name}-{re.sub(r'[^A-Za-z0-9._-]+', '_', path.stem)[:40]}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        remedy = "英数字で始め、英数字と . _ - だけで 64 字以内にしてください"
        raise WorkshopError(f"実行の名前「{name}」は使えません", remedy)
    folder = (outputs or OUTPUTS) / name
    settings: dict[str, Any] = {"profile": chosen.name, "seed": int(seed)}
    if (folder / "run.json").exists():
        found = {"data": BUILT_IN, "changed": {}, **read_json(folder / "run.json")}
        same = found | settings == found and found["changed"] | changed == found["changed"]
        if not same or data not in ("", found["data"]):
            said = ", ".join(f"{key}={found.get(key)}" for key in ("profile", "seed", "data", "changed"))
            remedy = "RUN に別の名前を指定してください（何も上書きしていません）"
            raise WorkshopError(f"このフォルダは別の設定（{said}）の実行です", remedy, folder)
        return Run(folder, replace(chosen, **found["changed"]), int(seed), found["data"])
    if folder.exists() and any(folder.iterdir()):
        raise WorkshopError("実行の記録（run.json）が無いフォルダです", "RUN に別の名前を指定してください", folder)
    settings |= {"data": data or BUILT_IN, "changed": changed}
    settings |= {"created": time.strftime("%Y-%m-%dT%H:%M:%S"), "versions": versions()}
    try:
        write_json(folder / "run.json", settings)
    except OSError as error:
        raise WorkshopError(f"書き込めません: {error.strerror}", "空き容量と権限を確かめてください", folder) from None
    return Run(folder, replace(chosen, **changed), int(seed), settings["data"])


def reopen(name: str, outputs: Path | None = None) -> Run:
    """前に作った実行を、そのときの設定で開く。無ければ WorkshopError。"""
    settings = read_json((outputs or OUTPUTS) / name / "run.json")
    return open_run(settings["profile"], name, settings["seed"], outputs)


Point = namedtuple("Point", "settings result origin")  # 設定、測った値（どこにも無ければ空）、どこから来た数字か


def key_of(settings: Mapping[str, Any]) -> str:
    """設定の指紋。順序によらず、値が一つでも違えば変わる。"""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def measured(run: Run, settings: Mapping[str, Any], compute: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Point:
    """設定ごとの結果を、前の計算、その場の計算（`profile.experiments` のとき。残す）、記録済みの結果の順に探す。"""
    path, date = EXPERIMENTS / f"{key_of(settings)}.json", time.strftime("%Y-%m-%d")
    if found := read_json(path, {}):
        return Point(settings, found["result"], f"前に計算（{found['date']}）")
    if run.profile.experiments:
        import torch

        record = {"settings": dict(settings), "result": compute(settings), "date": date, "versions": versions()}
        write_json(path, record | {"machine": f"{torch.get_num_threads()} スレッドの {platform.machine()}"})
        return Point(settings, record["result"], "いま計算")
    bare, rows = key_of({**settings, "data": ""}), read_json(RECORDED, {}).values()
    if found := next((row for row in rows if key_of({**row["settings"], "data": ""}) == bare), None):
        later = "" if found["settings"].get("data") == settings.get("data") else "。質問は、そのあとで書き直した"
        return Point(settings, found["result"], f"記録済み（{found['date']}、{found['machine']}{later}）")
    return Point(settings, {}, "まだ測っていない（PROFILE=full か EXPERIMENTS = True で計算する）")
