"""一冊だけを開いたとき（Colab など）に、足りない部品を入れる。その場の torch と、動いている画面の部品には触れない。"""

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from packaging.utils import canonicalize_name

from lib.errors import WorkshopError
from lib.files import REPOSITORY
from lib.talk.venue import unmet

KEPT = ("torch", "ipykernel", "ipywidgets")
"""その場にあるものを使う部品。torch は GPU に合わせてあって数 GB あり、画面の部品は動いている最中に替えられない。"""


def install_missing(kept: Sequence[str] = KEPT) -> None:
    """教材が求める部品のうち、無いものと版の合わないものだけを、動作を確かめた版で入れる。

    Raises:
        WorkshopError: 入れられなかったとき。読み込み済みの部品が替わり、カーネルの再起動が要るとき。
    """
    lacking = [(canonicalize_name(need.name), found) for need, found in unmet()]
    for name, found in lacking:
        if name in kept and found:
            print(f"{name} は、ここにある {found} をそのまま使います（教材が確かめた版とは違います）。")
    # jupyterlab を使うのは make lab だけ
    names = [name for name, found in lacking if not (name in kept and found) and name != "jupyterlab"]
    if not names:
        return
    pins = [line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line]
    wanted = [f"{name}=={pin}" for name, pin in pins if canonicalize_name(name) in names]
    print(f"足りない部品を入れます（数分）: {' '.join(wanted)}", flush=True)
    loaded = _loaded(names)
    with tempfile.TemporaryDirectory() as folder:
        hold = Path(folder) / "kept.txt"
        hold.write_text("\n".join(f"{name}=={found}" for name in kept if (found := _version(name))), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(hold), *wanted]
        told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if told.returncode:
        reason = next((line for line in told.stdout.splitlines() if "ERROR" in line), told.stdout[-200:])
        raise WorkshopError(
            f"部品を入れられません: {reason.strip()}", "回線と Python の版（3.11〜3.13）を確かめてください"
        )
    importlib.invalidate_caches()
    if loaded:
        raise WorkshopError(
            f"部品は入りましたが、{'、'.join(loaded)} は前の版が動いています",
            "カーネルを再起動し（Colab では「ランタイム」→「セッションを再起動する」）、初めから実行してください",
        )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _loaded(names: Sequence[str]) -> list[str]:
    """これから替わる部品のうち、このカーネルがすでに読み込んだもの。"""
    owners = packages_distributions()
    return sorted({canonicalize_name(n) for module in list(sys.modules) for n in owners.get(module, [])} & set(names))
