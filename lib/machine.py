"""この機械の使い方: スレッドの数、malloc の癖、メモリの測り方。学習の結果には関わらない。"""

import copy
import ctypes
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError

_ROUNDS = 9  # 2 コアの機械で 2〜3 秒。1 秒ほどの邪魔なら、中央値は動かない


def prepare_cpu() -> str:
    """CPU の計算を速くする二つの準備をして、何をしたかを伝える文を返す（結果の値には関わらない）。

    - スレッド数を、短い行列積で測って選ぶ（`fastest_threads`）。
    - Linux の malloc に、一度使ったメモリを OS に返させない。返しては借り直す手間が、学習の 1 割を超えることがある
      （mallopt(3) の M_TRIM_THRESHOLD と M_MMAP_THRESHOLD）。
    """
    best, rate = fastest_threads()
    kept = "、malloc はメモリを手元に残す" if _keep_memory() else ""
    return f"CPU のスレッド: {best} 本（何本かで測り、行列積が毎秒 {rate:,.0f} GFLOP で最も速い）{kept}"


def fastest_threads() -> tuple[int, float]:
    """行列積がいちばん速いスレッド数に決め、(その本数, 毎秒の GFLOP) を返す。

    ほかの処理と取り合うと、多いほど遅いことがある。一瞬の邪魔で決めないように、候補を代わる代わる測り、中央値で比べる。
    """
    import torch

    left, right = torch.randn(1024, 576), torch.randn(576, 1536)
    most = torch.get_num_threads()
    rounds: dict[int, list[float]] = {count: [] for count in sorted({1, max(1, most // 2), most})}
    for _ in range(_ROUNDS):
        for count, taken in rounds.items():
            torch.set_num_threads(count)
            left @ right  # 1 回目はスレッドの用意が混じる
            taken.append(_seconds(lambda: [left @ right for _ in range(8)]))
    seconds = {count: statistics.median(taken) for count, taken in rounds.items()}
    best = min(seconds, key=lambda count: seconds[count])
    torch.set_num_threads(best)
    return best, 8 * 2 * 1024 * 576 * 1536 / seconds[best] / 1e9


def agrees_with_cpu(model: Any, batch: Mapping[str, Any], tolerance: float = 1e-3) -> str:
    """MPS なら、一束の損失と勾配を CPU の写しと比べ、言うことを返す（MPS には、黙って違う値を出す不具合があった）。

    Args:
        model: 学習するモデル。重みは動かさない。
        batch: `labels` を持つ一束。
        tolerance: 許す相対的な差。fp32 の丸めなら 1e-5 ほどで、間違いなら桁で違う。

    Raises:
        WorkshopError: 差が大きいとき。
    """
    import torch

    if model.device.type != "mps":
        return f"{model.device.type} で学習します（CPU との比較が要るのは mps だけです）"

    def measure(one: Any, rows: Mapping[str, Any]) -> torch.Tensor:
        loss = one(**rows).loss
        loss.backward()
        slopes = torch.stack([p.grad.norm().cpu() for p in one.parameters() if p.grad is not None])
        one.zero_grad()
        return torch.stack([loss.detach().cpu(), slopes.norm()]).double()

    here = measure(model, batch)
    there = measure(copy.deepcopy(model).cpu(), {key: value.cpu() for key, value in batch.items()})
    gap = float(((here - there).abs() / there.abs().clamp_min(1e-12)).max())
    if not gap <= tolerance:  # NaN も、ここで止まる
        raise WorkshopError(
            f"mps の損失と勾配の大きさが、CPU と相対で {gap:.1e} 違います（許すのは {tolerance:.0e} まで）",
            "macOS と torch を新しくするか、PROFILE を embedded にして CPU で学習してください",
        )
    return f"mps の一束の損失と勾配の大きさは CPU と同じです（相対の差 {gap:.1e}）"


def _keep_memory() -> bool:
    """glibc の malloc なら、1 GiB までの解放を OS に返さないようにする。"""
    if platform.libc_ver()[0] != "glibc":
        return False
    malloc_option = ctypes.CDLL(None).mallopt
    trim, mmap = -1, -3  # malloc.h の M_TRIM_THRESHOLD と M_MMAP_THRESHOLD
    return bool(malloc_option(trim, 1 << 30) and malloc_option(mmap, 1 << 30))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """囲んだ処理の間に、このプロセスが使ったメモリの最大（GiB）を測る。

    Linux では最大の印（VmHWM）を始めに戻してから測る（proc(5) の clear_refs に 5 を書く）。
    ほかの OS には戻す手段が無いので、何も入れない。

    Yields:
        終わると `gib` が入る辞書。
    """
    found: dict[str, float] = {}
    gc.collect()
    if sys.platform == "linux":
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    yield found
    if sys.platform == "linux":
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        found["gib"] = int(line.split()[1]) / 2**20
