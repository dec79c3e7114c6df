"""言葉: 検索しても出てこない言い方（words.toml）の数は、下がるだけ。用語集は重ならず、指す所に本当にその言葉がある。"""

import csv
import json
import re

import pytest
from conftest import table_beside

from lib.files import REPOSITORY

BANNED = table_beside(__file__, "words")


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


def test_every_term_is_explained_and_found_where_it_points():
    text = (REPOSITORY / "data" / "glossary" / "terms.csv").read_text(encoding="utf-8")
    terms = list(csv.DictReader(text.splitlines()))
    assert len(terms) >= 30 and all(all(term.values()) for term in terms)
    assert len({term["ja"] for term in terms}) == len({term["en"] for term in terms}) == len(terms)
    for term in terms:
        page = (REPOSITORY / "notebooks" / f"{term['notebook']}.ipynb").read_text(encoding="utf-8")
        text = page.lower().replace("_", " ")
        assert re.sub(r"（.+）", "", term["ja"]).lower() in text or term["en"].lower() in text, term["ja"]
