"""足りない Python パッケージを入れる。標準ライブラリだけで動き、準備のセルが実行する。"""

import importlib
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# そのまま使う部品。torch は GPU に合わせてあって数 GB あり、画面の部品は動いている最中に替えられない。
KEPT = ("torch", "ipykernel", "ipywidgets")


def main() -> None:
    """求める部品を pip に渡し、無いものと版の合わないものだけを、確かめた版で入れさせる。だめなら一文で終わる。"""
    sys.path.insert(0, str(ROOT))
    sys.modules.pop("lib", None)  # その場にあった、別の lib
    before, owners = {found.name: found.version for found in distributions()}, packages_distributions()
    kept = {name: before[name] for name in KEPT if name in before}
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    needs = [need for need in needs if re.split(r"[^\w-]", need)[0] not in {*kept, "jupyterlab"}]  # make lab だけが使う
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M)) | kept
    print("足りない部品を入れます（数分）。そのまま使うもの:", *(f"{name} {kept[name]}" for name in kept), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (hold := Path(folder) / "pins.txt").write_text("\n".join(map("==".join, pins.items())), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(hold), *needs]
        told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if told.returncode:
        reason = next((line for line in told.stdout.splitlines() if "ERROR" in line), told.stdout[-200:]).strip()
        sys.exit(f"✋ 部品を入れられません: {reason}。回線と Python の版（3.11〜3.13）を確かめてください。")
    importlib.invalidate_caches()
    after = {found.name: found.version for found in distributions()}
    loaded = {owner for module in list(sys.modules) for owner in owners.get(module, [])}
    if old := [name for name in sorted(loaded & before.keys()) if after.get(name) != before[name]]:
        remedy = "カーネルを再起動し（Colab では「ランタイム」→「セッションを再起動する」）、初めから実行してください。"
        sys.exit(f"✋ 部品は入りましたが、{'、'.join(old)} は前の版が動いています。{remedy}")


if __name__ == "__main__":
    main()
