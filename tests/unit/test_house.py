"""家の決まり: 薄い lib、一方向の依存、出力の無いノートブック、二つの環境定義の一致。"""

import ast
import json
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from lib.files import REPOSITORY
from lib.profiles import MODELS, PROFILES
from lib.run import STAGES

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MODULES = sorted((REPOSITORY / "lib").rglob("*.py"))


# 部屋（lib の中のファイルかフォルダ）→ (行の上限, import してよい部屋)。上限は下がるだけ。形の理由は tests/README.md。
# errors はどこからも import してよい。talk は、どの部屋からも import されない。
HOUSE: dict[str, tuple[int, set[str]]] = {
    "__init__": (15, set()),
    "bootstrap": (44, set()),
    "errors": (40, set()),
    "files": (102, set()),
    "profiles": (157, set()),
    "run": (187, {"files", "profiles"}),
    "text": (378, set()),
    "data": (636, {"files", "profiles", "text"}),
    "model": (402, {"files", "profiles", "data", "text"}),
    "train": (432, {"files", "profiles", "model", "data", "run", "text"}),
    "score": (384, {"files", "profiles", "text", "data", "model", "run"}),
    "export": (316, {"files", "model"}),
    "show": (311, {"files", "profiles", "run", "score", "data"}),
    "execute": (197, {"files", "run", "model", "show"}),
    "talk": (
        550,
        {"files", "profiles", "run", "data", "model", "text", "score", "export", "show", "train", "execute"},
    ),
}


SUMS = {"core": (9631 - 1464, 75), "talk": (550, 5)}
"""(行, 空でないファイル) の和の上限。下がるだけ。"""
HIDDEN_IMPORTS = 17
STARTED = {"execute", "export"}


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY / "lib").parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """そのファイルが import する部屋（関数の中も見る）。"""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "lib":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("lib.")}
    return found - {room_of(path), "errors"}


def test_every_room_keeps_its_ceiling_and_its_neighbours():
    lines: dict[str, int] = {}
    for path in MODULES:
        room = room_of(path)
        lines[room] = lines.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
        assert imports_of(path) <= HOUSE[room][1], f"{path}: {imports_of(path) - HOUSE[room][1]}"
    over = {room: count for room, count in lines.items() if count > HOUSE[room][0]}
    assert not over, f"上限を超えた部屋: {over}"


def test_the_whole_of_lib_keeps_its_ceiling():
    for part in ("core", "talk"):
        chosen = [path.read_text(encoding="utf-8") for path in MODULES if (room_of(path) == "talk") == (part == "talk")]
        files = [text for text in chosen if text]
        assert sum(len(text.splitlines()) for text in files) <= SUMS[part][0] and len(files) <= SUMS[part][1], part


def _parts_of(path: Path, kind: type) -> list[Any]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kind)]


def test_lib_is_imported_at_the_top_of_a_file():
    # torch や transformers のような重い部品は、使う所で import してよい。lib どうしは、いつもファイルの先頭で。
    inside = [
        f"{path.name}: {function.name}"
        for path in MODULES
        for function in _parts_of(path, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "lib" in ast.unparse(node).replace(".", " ").split()
    ]
    assert len(inside) <= HIDDEN_IMPORTS, inside


def test_lib_is_started_as_a_process_in_two_places():
    started = {
        room_of(path)
        for path in MODULES
        if re.search(r'"-m",\s*"lib\.|"-m",\s*__name__', path.read_text(encoding="utf-8"))
    }
    assert started <= STARTED, started


def test_most_functions_are_short():
    long = [
        f"{path.name}: {function.name} {size} 行"
        for path in MODULES
        for function in _parts_of(path, (ast.FunctionDef, ast.AsyncFunctionDef))
        if (size := function.end_lineno - function.lineno + 1) > 45
    ]
    assert len(long) <= 3, long


def test_public_functions_have_docstrings():
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_the_series_is_complete():
    assert {path.stem for path in NOTEBOOKS} >= set(STAGES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean_and_have_parameters(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), "出力が残っています"
    assert "widgets" not in notebook["metadata"]
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert all(re.search(rf"^{name} =", "".join(tagged[0]["source"]), re.M) for name in ("PROFILE", "SEED", "RUN"))
    text = "".join("".join(cell["source"]) for cell in code)
    assert '.to("cuda")' not in text and "input(" not in text and "google.colab" not in text


def test_environment_yml_defers_to_pyproject_and_constraints():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (REPOSITORY / "environment.yml").read_text(encoding="utf-8")
    assert f"python{project['requires-python']}" in text
    assert "-c constraints.txt" in text and "-e .[dev]" in text
    torch = re.search(r"^torch==(.+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert torch and f"torch=={torch[1]} " in text


def test_every_dependency_is_pinned_and_has_a_reason():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    }
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = re.split(r"[<>=\[]", requirement)[0]
        assert name.lower() in pins, name
        assert re.search(rf'"{re.escape(requirement)}",\s+# \S', text), f"{name} に理由がありません"


def test_ci_tries_the_oldest_versions_that_pyproject_allows():
    workflow = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = dict(re.findall(r"(\w+)>=([\d.]+)", " ".join(project["dependencies"])))
    tried = dict(re.findall(r"(\w+)==([\d.]+)", workflow))
    assert tried.keys() == {"transformers", "trl", "peft", "accelerate"}
    assert all(Version(tried[name]) == Version(lowest[name]) for name in tried)


def test_both_licences_are_present():
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "CC BY 4.0" in (REPOSITORY / "LICENSE-DATA").read_text(encoding="utf-8")


def test_every_profile_names_its_licence():
    assert all(MODELS[profile.model].licence and profile.why for profile in PROFILES.values()) and len(PROFILES) >= 8


TWELVE = (
    *("torch", "transformers", "peft", "trl", "datasets", "fugashi", "unidic-lite", "jaconv", "evaluate"),
    *("matplotlib", "ipywidgets", "papermill"),
)
"""この教材が使うと約束した部品。"""
BY_OTHERS = {"accelerate", "sentencepiece", "unidic-lite", "jupyterlab", "ipykernel"}
"""import はしないが、Trainer・変換器・fugashi・make lab・papermill が使う部品。"""
_NO_IMPORT = {"unidic-lite": "fugashi"}  # 辞書は、import されず、fugashi が読む


@pytest.mark.parametrize("name", TWELVE)
def test_every_promised_library_is_declared_and_used(name):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(re.match(rf"{name}[^\w-]", requirement) for requirement in project["dependencies"]), name
    assert re.search(rf"^{name}==", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.M), name
    module = _NO_IMPORT.get(name, name)
    pattern = re.compile(rf"^\s*\"?(?:from|import) {module}\b", re.M)
    used = [path for path in [*NOTEBOOKS, *MODULES] if pattern.search(path.read_text(encoding="utf-8"))]
    assert used, f"{name} は、どのノートブックからも、その下の lib からも使われていません"


def test_no_declared_library_is_unused():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    owners = packages_distributions()
    modules = {}
    for module, names in owners.items():
        for name in names:
            modules.setdefault(name.lower().replace("_", "-"), set()).add(module)
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*MODULES, *NOTEBOOKS, REPOSITORY / "Makefile"])
    unused = []
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=\[;]", requirement)[0].strip().lower().replace("_", "-")
        found = modules.get(name, {name})
        if name not in BY_OTHERS and not any(re.search(rf"\b{re.escape(module)}\b", text) for module in found):
            unused.append(name)
    assert not unused, unused
