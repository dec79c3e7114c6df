"""言葉の歯止め: 検索しても出てこない言い方（words.toml）の数は、下がるだけ。言い換えは、教材の用語の決まりのとおり。"""

import json
import re
import tomllib
from pathlib import Path

import pytest

from lib.files import REPOSITORY

BANNED = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


def texts():
    """学ぶ人と利用者が読む文章のすべて（データの雛形と図も。記録済みの結果は除く）。"""
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        yield "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
    data, names = REPOSITORY / "data", ("../README.md", "../Makefile", "../environment.yml", "glossary/terms.csv")
    files = {*(data / name for name in names), *(REPOSITORY / "lib").rglob("*.py")}
    files |= {*data.glob("*/README.md"), *data.glob("*/*.json")}
    files |= {path for place in ("templates", "pictures") for path in (data / place).rglob("*") if path.is_file()}
    yield from (path.read_text(encoding="utf-8") for path in sorted(files) if "recorded" not in path.parts)


@pytest.fixture(scope="module")
def everything():
    return "\n".join(texts())


@pytest.mark.parametrize("pattern", BANNED)
def test_a_banned_word_only_gets_rarer(pattern, everything):
    instead, most = BANNED[pattern]
    found = len(re.findall(pattern, everything))
    assert found <= most, f"「{pattern}」が {found} 個（上限 {most}）。「{instead}」と書いてください"
