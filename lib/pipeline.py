"""ノートブックを順に実行し、表と index.html で終わる。`make run` の中身。

使い方: `python -m lib.pipeline --profile embedded --run 名前 [段 ...]`
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.manager import AsyncKernelManager
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from lib.errors import WorkshopError, command_line
from lib.lock import only_one
from lib.models import resolve
from lib.report import shown_stages, stage_summary, write_index
from lib.scrub import scrub, scrub_file
from lib.weights import file_sha256
from lib.workspace import APPENDICES, REPOSITORY, STAGES, Run, data_path, open_run, read_json, write_json

# 学習のセルが終わらないとき、papermill を無限に待たせない（ウィジェットが止める例がある）。
_CELL_TIMEOUT_SECONDS = 3600
_KERNEL_START_SECONDS = 180  # 既定の 60 秒では、混んだ機械で起動しきれないことがあった


class Progress:
    """いまどのノートブックのどのセルかを、端末なら 1 行で、そうでなければ 30 秒ごとに知らせる。"""

    def __init__(self, run: Run, stage: str, expected: float | None) -> None:
        self.run, self.stage, self.expected = run, stage, expected
        self.cell, self.cells = 0, 0
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._terminal = sys.stdout.isatty()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "Progress":
        (self.run.folder / "progress.json").unlink(missing_ok=True)
        self._show()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._terminal:
            print()

    def elapsed(self) -> float:
        """始めてからの秒数。"""
        return time.monotonic() - self._start

    def _loop(self) -> None:
        while not self._stop.wait(1 if self._terminal else 30):
            self._show()

    def _show(self) -> None:
        expected = f"{clock(self.expected)}" if self.expected else "不明"
        line = f"[{place(self.stage)}] {self.stage}  セル {self.cell}/{self.cells or '?'}"
        line += f"  経過 {clock(self.elapsed())} / 見込み {expected}"
        with contextlib.suppress(WorkshopError):
            step = read_json(self.run.folder / "progress.json")
            line += f"  ({step['done']}/{step['total']} {step['note']})"
        print(f"\r\033[K{line}" if self._terminal else line, end="" if self._terminal else "\n", flush=True)


class LocalKernelManager(AsyncKernelManager):
    """カーネルと TCP でなくファイルのソケットで話す。ほかの利用者から覗けず、port も開かない。

    Attributes:
        kernel_log: カーネルの独り言を書くファイル。始める前に決める。
    """

    kernel_log: Path

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"transport": "ipc", **settings})

    async def _async_launch_kernel(self, kernel_cmd: list[str], **settings: Any) -> None:
        """カーネル自身の独り言（止めたときのトレースバックなど）は画面でなく `kernel.log` に書く。"""
        with self.kernel_log.open("ab") as log:
            await super()._async_launch_kernel(kernel_cmd, **{**settings, "stderr": log})

    _launch_kernel = _async_launch_kernel


class _WatchedEngine(NBClientEngine):
    """papermill の標準の実行器に、セルの番号を知らせる口を足したもの。"""

    progress: Progress

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        watched = cls.progress
        watched.cells = len(nb_man.nb.cells)
        original = nb_man.cell_start

        def cell_start(cell: Any, cell_index: Any = None, **more: Any) -> Any:
            watched.cell = (cell_index or 0) + 1
            (watched.run.folder / "progress.json").unlink(missing_ok=True)
            return original(cell, cell_index, **more)

        nb_man.cell_start = cell_start
        kwargs["kernel_manager_class"] = LocalKernelManager
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register("watched", _WatchedEngine)


def clock(seconds: float | None) -> str:
    """秒を「分:秒」にする。"""
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def place(stage: str) -> str:
    """段が全体の何番目か。付録には番号が無い。"""
    return f"{STAGES.index(stage) + 1}/{len(STAGES)}" if stage in STAGES else "付録"


def source_of(stage: str) -> Path:
    """段のノートブック。"""
    return REPOSITORY / "notebooks" / f"{stage}.ipynb"


def _parameters(run: Run, stage: str) -> dict[str, Any]:
    """段のノートブックに渡す値。どのデータを使うかは 02 だけが決める。"""
    values = {"PROFILE": run.profile.name, "SEED": run.seed, "RUN": run.folder.name}
    return {**values, "DATA": run.data} if stage == "02_dataset" else values


def _fingerprint(run: Run, stage: str) -> str:
    """段の結果を左右するもの（ノートブックと、02 では自分のデータ）の SHA-256。"""
    path = data_path(run.data) if stage == "02_dataset" else None
    return file_sha256(source_of(stage)) + (f"+{file_sha256(path)}" if path else "")


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
    target = run.folder / "notebooks" / f"{stage}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    seconds = dict(zip(STAGES, run.profile.expected_seconds, strict=False))
    expected = float(seconds[stage]) if stage in seconds else None
    with Progress(run, stage, expected) as progress:
        _WatchedEngine.progress = progress
        LocalKernelManager.kernel_log = run.folder / "kernel.log"
        try:
            papermill.execute_notebook(
                source_of(stage),
                target,
                parameters=_parameters(run, stage),
                kernel_name="python3",
                engine_name="watched",
                progress_bar=False,
                start_timeout=_KERNEL_START_SECONDS,
                execution_timeout=_CELL_TIMEOUT_SECONDS,
                cwd=str(REPOSITORY / "notebooks"),
            )
        except PapermillExecutionError as error:
            if error.ename == "WorkshopError":
                raise WorkshopError(
                    scrub(str(error.evalue)).rstrip("。"), f"実行の写しは {target} にあります"
                ) from None
            raise WorkshopError(
                f"{error.ename}: {scrub(str(error.evalue))[:300]}",
                f"実行の写し {target} を開くと、どこで失敗したかが見えます",
                f"{stage} のセル {error.cell_index + 1}",
            ) from None
        except RuntimeError as error:  # カーネルが起動しない、または途中で落ちた
            raise WorkshopError(
                f"ノートブックを動かすカーネルが止まりました: {error}",
                "メモリの空きとほかの重い処理を確かめ、同じコマンドで続きから始めてください",
                stage,
            ) from None
        finally:
            scrub_file(target)
            scrub_file(run.folder / "kernel.log")
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
