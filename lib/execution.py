"""ノートブックを一つ、画面なしで最後まで動かす。何番目のセルにいるかを知らせ、秘密の値を消した写しを残す。"""

import contextlib
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.manager import AsyncKernelManager
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from lib.errors import WorkshopError
from lib.files import REPOSITORY, read_json
from lib.run import STAGES, Run
from lib.scrub import scrub, scrub_file

# 学習のセルが終わらないとき、papermill を無限に待たせない（ウィジェットが止める例がある）。
CELL_SECONDS = 3600
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

    ソケットは、このカーネルだけの一時フォルダに置く（既定の場所では、同時に始めた二つの実行が同じ名前を取り合った）。

    Attributes:
        kernel_log: カーネルの独り言を書くファイル。始める前に決める。
    """

    kernel_log: Path

    def __init__(self, **settings: Any) -> None:
        self._sockets = tempfile.TemporaryDirectory(prefix="workshop-kernel-")
        super().__init__(**{"transport": "ipc", "ip": f"{self._sockets.name}/kernel", **settings})

    async def _async_launch_kernel(self, kernel_cmd: list[str], **settings: Any) -> None:
        """カーネル自身の独り言（止めたときのトレースバックなど）は画面でなく `kernel.log` に書く。"""
        with self.kernel_log.open("ab") as log:
            await super()._async_launch_kernel(kernel_cmd, **{**settings, "stderr": log})

    _launch_kernel = _async_launch_kernel


class WatchedEngine(NBClientEngine):
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
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register("watched", WatchedEngine)


def clock(seconds: float | None) -> str:
    """秒を「分:秒」にする。"""
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def place(stage: str) -> str:
    """段が全体の何番目か。付録には番号が無い。"""
    return f"{STAGES.index(stage) + 1}/{len(STAGES)}" if stage in STAGES else "付録"


def run_notebook(
    run: Run,
    source: Path,
    stage: str,
    parameters: dict[str, Any],
    timeout: int = CELL_SECONDS,
    engine: str | None = None,
) -> Path:
    """ノートブックを最後まで動かし、秘密の値を消した写しの場所を返す。

    Args:
        run: 実行。
        source: ノートブック。
        stage: 段の名前。写しの名前になる。
        parameters: 準備のセルに渡す値。
        timeout: 一つのセルを待つ秒。
        engine: papermill の実行器の名前（`watched` など）。無ければ papermill の標準。

    Raises:
        WorkshopError: セルが失敗したとき、カーネルが止まったとき。
    """
    target = run.folder / "notebooks" / f"{stage}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    LocalKernelManager.kernel_log = run.folder / "kernel.log"
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=_KERNEL_START_SECONDS,
            execution_timeout=timeout,
            cwd=str(REPOSITORY / "notebooks"),
            engine_name=engine,
            kernel_manager_class=LocalKernelManager,
        )
    except PapermillExecutionError as error:
        if error.ename == "WorkshopError":
            raise WorkshopError(scrub(str(error.evalue)).rstrip("。"), f"実行の写しは {target} にあります") from None
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
    return target
