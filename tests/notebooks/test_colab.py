"""一つだけ開いたノートブックのために: バッジ、どれも同じ準備のセル、リポジトリと部品の用意。"""

import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import refused
from maintain.address import BADGE, address, readdress

from lib import bootstrap
from lib.files import REPOSITORY, read_json

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
CLONE = address().split("/")[1]
AFTER = "\nfrom lib.run import open_run\n\nrun = open_run('smoke', 'alone')\nprint(run)"


def setup_cell(path):
    (found,) = [cell for cell in read_json(path)["cells"] if "setup" in cell["metadata"].get("tags", [])]
    return "".join(found["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_badge_opens_this_very_notebook_and_the_setup_is_short_and_the_same(path):
    cells = read_json(path)["cells"]
    assert f"]({BADGE.format(address(), path.name)})" in "".join(cells[0]["source"])
    assert cells[0]["metadata"]["tags"] == ["badge"]
    code, setup = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"], setup_cell(path)
    assert setup == setup_cell(NOTEBOOKS[0]) and len(setup.splitlines()) <= 8
    assert f"https://github.com/{address()}" in setup and f'"{CLONE}/lib/bootstrap.py"' in setup
    data = ", data=DATA, lang=DATA_LANG" if path.stem == "02_dataset" else ""
    opened = f"run = open_run(PROFILE, RUN, SEED{data})\nprofile = run.profile\nprint(run)"
    assert code[code.index(setup) + 1] == f"from lib.run import open_run\n\n{opened}", "版と出力先を、初めに出す"


def test_a_new_address_reaches_every_link(tmp_path):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"colab.research.google.com/github/{address()}/blob/main/notebooks/" in text
    path = tmp_path / NOTEBOOKS[0].name
    path.write_bytes(NOTEBOOKS[0].read_bytes())
    assert readdress(path, "someone/elsewhere") and not readdress(path, "someone/elsewhere")
    text = path.read_text(encoding="utf-8")
    assert address() not in text and text.count("someone/elsewhere") == 2
    cell = setup_cell(NOTEBOOKS[0]).replace(address(), "someone/elsewhere").replace(CLONE, "elsewhere")
    assert setup_cell(path) == cell


# make test の環境には lib が入れてある。それを見えなくして、入れていない人と同じにする。
NOT_INSTALLED = f"""import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path[:] = [place for place in sys.path if place != {str(REPOSITORY)!r}]
"""


def open_alone(folder, python=sys.executable, after=AFTER, **environment):
    """準備のセルと次のセルを、そのフォルダで実行する。部品は、ネットワークからは入れさせない。"""
    (folder / "cell.py").write_text(NOT_INSTALLED + setup_cell(NOTEBOOKS[1]) + after, encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "WORKSHOP_OUTPUTS")}
    kept |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "GIT_CONFIG_COUNT": "0"}
    told = subprocess.run(
        [python, "cell.py"], cwd=folder, capture_output=True, text=True, timeout=120, env=kept | environment
    )
    assert "Traceback" not in told.stderr, told.stderr
    return told


def instead(url, asked):
    """git に、`asked` の代わりに `url` から取らせる設定。"""
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{url}.insteadOf", "GIT_CONFIG_VALUE_0": asked}


@pytest.fixture
def published(tmp_path):
    """いまの作業木と同じ中身のリポジトリと、公開先の代わりにそれを取らせる git の設定。"""
    source = tmp_path / "published"
    listed = ["git", "ls-files", "-co", "--exclude-standard", "lib", "data/*.toml", "constraints.txt", "pyproject.toml"]
    for name in subprocess.check_output(listed, cwd=REPOSITORY, text=True).split():
        if (REPOSITORY / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    git = ["git", "-C", str(source), "-c", "user.name=x", "-c", "user.email=x@example.invalid"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    return instead(source.as_uri(), f"https://github.com/{address()}")


@pytest.mark.parametrize("other", ["", "__init__.py", "notes.txt"])
def test_opened_alone_the_cell_clones_once_and_another_lib_in_the_folder_is_no_obstacle(tmp_path, published, other):
    (content := tmp_path / "content").mkdir()
    (content / "pip.py").write_text("", encoding="utf-8")  # pip の代わりに、何もせず成功する
    if other:
        (content / "lib").mkdir()
        (content / "lib" / other).write_text("", encoding="utf-8")
    told = open_alone(content, **published)
    assert told.returncode == 0 and "足りない部品を入れます" in told.stdout, told.stderr
    assert [line.split()[0] for line in told.stdout.splitlines()[-2:]] == ["python", "出力先:"]
    assert (content / CLONE / "outputs" / "alone" / "run.json").exists()
    again = open_alone(content)  # 二度目は、取りもせず、入れもしない
    assert again.returncode == 0 and "足りない部品" not in again.stdout and "出力先" in again.stdout, again.stderr


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/inner"])
def test_a_bare_clone_needs_no_installation_and_no_network(tmp_path, published, place):
    """JupyterLab と VS Code と papermill は、それぞれ別のフォルダで始まる。"""
    source, folder = tmp_path / "published", tmp_path / "published" / place
    folder.mkdir(parents=True, exist_ok=True)
    outside = {"PYTHONPATH": str(source)} if "inner" in place else {}  # 離れたフォルダでは、入れてある lib を使う
    told = open_alone(folder, **outside)
    assert told.returncode == 0 and str(source / "outputs" / "alone") in told.stdout, told.stderr
    assert not (folder / CLONE).exists()


def test_missing_parts_are_one_sentence_and_no_clone(tmp_path, published):
    hide = "\nimport importlib.metadata as m\nfound = m.distributions\ndef distributions(name):\n"
    hide += "    return found(name=name) if name != 'torch' else ()\nm.distributions = distributions"
    show = "\nfrom lib.errors import command_line\nwith command_line(): open_run('smoke', 'alone')"
    after = hide + "\nfrom lib.run import open_run" + show
    refused(open_alone(tmp_path / "published", after=after), "部品がありません: torch")
    assert not (tmp_path / "published" / CLONE).exists()


@pytest.fixture
def pip(monkeypatch):
    """pip を呼ぶ所を控えるだけにする。"""
    calls = []

    def run(command, **_):
        held = Path(command[command.index("-c") + 1]).read_text(encoding="utf-8").split()
        calls.append((held, command[command.index("-c") + 2 :]))
        return SimpleNamespace(returncode=0, stdout="")

    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "lib", sys.modules["lib"])
    return calls


def test_torch_is_never_replaced(pip, capsys):
    bootstrap.main()
    ((held, wanted),) = pip
    assert f"そのまま使うもの: torch {version('torch')} " in capsys.readouterr().out
    names = {need.split(">")[0].split("=")[0] for need in wanted}
    assert names >= {"trl", "transformers", "papermill"} and not names & {*bootstrap.KEPT, "jupyterlab"}
    for name in bootstrap.KEPT:
        assert [pin for pin in held if pin.startswith(f"{name}==")] == [f"{name}=={version(name)}"]


def test_a_replaced_module_in_use_asks_for_a_restart_and_a_failed_install_is_one_sentence(monkeypatch, pip):
    states = [[SimpleNamespace(name=n, version=v) for n, v in (("pytest", v), ("trl", "1"))] for v in "12"]
    monkeypatch.setattr(bootstrap, "distributions", lambda: states.pop(0))
    with pytest.raises(SystemExit, match="✋.*pytest は前の版が動いています.*再起動"):
        bootstrap.main()
    states += [[], []]
    told = SimpleNamespace(returncode=1, stdout="x\nERROR: No matching distribution found for trl\n")
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_, **__: told)
    with pytest.raises(SystemExit, match="✋.*No matching distribution found for trl。"):
        bootstrap.main()


def test_the_cell_needs_only_python_and_pip_to_begin(tmp_path, published):
    """何も入っていない Python では、足りない部品を入れるところまで進み、入れられなければ一文で止まる。"""
    refused(open_alone(tmp_path, **instead("file:///nowhere/", "https://github.com/")), "✋")
    venv.create(tmp_path / "bare", symlinks=True)
    told = open_alone(tmp_path, tmp_path / "bare" / "bin" / "python", **published)
    refused(told, "部品を入れられません")
    assert "足りない部品を入れます" in told.stdout
