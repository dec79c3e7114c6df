"""二つ同時に走らせない、秘密を残さない、書き込めなくなったら、打ち間違えたら、一文で止まる。"""

import runpy
import sys

import nbformat
import pytest
from conftest import python, refused

from lib.execute import only_one, scrub
from lib.files import read_json
from lib.run import open_run

SECRET = 'hf_planted"秘密\\4f9c2b71e0'
PIPELINE = """
import sys, pathlib, lib.execute as p, lib.run as w
folder = pathlib.Path({folder!r})
p.NOTEBOOKS = folder
p.resolve = lambda profile: None
p.OUTPUTS = w.OUTPUTS = folder / "outputs"
sys.argv = ["execute", "--profile", "smoke", "--run", "planted", "01_concepts"]
{before}
p.main()
"""


def run_planted(folder, *cells, before="", **environment):
    """セルを一つのノートブックにして、本物の入口（lib.execute.main）で走らせる。"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "x", "language": "python"}
    nbformat.write(notebook, folder / "01_concepts.ipynb")
    return python("-c", PIPELINE.format(folder=str(folder), before=before), **environment)


LEAKY = [
    "import os, sys; os.environ['WORKSHOP_JUDGE_KEY']",
    "print(dict(os.environ)); print(os.environ['HF_TOKEN'], file=sys.stderr)",
    "import pandas; pandas.DataFrame([{'鍵': os.environ['MY_PASSWORD']}])",
    "os.write(2, os.environ['HF_TOKEN'].encode())",
]


@pytest.mark.parametrize("ending", ["1 + 1", "raise ValueError(os.environ['HF_TOKEN'])"], ids=["ok", "失敗"])
def test_a_planted_secret_is_nowhere(tmp_path, ending):
    keys = {"HF_TOKEN": SECRET, "WORKSHOP_JUDGE_KEY": SECRET, "MY_PASSWORD": SECRET}
    result = run_planted(tmp_path, *LEAKY, ending, **keys)
    assert result.returncode == ("raise" in ending), result.stderr
    outputs = tmp_path / "outputs"
    files = {path: path.read_text("utf-8", "replace") for path in outputs.rglob("*") if path.is_file()}
    (copy,) = [text for path, text in files.items() if path.suffix == ".ipynb"]
    assert "（秘密の値）" in copy and "Traceback" not in result.stderr
    assert all(SECRET.split("\\")[1] not in text for text in (result.stdout, result.stderr, *files.values()))
    assert result.returncode or list(outputs.glob("*/html/*.html"))


def test_a_short_or_harmless_value_is_left_alone(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-value")
    monkeypatch.setenv("MY_KEY", "short")
    assert scrub("false-value short") == "false-value short"


def test_a_second_run_in_the_same_folder_is_refused_and_the_lock_of_a_killed_one_is_free(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_RUN_HELD", "")
    run = open_run("smoke", "planted", outputs=tmp_path / "outputs")
    with only_one(run.folder):
        only_one(run.folder)  # 自分のノートブックが上流を作るとき
        refused(run_planted(tmp_path, "1", WORKSHOP_RUN_HELD=""), "いま走っています")
        assert not (run.folder / "notebooks").exists()
    code = "import os, pathlib, signal; from lib.execute import only_one\n"
    code += f"with only_one(pathlib.Path({str(run.folder)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    assert python("-c", code, WORKSHOP_RUN_HELD="").returncode == -9
    run.stage("01_concepts")  # 途中まで進んだ段
    result = run_planted(tmp_path, "1", WORKSHOP_RUN_HELD="")
    assert result.returncode == 0 and "途中の成果物があります" in result.stdout


def test_a_full_disk_is_one_sentence(tmp_path):
    full = "import resource; open_run = p.open_run\ndef tight(*a, **k):\n    run = open_run(*a, **k)\n"
    full += "    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n    return run\n"
    full += "p.open_run = tight"
    refused(run_planted(tmp_path, "print('あ' * 1000)", before=full), "書き込めません")


def test_a_failing_cell_names_the_notebook_and_keeps_the_copy(tmp_path):
    refused(run_planted(tmp_path, "1/0"), "ZeroDivisionError", "01_concepts のセル")
    folder = tmp_path / "outputs" / "planted"
    assert (folder / "notebooks" / "01_concepts.ipynb").exists() and read_json(folder / "stages.json") == {}
    assert not (folder / "01_concepts" / "metrics.json").exists()


def test_a_cell_past_its_time_names_notebook_cell_and_seconds(tmp_path):
    late = "run_notebook = p.run_notebook\np.run_notebook = lambda *given: run_notebook(*given, timeout=2)"
    done = run_planted(tmp_path, "1", "import time; time.sleep(60)", "2", before=late)
    place = read_json(tmp_path / "outputs" / "planted" / "notebooks" / "01_concepts.ipynb")["cells"]
    (cell,) = [number for number, cell in enumerate(place, 1) if "sleep" in "".join(cell["source"])]
    refused(done, "2 秒たっても終わりません", f"01_concepts のセル {cell}）")
    assert "書き込めません" not in done.stderr


MISTAKES = """execute --profile nope | embedded
execute --run ../x | 使えません
execute 09_nothing | 09_nothing
execute --data data/my/ない.csv | 見つかりません
execute --mix abc | MIX は
execute --mix 2 | MIX は
execute --seed | SEED は
execute --seeds 1 | --seeds
show.page | report か gate
show.page gate no-such-run | 先に
show.page report no-such-run | 先に
talk.app --run no-such-run | no-such-run"""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("row", MISTAKES.splitlines())
def test_a_mistake_on_the_command_line_is_one_sentence(row, monkeypatch, capsys):
    (module, *arguments), word = row.split(" | ")[0].split(), row.split(" | ")[1]
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_module(f"lib.{module}", run_name="__main__")
    told = capsys.readouterr().err
    assert told.startswith("✋ ") and told.count("\n") == 1 and word in told
