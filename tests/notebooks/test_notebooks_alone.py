"""一つだけ開いたノートブック、付録、自分のデータ、途中で落ちたカーネル、打ち間違い。"""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from conftest import start

from lib.files import REPOSITORY, read_json
from lib.run import APPENDICES, OUTPUTS, STAGES


def test_a_notebook_opened_alone_makes_what_it_needs():
    name = "pytest-alone"
    process = start("--run", name, "--no-index", "03_baseline")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert (OUTPUTS / name / "02_dataset" / "metrics.json").exists()
    assert list(read_json(OUTPUTS / name / "stages.json")) == ["02_dataset", "03_baseline"]


def test_an_unseen_csv_goes_from_02_to_07_without_an_edit(tmp_path):
    """テストの中で初めて作る 50 行の CSV が、1 行も書き換えずに最後まで走る（学習の効果は問わない）。"""
    items = ["鉛筆", "定規", "地図", "電池", "切手", "風船", "積木", "雑巾", "軍手", "石鹸"]
    asks = [
        "{}の値段は？",
        "{}はいくらですか。",
        "{}を買うと何円払いますか。",
        "{}、いくらする？",
        "{}の価格を知りたい。",
    ]
    lines = [f"{ask.format(name)},{name}は{137 + 41 * i}円です。" for ask in asks for i, name in enumerate(items)]
    table = tmp_path / "値段表.csv"
    table.write_text("\r\n".join(["質問,回答", *lines]), encoding="cp932")
    name = "pytest-own"
    process = start("--run", name, "--data", str(table))
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert list(read_json(OUTPUTS / name / "stages.json")) == list(STAGES[1:])
    rows = read_json(OUTPUTS / name / "07_evaluation" / "comparison_evaluation.json")
    own = [row for row in rows if row["model"] == "SFT" and row["part"] in ("near", "far", "unseen")]
    assert {row["reference"] for row in own} <= {line.split(",")[1] for line in lines} and own
    assert all(row["answer"] for row in own)
    table.write_text("質問,回答\r\n", encoding="cp932")  # 書き換えたら、黙って古い結果を使わない
    process = start("--run", name)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "一つもありません" in output and "Traceback" not in output, output


def test_a_killed_kernel_is_one_sentence():
    process = start("--run", "pytest-killed", "--no-index", "01_concepts")
    for _ in range(60):
        time.sleep(0.5)
        family = psutil.Process(process.pid).children(recursive=True)
        kernels = [child for child in family if "ipykernel" in " ".join(child.cmdline())]
        if kernels and (OUTPUTS / "pytest-killed" / "notebooks" / "01_concepts.ipynb").exists():
            break
    time.sleep(2)  # 準備のセルが走っているころ
    for kernel in kernels:
        kernel.kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "カーネルが止まりました" in output and "Traceback" not in output, output


RECORDED = [name for name in APPENDICES if name != "A3_failure_lab"]


@pytest.mark.parametrize("name", RECORDED)
def test_appendices_open_alone_and_say_where_every_number_came_from(name):
    """ふだんの実行では学習せず、録画を「録画」と言って見せる。"""
    run = "pytest-recorded"
    process = start("--profile", "embedded", "--run", run, "--no-index", name)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    text = (OUTPUTS / run / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    told = "".join(str(out) for cell in json.loads(text)["cells"] for out in cell.get("outputs", []))
    assert "録画（20" in told and "いま計算" not in told
    assert "まだ測っていない" not in told
    if name == "A1_methods":  # 二つのプロセスに分けても、同じ学習になる
        assert read_json(OUTPUTS / run / name / "metrics.json")["two_process_difference"] <= 1e-4


def test_the_failure_lab_opens_alone_and_shows_every_failure():
    run, name = "pytest-appendix", "A3_failure_lab"
    process = start("--run", run, "--no-index", name)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    metrics = read_json(OUTPUTS / run / name / "metrics.json")
    assert metrics["failures"] == 17 and metrics["eos_probability_masked"] < metrics["eos_probability_right"]


def test_mistakes_on_the_command_line_are_one_sentence():
    for arguments in (["--profile", "nope"], ["--run", "../x"], ["09_nothing"], ["--data", "data/my/ない.csv"]):
        process = start(*arguments)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1 and output.count("✋") == 1 and "Traceback" not in output, output


def test_a_failing_cell_names_the_notebook_and_keeps_the_copy(tmp_path):
    code = (
        "import lib.execute as p, nbformat, pathlib\nfrom lib.errors import command_line\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1/0')])\n"
        "nb.metadata.kernelspec = {'name': 'python3', 'display_name': 'x', 'language': 'python'}\n"
        "nbformat.write(nb, folder / '01_concepts.ipynb')\np.NOTEBOOKS = folder; p.resolve = lambda profile: None\n"
        "run = p.open_run('smoke', 'bad', outputs=folder)\n"
        "with command_line(): p.run_all(run, ['01_concepts'], False)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, env=os.environ
    )
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr and "01_concepts のセル" in result.stderr
    assert (tmp_path / "bad" / "notebooks" / "01_concepts.ipynb").exists()
    assert not (tmp_path / "bad" / "01_concepts" / "metrics.json").exists()
    assert json.loads((tmp_path / "bad" / "stages.json").read_text()) == {}
