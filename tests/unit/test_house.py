"""家の決まり: 薄い lib、一方向の依存、出力の無いノートブック、二つの環境定義の一致、`make mutate` の表。"""

import ast
import json
import re
import tomllib
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path
from unicodedata import east_asian_width

import pytest
from maintain.mutations import MUTATIONS
from packaging.version import Version

from lib.files import REPOSITORY
from lib.profiles import MODELS, PROFILES
from lib.run import STAGES


def text_of(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MODULES = {path: text_of(path) for path in sorted((REPOSITORY / "lib").rglob("*.py"))}
TREES = {path: ast.parse(text) for path, text in MODULES.items()}
NODES = [(path.name, node) for path, tree in TREES.items() for node in ast.walk(tree)]
DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PARTS = [(file, node) for file, node in NODES if isinstance(node, DEFINED[:2])]
PYPROJECT = text_of("pyproject.toml")
PROJECT = tomllib.loads(PYPROJECT)["project"]
PINS = {line.split("==")[0].lower().replace("_", "-"): line for line in text_of("constraints.txt").splitlines()}
HOUSE = tomllib.loads(text_of("tests/unit/house.toml"))
STARTED = {"execute", "export"}


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY / "lib").parts[0].removesuffix(".py")


def imported(tree):
    """木の中で import される lib の部屋（関数の中も見る）。"""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "lib":
            yield from (name.name for name in node.names)
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else getattr(node, "names", [])
        for name in (getattr(name, "name", name) for name in names):
            if name.startswith("lib."):
                yield name.split(".")[1]


def name_of(requirement):
    return re.split(r"[<>=\[;]", requirement)[0].strip().lower().replace("_", "-")


def test_every_room_keeps_its_ceiling_and_its_neighbours():
    lines = Counter()
    for path, text in MODULES.items():
        room = room_of(path)
        lines[room] += len(text.splitlines())
        strange = set(imported(TREES[path])) - {room, "errors", *HOUSE["rooms"][room][1]}
        assert not strange, f"{path}: {strange}"
    over = {room: count for room, count in lines.items() if count > HOUSE["rooms"][room][0]}
    assert not over, f"上限を超えた部屋: {over}"
    for part, most in HOUSE["sums"].items():
        chosen = [text for path, text in MODULES.items() if (room_of(path) == "talk") == (part == "talk")]
        found = sum(len(text.splitlines()) for text in chosen), sum(map(bool, chosen))
        assert found[0] <= most[0] and found[1] <= most[1], f"{part}: {found}"


def test_lib_is_imported_at_the_top_of_a_file_and_started_in_two_places():
    # torch や transformers のような重い部品は、使う所で import してよい。lib どうしは、いつもファイルの先頭で。
    inside = [f"{file}: {node.name}" for file, node in PARTS for _ in imported(node)]
    assert not inside, inside
    started = {room_of(path) for path, text in MODULES.items() if re.search(r'"-m",\s*("lib\.|__name__)', text)}
    assert started <= STARTED, started


def test_most_functions_are_short_and_public_ones_have_docstrings():
    long = [f"{file}: {node.name}" for file, node in PARTS if node.end_lineno - node.lineno + 1 > 45]
    assert not long, long
    public = [node for tree in TREES.values() for node in tree.body if isinstance(node, DEFINED)]
    silent = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not silent, silent


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean_and_have_parameters(path):
    notebook = json.loads(text_of(path))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "出力が残っています"
    assert "widgets" not in notebook["metadata"]
    (tagged,) = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert all(re.search(rf"^{name} =", "".join(tagged["source"]), re.M) for name in ("PROFILE", "SEED", "RUN"))
    text = "".join("".join(cell["source"]) for cell in code)
    assert '.to("cuda")' not in text and "input(" not in text and "google.colab" not in text


def test_cells_are_short_and_narrow():
    """一つのセルは一つのこと。長いセル・幅の広い行・整形を外す行の数は、表の数から下がるだけ。"""
    cells = [cell for path in NOTEBOOKS for cell in json.loads(text_of(path))["cells"] if cell["cell_type"] == "code"]
    lines = [cell["source"] for cell in cells]
    found = {
        "long": sum(len(cell) > 15 for cell in lines),
        "skip": sum("# fmt: skip" in "".join(cell) for cell in lines),
    }
    wide = [sum(2 if east_asian_width(c) in "WF" else 1 for c in line.rstrip("\n")) for cell in lines for line in cell]
    found["wide"] = sum(width > 100 for width in wide)
    over = {name: count for name, count in found.items() if count > HOUSE["cells"][name]}
    assert not over, f"上限を超えたセル: {over}"


def test_every_dependency_is_pinned_and_has_a_reason_and_environment_yml_follows():
    for word in (f"python{PROJECT['requires-python']}", "-c constraints.txt", "-e .[dev]", f"{PINS['torch']} "):
        assert word in text_of("environment.yml"), word
    for requirement in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        assert name_of(requirement) in PINS, requirement
        assert re.search(rf'"{re.escape(requirement)}",\s+# \S', PYPROJECT), f"{requirement} に理由がありません"


def test_ci_tries_the_oldest_versions_that_pyproject_allows():
    lowest = dict(re.findall(r"(\w+)>=([\d.]+)", " ".join(PROJECT["dependencies"])))
    tried = dict(re.findall(r"(\w+)==([\d.]+)", text_of(".github/workflows/ci.yml")))
    assert tried.keys() == {"transformers", "trl", "peft", "accelerate"}
    assert all(Version(tried[name]) == Version(lowest[name]) for name in tried)


def test_the_series_and_the_licences_are_complete():
    assert {path.stem for path in NOTEBOOKS} >= set(STAGES)
    assert "Apache License" in text_of("LICENSE") and "CC BY 4.0" in text_of("LICENSE-DATA")
    assert all(MODELS[profile.model].licence and profile.why for profile in PROFILES.values()) and len(PROFILES) >= 8


# この教材が使うと約束した部品。
TWELVE = {"torch", "transformers", "peft", "trl", "datasets", "fugashi", "unidic-lite", "jaconv", "evaluate"}
TWELVE |= {"matplotlib", "ipywidgets", "papermill"}
BY_OTHERS = {"accelerate", "sentencepiece", "jupyterlab", "ipykernel"}
"""import はしないが、Trainer・変換器・make lab・papermill が使う部品。"""


def test_every_promised_library_is_declared_and_no_declared_library_is_unused():
    declared, modules = set(map(name_of, PROJECT["dependencies"])), {}
    assert declared >= TWELVE and all(PINS[name].startswith(f"{name}==") for name in TWELVE)
    for module, names in packages_distributions().items():
        for name in map(name_of, names):
            modules.setdefault(name, {name}).add(module)
    text = "\n".join([*MODULES.values(), *map(text_of, NOTEBOOKS)])
    found = set(re.findall(r"^[\s\"]*(?:from|import) (\w+)", text, re.M))
    unused = [name for name in declared - BY_OTHERS if not modules.get(name, {name}) & found]
    assert not unused, unused


@pytest.mark.parametrize("one", MUTATIONS, ids=[one["what"] for one in MUTATIONS])
def test_every_mutation_has_its_one_place_and_its_test(one):
    """コードかテストを直したとき、`make mutate` が止まるのを待たずに気づく。"""
    assert text_of(one["file"]).count(one["old"]) == 1 and one["old"] != one["new"]
    module, name = one["test"].split(" -k ")
    source = next((REPOSITORY / "tests").rglob(module)).read_text(encoding="utf-8")
    assert name in source, one["test"]  # -k は、引数の名前（tied など）にも当たる
