"""公開先（pyproject.toml の `[project.urls]`）を、Colab のバッジと準備のセルと README に写す。

使い方: python tests/maintain/address.py
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BADGE = "https://colab.research.google.com/github/{}/blob/main/notebooks/{}"
_OWNER = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/")


def address() -> str:
    """公開先の「持ち主/名前」。"""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def readdress(path: Path, new: str) -> bool:
    """ファイルの中の、前の公開先を新しいものに替える。替えたら True。"""
    text = path.read_text(encoding="utf-8")
    changed = text
    for old in set(_OWNER.findall(text)):
        changed = changed.replace(f"/{old}/blob/", f"/{new}/blob/").replace(f"github.com/{old}", f"github.com/{new}")
        name, renamed = old.split("/")[1], new.split("/")[1]  # 準備のセルが取ってくるフォルダの名前
        changed = changed.replace(f'\\"{name}\\")', f'\\"{renamed}\\")').replace(f'\\"{name}/lib', f'\\"{renamed}/lib')
    path.write_text(changed, encoding="utf-8")
    return changed != text


if __name__ == "__main__":
    for path in (ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))):
        if readdress(path, address()):
            print(f"書き換えました: {path.relative_to(ROOT)}")
