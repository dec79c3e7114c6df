"""smoke プロファイルで 8 つのノートブックを通す。動くこと、止められること、続けられることを見る。"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from lib.workspace import APPENDICES, OUTPUTS, REPOSITORY, STAGES, read_json

RUN = "pytest-smoke"


def start(*arguments):
    command = [sys.executable, "-m", "lib.pipeline", "--profile", "smoke", *arguments]
    return subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )


@pytest.fixture(scope="module")
def finished():
    """途中で Ctrl-C を送り、同じコマンドで最後まで通した実行。(最初の出力, 終了コード, 二度目の出力)"""
    shutil.rmtree(OUTPUTS / RUN, ignore_errors=True)
    process = start("--run", RUN)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(f"[2/{len(STAGES)}]"):
            time.sleep(3)  # 二つ目のノートブックの途中まで進める
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=120)
    again = start("--run", RUN)
    output, _ = again.communicate(timeout=1200)
    assert again.returncode == 0, output
    return "".join(seen) + rest, process.returncode, output


def test_ctrl_c_leaves_what_was_finished_and_says_so(finished):
    first, code, again = finished
    assert code == 130 and "止めました" in first and "Traceback" not in first
    assert re.search(r"01_concepts\s+済み", again)


def test_the_run_ends_with_a_table_and_an_index(finished, capsys):
    output = finished[2]
    assert "index.html" in output and "未完" not in output
    record = read_json(OUTPUTS / RUN / "stages.json")
    assert list(record) == list(STAGES)
    with capsys.disabled():
        print("\nsmoke の所要（秒）: " + "  ".join(f"{name} {record[name]['seconds']:.0f}" for name in STAGES))
    page = (OUTPUTS / RUN / "index.html").read_text(encoding="utf-8")
    for stage in STAGES:
        assert f'href="html/{stage}.html"' in page
        html = (OUTPUTS / RUN / "html" / f"{stage}.html").read_text(encoding="utf-8")
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?://', html), "外の資源に頼っています"


@pytest.mark.parametrize("stage", STAGES)
def test_executed_notebooks_hold_no_error_and_no_warning_of_ours(finished, stage):
    notebook = nbformat.read(OUTPUTS / RUN / "notebooks" / f"{stage}.ipynb", as_version=4)
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            assert out.output_type != "error"
            if out.output_type == "stream" and out.name == "stderr":
                assert str(REPOSITORY) not in out.text and "Glyph" not in out.text, out.text[:500]


def test_every_stage_left_its_artefacts(finished):
    folder = OUTPUTS / RUN
    for name in (
        "02_dataset/train.jsonl",
        "03_baseline/baseline_evaluation.csv",
        "03_baseline/baseline_evaluation.json",
        "04_lora_sft/adapter/adapter_model.safetensors",
        "04_lora_sft/training_results.json",
        "05_preference/dpo_adapter/adapter_model.safetensors",
        "05_preference/orpo_adapter/adapter_model.safetensors",
        "06_merge_to_gguf/model-f16.gguf",
        "06_merge_to_gguf/Modelfile",
        "06_merge_to_gguf/publish/SHA256SUMS",
        "07_evaluation/comparison_evaluation.csv",
        "07_evaluation/report.md",
        "07_evaluation/report.html",
        "07_evaluation/model_card.md",
        "08_ladder/ladder_evaluation.json",
    ):
        assert (folder / name).stat().st_size > 0, name


def test_what_holds_on_any_budget(finished):
    """学習の量によらず成り立つべき値（学習の効果は test_learning が実測で見る）。"""
    metrics = {stage: read_json(OUTPUTS / RUN / stage / "metrics.json") for stage in STAGES}
    assert metrics["01_concepts"]["lora_max_difference"] < 1e-5
    assert metrics["01_concepts"]["llama8b_qv_trainable"] == 6_815_744
    assert metrics["01_concepts"]["llama8b_all_trainable"] == 41_943_040
    assert metrics["02_dataset"]["leaks"] == metrics["02_dataset"]["truncated"] == 0
    assert metrics["04_lora_sft"]["loss_difference"] < 1e-5
    assert metrics["05_preference"]["dpo_loss_difference"] < 1e-4
    assert abs(metrics["05_preference"]["dpo_first_loss"] - 0.6931) < 0.01
    assert metrics["06_merge_to_gguf"]["merge_logit_difference"] < 1e-5
    assert metrics["06_merge_to_gguf"]["merge_probability_difference"] < 1e-5
    assert metrics["06_merge_to_gguf"]["template_ids_equal"] == 1.0
    assert metrics["06_merge_to_gguf"]["modelfile_ids_equal"] == 1.0
    assert metrics["06_merge_to_gguf"]["f16_token_agreement"] >= 0.95


def test_a_finished_run_is_not_computed_again(finished):
    process = start("--run", RUN)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and output.count("済み（飛ばします）") == len(STAGES)


def test_a_notebook_opened_alone_makes_what_it_needs():
    name = "pytest-alone"
    shutil.rmtree(OUTPUTS / name, ignore_errors=True)
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
    shutil.rmtree(OUTPUTS / name, ignore_errors=True)
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
    shutil.rmtree(OUTPUTS / "pytest-killed", ignore_errors=True)
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


@pytest.mark.parametrize("name", APPENDICES)
def test_the_failure_lab_opens_alone_and_shows_every_failure(name):
    run = "pytest-appendix"
    shutil.rmtree(OUTPUTS / run, ignore_errors=True)
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
        "import lib.pipeline as p, nbformat, pathlib\nfrom lib.errors import command_line\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1/0')])\n"
        "nb.metadata.kernelspec = {'name': 'python3', 'display_name': 'x', 'language': 'python'}\n"
        "nbformat.write(nb, folder / 'bad.ipynb')\np.source_of = lambda stage: folder / 'bad.ipynb'\n"
        "run = p.open_run('smoke', 'bad', outputs=folder)\n"
        "with command_line(): p.execute(run, '01_concepts')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, env=os.environ
    )
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr and "01_concepts のセル" in result.stderr
    assert (tmp_path / "bad" / "notebooks" / "01_concepts.ipynb").exists()
    assert not (tmp_path / "bad" / "01_concepts" / "metrics.json").exists()
    assert json.loads((tmp_path / "bad" / "stages.json").read_text()) == {}
