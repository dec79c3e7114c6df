"""公開先（pyproject.toml の `[project.urls]`）を、Colab のバッジと準備のセルと README に写す。"""

import re
import tomllib
from pathlib import Path

from lib.files import REPOSITORY, write_text

BADGE = "https://colab.research.google.com/github/{}/blob/main/notebooks/{}"
_OWNER = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/")


def address() -> str:
    """公開先の「持ち主/名前」。"""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def readdress(path: Path, new: str) -> bool:
    """ファイルの中の、前の公開先を新しいものに替える。替えたら True。"""
    text = path.read_text(encoding="utf-8")
    changed = text
    for old in set(_OWNER.findall(text)):
        changed = changed.replace(f"/{old}/blob/", f"/{new}/blob/").replace(f"github.com/{old}", f"github.com/{new}")
    if changed != text:
        write_text(path, changed)
    return changed != text


def main() -> None:
    """コマンドの入口。"""
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "notebooks").glob("*.ipynb"))):
        if readdress(path, address()):
            print(f"書き換えました: {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
