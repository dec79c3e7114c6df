"""一回の実行の作業場 `outputs/<run>/`。段ごとに成果物と指標を、壊れない形で書く。

各段は `outputs/<run>/<stage>/` に書き、最後に `metrics.json` を置く。これが「終わった」印になる。
書きかけのファイルは一時名で作ってから改名するので、途中で止めても半端なものが本物に見えない。
"""

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.files import REPOSITORY, base_of, file_sha256, find_data, fingerprint, read_json, write_json, write_manifest
from lib.profiles import MODELS, Profile, get_profile

OUTPUTS = REPOSITORY / "outputs"
STAGES = (
    "01_concepts",
    "02_dataset",
    "03_baseline",
    "04_lora_sft",
    "05_preference",
    "06_merge_to_gguf",
    "07_evaluation",
    "08_ladder",
)
APPENDICES = ("A0_experiments", "A1_methods", "A2_rlhf", "A3_failure_lab")
"""`make run` では走らない付録。それぞれ単独で実行する。"""
BUILT_IN = "support"
_NEEDED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
_PACKAGES = (*_NEEDED, "xllamacpp", "libgguf", "gguf")


def versions() -> dict[str, str]:
    """結果を左右する部品の版。"""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "なし"
    return found


@dataclass(frozen=True)
class Run:
    """一回の実行。

    Attributes:
        folder: `outputs/<run>`。
        profile: 設定一式。
        seed: 乱数の種。
        data: データの場所（作り付けなら "support"）。
    """

    folder: Path
    profile: Profile
    seed: int
    data: str = BUILT_IN

    def __str__(self) -> str:
        """準備のセルが出す二行: 版と、出力先・モデル・デバイス。"""
        numbers = "  ".join(f"{name} {number}" for name, number in list(versions().items())[:5])
        device = f"{self.profile.device} / {self.profile.dtype}"
        return f"{numbers}\n出力先: {self.folder}   モデル: {self.profile.model}   デバイス: {device}"

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
        facts |= {"data": self.data, "train_sha256": file_sha256(train) if train.exists() else None}
        if (work / "adapter_config.json").exists():
            facts["base"] = fingerprint(base) if (base := base_of(work)).is_dir() else None
        return {**facts, "versions": versions()}

    def report_progress(self, done: int, total: int, note: str) -> None:
        """長いセルの進み具合を、外から見えるファイルに書く。"""
        write_json(self.folder / "progress.json", {"done": done, "total": total, "note": note, "time": time.time()})


def data_path(data: str) -> Path | None:
    """DATA に書かれた場所を絶対パスにする。作り付けのデータなら None。

    `my` は `data/my/` のこと（探し方は `find_data`）。

    Raises:
        WorkshopError: 見つからないとき。
    """
    if data in ("", BUILT_IN):
        return None
    if found := find_data(data):
        return found.resolve()
    raise WorkshopError(
        f"データ「{data}」が見つかりません",
        'data/my/ に CSV か JSONL を置いて DATA = "my" とするか、ファイルの場所を書いてください',
    )


def open_run(profile: str, run: str | None = None, seed: int = 0, outputs: Path | None = None, data: str = "") -> Run:
    """実行の作業場を開く。初めてなら作り、二度目なら同じ設定か確かめる。

    Args:
        profile: プロファイル名。
        run: 実行の名前。省くとプロファイル名（自分のデータなら、その名前も付く）。
        seed: 乱数の種。
        outputs: 出力の根（テスト用）。
        data: データの場所。空なら、その実行が覚えているもの（初めてなら作り付けの "support"）。

    Raises:
        WorkshopError: 名前が使えない、別の設定の実行がある、書き込めないとき。
    """
    chosen = get_profile(profile)
    if lacking := [name for name in _NEEDED if versions()[name] == "なし"]:
        remedy = f"make setup を実行するか、python {REPOSITORY / 'lib' / 'bootstrap.py'} で入れてください"
        raise WorkshopError(f"部品がありません: {'、'.join(lacking)}", remedy)
    name = run or chosen.name
    if path := data_path(data):
        # リポジトリの中なら相対で覚える（別の機械に写した実行でも同じ意味になるように）。
        data = str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)
        name = run or f"{chosen.name}-{re.sub(r'[^A-Za-z0-9._-]+', '_', path.stem)[:40]}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise WorkshopError(
            f"実行の名前「{name}」は使えません", "英数字で始め、英数字と . _ - だけで 64 字以内にしてください"
        )
    folder = (outputs or OUTPUTS) / name
    settings = {"profile": chosen.name, "seed": int(seed)}
    if (folder / "run.json").exists():
        remembered = _remembered_data(folder, settings, data)
    elif folder.exists() and any(folder.iterdir()):
        raise WorkshopError("実行の記録（run.json）が無いフォルダです", "RUN に別の名前を指定してください", folder)
    else:
        remembered = data or BUILT_IN
        _write_settings(folder, {**settings, "data": remembered})
    return Run(folder, chosen, int(seed), remembered)


def reopen(name: str, outputs: Path | None = None) -> Run:
    """前に作った実行を、そのときの設定で開く。

    Raises:
        WorkshopError: その名前の実行が無いとき。
    """
    path = (outputs or OUTPUTS) / name / "run.json"
    if not path.exists():
        raise WorkshopError(f"実行「{name}」はありません", "先に make run を実行してください", path.parent)
    settings = read_json(path)
    return open_run(settings["profile"], name, settings["seed"], outputs)


def _remembered_data(folder: Path, settings: dict[str, Any], data: str) -> str:
    """前からある実行が使っているデータ。設定かデータが違えば止める。"""
    found = read_json(folder / "run.json")
    remembered = found.get("data", BUILT_IN)
    if {key: found.get(key) for key in settings} != settings or data not in ("", remembered):
        raise WorkshopError(
            "このフォルダは別の設定"
            f"（profile={found.get('profile')}, seed={found.get('seed')}, data={remembered}）の実行です",
            "RUN に別の名前を指定してください（何も上書きしていません）",
            folder,
        )
    return remembered


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """新しい実行の設定と版を書く。"""
    created = time.strftime("%Y-%m-%dT%H:%M:%S")
    try:
        write_json(folder / "run.json", {**settings, "created": created, "versions": versions()})
    except OSError as error:
        raise WorkshopError(f"書き込めません: {error.strerror}", "空き容量と権限を確かめてください", folder) from None
