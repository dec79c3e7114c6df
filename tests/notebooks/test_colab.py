"""一冊だけを開く人のために: バッジ、どれも同じ準備のセル、リポジトリと部品の用意。"""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from lib import bootstrap as alone
from lib.badges import BADGE, address, readdress
from lib.errors import WorkshopError
from lib.files import REPOSITORY
from lib.show.page import notebook_html

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def setup_cell(path):
    found = [c for c in cells_of(path) if c["cell_type"] == "code" and c["source"][0].startswith("# @title 準備")]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_badge_opens_this_very_notebook(path):
    first = cells_of(path)[0]
    assert f"]({BADGE.format(address(), path.name)})" in "".join(first["source"])
    assert first["metadata"]["tags"] == ["badge"]
    assert BADGE.format(address(), path.name) in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f'HOME = "https://github.com/{address()}"' in "".join(setup_cell(path)["source"])


def test_the_setup_cell_is_the_same_everywhere_and_folded():
    folded = {"cellView": "form", "jupyter": {"source_hidden": True}}
    assert all(setup_cell(path)["metadata"] == folded for path in NOTEBOOKS)
    sources = {"".join(setup_cell(path)["source"]).replace(", data=DATA", "") for path in NOTEBOOKS}
    assert len(sources) == 1
    assert re.findall(r"print\((.*?)\(", sources.pop())[0] == '"  ".join', "版を初めに出す"


def test_a_new_address_reaches_every_link(tmp_path):
    path = tmp_path / NOTEBOOKS[0].name
    path.write_bytes(NOTEBOOKS[0].read_bytes())
    assert readdress(path, "someone/elsewhere") and not readdress(path, "someone/elsewhere")
    text = path.read_text(encoding="utf-8")
    assert address() not in text and text.count("someone/elsewhere") == 2


def test_the_badge_is_left_out_of_the_offline_page(tmp_path):
    cells = [nbformat.from_dict(cell) for cell in cells_of(NOTEBOOKS[1])[:2]]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "two.ipynb")
    page = notebook_html(tmp_path / "two.ipynb", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "colab-badge" not in page and "ファインチューニングとは何か" in page


def open_alone(folder, python, **environment):
    """準備のセルだけを、リポジトリの外のフォルダで実行する。版の合わない部品があっても、テストの環境には入れさせない。"""
    source = 'PROFILE, SEED, RUN = "smoke", 0, "alone"\n' + "".join(setup_cell(NOTEBOOKS[1])["source"])
    (folder / "cell.py").write_text(source, encoding="utf-8")
    return subprocess.run(
        [python, "cell.py"], cwd=folder, capture_output=True, text=True, timeout=120,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""} | environment,
    )  # fmt: skip


@pytest.fixture
def published(tmp_path):
    """いまの作業木と同じ中身のリポジトリと、公開先の代わりにそれを取らせる git の設定。"""
    source = tmp_path / "published"
    for name in subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, text=True
    ).split():
        if name.startswith(("lib/", "constraints", "pyproject")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    git = ["git", "-C", str(source), "-c", "user.name=x", "-c", "user.email=x@example.invalid"]
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    return git, {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{source.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{address()}",
    }


def test_opened_alone_the_cell_clones_and_then_pulls(tmp_path, published):
    git, environment = published
    folder = tmp_path / "content"
    folder.mkdir()
    told = open_alone(folder, sys.executable, **environment)
    assert told.returncode == 0, told.stderr
    lines = [line for line in told.stdout.splitlines() if line.startswith(("python", "出力先"))]
    assert [line.split()[0] for line in lines] == ["python", "出力先:"]
    assert (folder / "finetuning-workshop" / "outputs" / "alone" / "run.json").exists()
    subprocess.run([*git, "commit", "-qm", "second", "--allow-empty"], check=True)
    assert open_alone(folder, sys.executable, **environment).returncode == 0
    log = subprocess.check_output(["git", "log", "--format=%s"], cwd=folder / "finetuning-workshop", text=True)
    assert log.split()[0] == "second"


def test_without_the_network_one_sentence_is_shown(tmp_path):
    told = open_alone(tmp_path, sys.executable, GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="url.file:///nowhere/.insteadOf",
                      GIT_CONFIG_VALUE_0="https://github.com/")  # fmt: skip
    assert told.returncode == 1 and "✋" in told.stderr and "Traceback" not in told.stderr


@pytest.fixture
def pip(monkeypatch):
    """pip を呼ぶ所を控えるだけにする。"""
    calls = []

    def run(command, **_):
        held = Path(command[command.index("-c") + 1]).read_text(encoding="utf-8").split()
        calls.append((held, command[command.index("-c") + 2 :]))
        return SimpleNamespace(returncode=0, stdout="")

    monkeypatch.setattr(alone.subprocess, "run", run)
    return calls


def lacking(monkeypatch, **found):
    monkeypatch.setattr(alone, "unmet", lambda: [(SimpleNamespace(name=n), v) for n, v in found.items()])


def test_torch_is_never_replaced(monkeypatch, pip, capsys):
    lacking(monkeypatch, torch="2.11.0+cu130", ipykernel="6.17.1", jupyterlab=None, trl=None, rouge_score="0.0.1")
    monkeypatch.setattr(alone, "_loaded", lambda names: [])  # ほかのテストが trl を読み込んでいることがある
    alone.install_missing()
    ((held, wanted),) = pip
    assert any(line.startswith("torch==") for line in held) and any(line.startswith("ipykernel==") for line in held)
    assert [name.split("==")[0].replace("_", "-") for name in wanted] == ["rouge-score", "trl"]
    assert "torch は、ここにある 2.11.0+cu130 をそのまま使います" in capsys.readouterr().out


def test_nothing_is_installed_when_nothing_is_missing(monkeypatch, pip):
    lacking(monkeypatch, torch="2.11.0", jupyterlab=None)
    alone.install_missing()
    assert not pip


def test_a_replaced_module_in_use_asks_for_a_restart(monkeypatch, pip):
    lacking(monkeypatch, pytest="1.0", evaluate=None)
    with pytest.raises(WorkshopError, match="pytest は前の版が動いています.*再起動"):
        alone.install_missing()


def test_a_failed_install_is_one_sentence(monkeypatch):
    lacking(monkeypatch, trl=None)
    told = SimpleNamespace(returncode=1, stdout="x\nERROR: No matching distribution found for trl\n")
    monkeypatch.setattr(alone.subprocess, "run", lambda *_, **__: told)
    with pytest.raises(WorkshopError, match="No matching distribution found for trl。"):
        alone.install_missing()


def test_the_cell_needs_only_packaging_and_pip_to_begin(tmp_path, published):
    """何も入っていない Python では、足りない部品を入れるところまで進み、入れられなければ一文で止まる。"""
    venv.create(tmp_path / "bare", symlinks=True)
    import packaging

    site = next((tmp_path / "bare" / "lib").glob("python*/site-packages"))
    (site / "packaging").symlink_to(os.path.dirname(packaging.__file__))
    told = open_alone(tmp_path, tmp_path / "bare" / "bin" / "python", **published[1])
    assert told.returncode == 1 and "足りない部品を入れます" in told.stdout and "部品を入れられません" in told.stderr
