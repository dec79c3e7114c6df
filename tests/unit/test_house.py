"""家の決まり: 薄い lib、一方向の依存、出力の無いノートブック、二つの環境定義の一致。"""

import ast
import json
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from packaging.version import Version

from lib.files import REPOSITORY
from lib.profiles import PROFILES, profile_table
from lib.regression import compare, expected_from, write_junit
from lib.run import STAGES

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MODULES = sorted((REPOSITORY / "lib").rglob("*.py"))


# 部屋（lib の中のファイルかフォルダ）→ (行の上限, import してよい部屋)。上限は下がるだけ。形の理由は tests/README.md。
# errors はどこからも import してよい。talk は、どの部屋からも import されない。
HOUSE: dict[str, tuple[int, set[str]]] = {
    "__init__": (23, set()),
    "bootstrap": (67, {"files", "talk"}),
    "errors": (40, set()),
    "files": (103, set()),
    "profiles": (248, set()),
    "run": (253, {"files", "profiles"}),
    "text": (445, set()),
    "data": (1767, {"files", "profiles", "text", "run", "model"}),
    "model": (679, {"files", "profiles", "data", "text"}),
    "train": (673, {"files", "profiles", "model", "data", "run", "text"}),
    "score": (1078, {"files", "profiles", "text", "data", "model", "run"}),
    "export": (829, {"files", "model"}),
    "show": (1119, {"files", "profiles", "run", "score", "data", "talk"}),
    "execution": (177, {"files", "run", "scrub"}),
    "experiments": (84, {"files", "run"}),
    "fetch": (22, {"profiles", "model", "export"}),
    "lock": (38, set()),
    "pipeline": (154, {"files", "run", "execution", "lock", "model", "show"}),
    "scrub": (37, {"files"}),
    "badges": (38, {"files"}),
    "regression": (167, {"files", "run"}),
    "scoreboard": (197, {"files", "run", "profiles", "data", "score", "experiments", "regression", "talk"}),
    "talk": (
        1500,
        {"files", "profiles", "run", "data", "model", "text", "score", "export", "show", "train", "execution"},
    ),
}


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
    assert all(row["licence"] and row["why"] for row in profile_table()) and len(PROFILES) >= 8


def test_a_drifted_or_missing_metric_turns_red():
    runs = [{"a.x_accuracy": value, "01_concepts.lora_max_difference": 1e-7} for value in (0.95, 0.97, 0.96)]
    expected = expected_from(runs)
    assert all(row["ok"] for row in compare(runs[0], expected))
    assert not all(row["ok"] for row in compare({**runs[0], "a.x_accuracy": 0.5}, expected))
    assert not all(row["ok"] for row in compare({**runs[0], "01_concepts.lora_max_difference": 1.0}, expected))
    assert not all(row["ok"] for row in compare({"a.x_accuracy": 0.96}, expected))
    assert not all(row["ok"] for row in compare({**runs[0], "a.x_accuracy": float("nan")}, expected))


def test_the_drift_is_written_as_junit(tmp_path):
    expected = {
        "a.x": {"value": 1.0, "tolerance": 0.1},
        "b.y": {"at_most": 1e-5},
        "b.z": {"value": 0.0, "tolerance": 1.0},
    }
    write_junit(tmp_path / "junit.xml", compare({"a.x": 2.0, "b.z": 0.5}, expected))
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["a.x", "b.y"]


def test_expected_values_cover_the_promises_of_the_readme():
    expected = json.loads((REPOSITORY / "tests" / "results" / "expected.json").read_text(encoding="utf-8"))["embedded"]
    assert len(set(expected["seeds"])) >= 3
    metrics = expected["metrics"]
    assert metrics["03_baseline.near_accuracy"]["value"] <= 0.05
    assert metrics["07_evaluation.sft_near_accuracy"]["value"] >= 0.90
    assert metrics["07_evaluation.sft_unseen_accuracy"]["value"] <= 0.05
    assert metrics["06_merge_to_gguf.f16_token_agreement"]["value"] >= 0.99
    assert all(rule["why"] for rule in metrics.values())
