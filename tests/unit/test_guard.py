"""二つ同時に走らせない、秘密を残さない、書き込めなくなったら、打ち間違えたら、一文で止まる。"""

import os
import resource
import runpy
import signal
import sys
from functools import partial

import nbformat
import pytest
from conftest import execute, refused, table_beside

import lib.run
from lib import execute as pipeline
from lib.execute import only_one, scrub
from lib.files import read_json
from lib.run import open_run

TABLE, SECRET = table_beside(__file__, "guard"), 'hf_planted"秘密\\4f9c2b71e0'


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """セルを一つのノートブックにして、本物の入口で走らせる関数。"""
    monkeypatch.setattr(pipeline, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(pipeline, "resolve", lambda profile: None)
    monkeypatch.setattr(lib.run, "OUTPUTS", tmp_path / "outputs")

    def run(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "x", "language": "python"}
        nbformat.write(notebook, tmp_path / "01_concepts.ipynb")
        return execute("--run", "planted", "01_concepts")

    return run


@pytest.mark.parametrize("ending", ["1 + 1", "raise ValueError(os.environ['HF_TOKEN'])"], ids=["ok", "失敗"])
def test_a_planted_secret_is_nowhere(planted, tmp_path, monkeypatch, capfd, ending):
    for name in ("HF_TOKEN", "WORKSHOP_JUDGE_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    result = planted(*TABLE["leaky"], ending)
    assert result.returncode == ("raise" in ending), result.stderr
    outputs = tmp_path / "outputs"
    files = {path: path.read_text("utf-8", "replace") for path in outputs.rglob("*") if path.is_file()}
    (copy,) = [text for path, text in files.items() if path.suffix == ".ipynb"]
    assert "（秘密の値）" in copy and "Traceback" not in result.stderr
    said = (result.stdout, result.stderr, *capfd.readouterr(), *files.values())
    assert all(SECRET.split("\\")[1] not in text for text in said)
    assert result.returncode or list(outputs.glob("*/html/*.html"))


def test_a_short_or_harmless_value_is_left_alone(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-value")
    monkeypatch.setenv("MY_KEY", "short")
    assert scrub("false-value short") == "false-value short"


def test_a_second_run_in_the_same_folder_is_refused_and_the_lock_of_a_killed_one_is_free(planted, monkeypatch):
    monkeypatch.setenv("WORKSHOP_RUN_HELD", "")
    run = open_run("smoke", "planted")
    with only_one(run.folder):
        only_one(run.folder)  # 自分のノートブックが上流を作るとき
        refused(planted("1"), "いま走っています")
        assert not (run.folder / "notebooks").exists()
    if not (child := os.fork()):
        with only_one(run.folder):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    run.stage("01_concepts")  # 途中まで進んだ段
    result = planted("1")
    assert result.returncode == 0 and "途中の成果物があります" in result.stdout


def test_a_full_disk_is_one_sentence(planted, monkeypatch):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE)
    monkeypatch.setattr(pipeline, "resolve", lambda profile: full((100, limit[1])))  # 始めてから、いっぱいになる
    try:
        refused(planted("1"), "書き込めません")
    finally:
        full(limit)


def test_a_failing_cell_names_the_notebook_and_keeps_the_copy(planted, tmp_path):
    refused(planted("1/0"), "ZeroDivisionError", "01_concepts のセル")
    folder = tmp_path / "outputs" / "planted"
    assert (folder / "notebooks" / "01_concepts.ipynb").exists() and read_json(folder / "stages.json") == {}
    assert not (folder / "01_concepts" / "metrics.json").exists()


def test_a_killed_kernel_is_one_sentence(planted):
    done = planted("1", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    refused(done, "カーネルが止まりました")
    assert "Traceback" not in done.stdout


def test_a_cell_past_its_time_names_notebook_cell_and_seconds(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "run_notebook", partial(pipeline.run_notebook, timeout=2))
    done = planted("1", "import time; time.sleep(60)", "2")
    place = read_json(tmp_path / "outputs" / "planted" / "notebooks" / "01_concepts.ipynb")["cells"]
    (cell,) = [number for number, cell in enumerate(place, 1) if "sleep" in "".join(cell["source"])]
    refused(done, "2 秒たっても終わりません", f"01_concepts のセル {cell}）")
    assert "書き込めません" not in done.stderr


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(("typed", "word"), TABLE["mistakes"])
def test_a_mistake_on_the_command_line_is_one_sentence(typed, word, monkeypatch, capsys):
    module, *arguments = typed.split()
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_module(f"lib.{module}", run_name="__main__")
    told = capsys.readouterr().err
    assert told.startswith("✋ ") and told.count("\n") == 1 and word in told
