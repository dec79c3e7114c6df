"""大事な所をわざと壊し、テストが必ず赤くなるかを見る。`make mutate` の中身（リポジトリの写しの中だけで壊す）。

使い方: python tests/maintain/mutations.py [名前の一部 ...]（壊す所は mutations.toml にある）
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MUTATIONS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["mutation"]


def run_tests(folder: Path, selections: list[str]) -> bool:
    """テストが緑か。テストそのものが動かない（終了コード 2 以上）のは、赤とは言わない。"""
    parts = [selection.split(" -k ") for selection in selections]
    files = sorted({str(next((folder / "tests").rglob(file))) for file, _ in parts})
    names = " or ".join(dict.fromkeys(name for _, name in parts))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files, "-k", names]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if result.returncode not in (0, 1):
        sys.exit(f"✋ テストが動きません（{names}）。\n{result.stdout[-2000:]}{result.stderr[-500:]}")
    return result.returncode == 0


def main() -> None:
    """写しを作り、まず壊さずに緑を確かめ、一つずつ壊しては戻す。見逃しがあれば終了コード 1。"""
    wanted = [one for one in MUTATIONS if not sys.argv[1:] or any(word in one["what"] for word in sys.argv[1:])]
    if not wanted:
        sys.exit(f"✋ 名前に {' か '.join(sys.argv[1:])} を含むものは mutations.toml にありません。")
    survived = 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        left_out = shutil.ignore_patterns(".*", "outputs", "__pycache__", "kernel-ipc*", "*.egg-info")
        folder = shutil.copytree(ROOT, Path(name) / "copy", ignore=left_out)
        if not run_tests(folder, [one["test"] for one in wanted]):
            sys.exit("✋ 壊す前からテストが赤です。先に make test を緑にしてください。")
        for one in wanted:
            path = folder / one["file"]
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(one["old"], one["new"]), encoding="utf-8")
            caught = not run_tests(folder, [one["test"]])
            path.write_text(text, encoding="utf-8")
            survived += not caught
            print(f"{'見つけた' if caught else '✋ 見逃した'}  {one['what']}  （{one['test']}）", flush=True)
    print(f"{len(wanted)} か所を壊し、{len(wanted) - survived} か所を見つけました")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
