"""ノートブックを順に実行し、表と index.html で終わる。`make run` の中身。

使い方: `python -m lib.pipeline --profile embedded --run 名前 [段 ...]`
"""

import argparse
import hashlib
import logging
import os
import signal
from pathlib import Path
from typing import Any

import nbformat

from lib.errors import WorkshopError, command_line
from lib.execution import Progress, WatchedEngine, clock, place, run_notebook
from lib.files import REPOSITORY, file_sha256, read_json, write_json
from lib.lock import only_one
from lib.model.load import resolve
from lib.run import APPENDICES, STAGES, Run, data_path, open_run, versions
from lib.show.page import shown_stages, stage_summary, write_index


def source_of(stage: str) -> Path:
    """段のノートブック。"""
    return REPOSITORY / "notebooks" / f"{stage}.ipynb"


def _parameters(run: Run, stage: str) -> dict[str, Any]:
    """段のノートブックに渡す値。どのデータを使うかは 02 だけが決める。"""
    values = {"PROFILE": run.profile.name, "SEED": run.seed, "RUN": run.folder.name}
    return {**values, "DATA": run.data} if stage == "02_dataset" else values


def _fingerprint(run: Run, stage: str) -> str:
    """段の結果を左右するもの（ノートブックのコードとライブラリの版、02 では自分のデータも）の SHA-256。

    文章・出力・`run.finish` の後の練習は結果を変えないので、直しても実行し直さない。
    """
    cells = [cell.source for cell in nbformat.read(source_of(stage), as_version=4).cells if cell.cell_type == "code"]
    last = next((place for place, source in enumerate(cells) if "run.finish(" in source), len(cells))
    code = hashlib.sha256("\0".join([*cells[: last + 1], *map(str, versions().items())]).encode()).hexdigest()
    path = data_path(run.data) if stage == "02_dataset" else None
    return code + (f"+{file_sha256(path)}" if path else "")


def _load_record(run: Run) -> dict[str, Any]:
    path = run.folder / "stages.json"
    return read_json(path) if path.exists() else {}


def execute(run: Run, stage: str) -> float:
    """ノートブックを 1 つ実行し、実行済みの写しを `outputs/<run>/notebooks/` に残す。

    Returns:
        かかった秒数。

    Raises:
        WorkshopError: セルが失敗したとき（どのセルで何が起きたかを一文で）。
    """
    record = _load_record(run)
    record.pop(stage, None)
    (run.folder / stage / "metrics.json").unlink(missing_ok=True)
    write_json(run.folder / "stages.json", record)
    seconds = dict(zip(STAGES, run.profile.expected_seconds, strict=False))
    expected = float(seconds[stage]) if stage in seconds else None
    with Progress(run, stage, expected) as progress:
        WatchedEngine.progress = progress
        run_notebook(run, source_of(stage), stage, _parameters(run, stage), engine="watched")
        elapsed = progress.elapsed()
    record = _load_record(run)  # 上流を作るために別のプロセスが書き足していることがある
    record[stage] = {"seconds": round(elapsed, 1), "source": _fingerprint(run, stage)}
    write_json(run.folder / "stages.json", record)
    return elapsed


def is_current(run: Run, stage: str) -> bool:
    """終わっていて、ノートブックと自分のデータがその後変わっていないか。"""
    found = _load_record(run).get(stage)
    return run.is_done(stage) and found is not None and found["source"] == _fingerprint(run, stage)


def run_all(run: Run, stages: list[str], index: bool) -> None:
    """段を順に実行する。終わっている段は飛ばし、一つでもやり直したら後ろもやり直す。

    Raises:
        WorkshopError: 重みが得られない、またはどれかの段が失敗したとき。
    """
    resolve(run.profile)
    stale = False
    try:
        for stage in stages:
            if not stale and is_current(run, stage):
                print(f"[{place(stage)}] {stage}  済み（飛ばします）")
                continue
            stale = True
            if (run.folder / stage).exists() and not run.is_done(stage):
                print(f"[{place(stage)}] {stage}  途中の成果物があります。学習は保存した所から、ほかは最初から続けます")
            seconds = execute(run, stage)
            print(f"    → {clock(seconds)}  {stage_summary(run, stage)}", flush=True)
    finally:
        (run.folder / "progress.json").unlink(missing_ok=True)
        if index:
            print_table(run)
            print(f"\n読む: {write_index(run, _load_record(run))}")


def print_table(run: Run) -> None:
    """段・分・主な指標・成否の表を出す。"""
    record = _load_record(run)
    print(f"\n{'ノートブック':<20}{'分':>8}  状態  主な指標")
    for stage in shown_stages(run, record):
        done = run.is_done(stage) and stage in record
        minutes = f"{record[stage]['seconds'] / 60:.1f}" if done else "-"
        print(f"{stage:<24}{minutes:>8}  {'ok  ' if done else '未完'}  {stage_summary(run, stage)}")
    total = sum(entry["seconds"] for entry in record.values()) / 60
    print(f"{'合計':<22}{total:>8.1f}")


def main() -> None:
    """コマンドの入口。"""
    parser = argparse.ArgumentParser(description="ノートブックを順に実行する")
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--run", default=None, help="実行の名前（省くとプロファイル名）")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="", help="自分のデータ（CSV・JSONL などの場所、または data/my を表す my）")
    parser.add_argument("--no-index", action="store_true", help="表と index.html を作らない")
    parser.add_argument("stages", nargs="*", help="実行する段（省くと全部）")
    options = parser.parse_args()
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # Ctrl-C の後、待つ人のいなくなった見張りが「カーネルが死んだ」と書き残す。その一行だけ出さない。
    logging.getLogger("asyncio").addFilter(lambda record: "DeadKernelError" not in record.getMessage())
    # 裏で起動されたプロセスは SIGINT を無視する設定を受け継ぐ。それでも Ctrl-C で止まれるように戻す。
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    os.environ["WORKSHOP_HEADLESS"] = "1"  # 触る部品を出さない（lib.widgets）
    with command_line():
        known = (*STAGES, *APPENDICES)
        unknown = [name for name in options.stages if name not in known]
        if unknown:
            raise WorkshopError(f"段「{unknown[0]}」はありません", f"次から選んでください: {', '.join(known)}")
        run = open_run(options.profile, options.run or None, options.seed, data=options.data)
        wanted = options.stages or run.stages
        with only_one(run.folder):
            try:
                run_all(run, [name for name in known if name in wanted], index=not options.no_index)
            except OSError as error:  # 空き容量が尽きた、権限が無いなど
                remedy = "空き容量と権限を確かめ、同じコマンドで続きから始めてください"
                raise WorkshopError(f"書き込めません: {error.strerror}", remedy, run.folder) from None


if __name__ == "__main__":
    main()
