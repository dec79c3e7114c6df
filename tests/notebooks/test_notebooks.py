"""smoke プロファイルで 8 つのノートブックを通す。動くこと、止められること、続けられることを見る。"""

import re
import signal
import time

import nbformat
import pytest
from conftest import execute, start, table_beside

from lib.files import REPOSITORY, check_folder, file_sha256, read_json
from lib.run import OUTPUTS, STAGES

RUN = "pytest-smoke"


@pytest.fixture(scope="module")
def finished(short_model):
    """途中で Ctrl-C を送り、同じコマンドで最後まで通した実行。(最初の出力, 終了コード, 二度目の出力)"""
    process = start("--run", RUN, **short_model)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(f"[2/{len(STAGES)}]"):
            time.sleep(3)  # 二つ目のノートブックの途中まで進める
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=120)
    done = execute("--run", RUN, **short_model)
    assert done.returncode == 0, done.stdout + done.stderr
    return "".join(seen) + rest, process.returncode, done.stdout


def test_an_interrupted_run_keeps_what_was_finished_and_ends_with_a_table_and_an_index(finished):
    first, code, again = finished
    assert code == 130 and "止めました" in first and "Traceback" not in first
    assert re.search(r"01_concepts\s+済み", again) and "index.html" in again and "未完" not in again
    assert list(read_json(OUTPUTS / RUN / "stages.json")) == list(STAGES)
    page = (OUTPUTS / RUN / "index.html").read_text(encoding="utf-8")
    for stage in STAGES:
        assert f'href="html/{stage}.html"' in page
        html = (OUTPUTS / RUN / "html" / f"{stage}.html").read_text(encoding="utf-8")
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?://', html), "外の資源に頼っています"


@pytest.mark.parametrize("stage", STAGES)
def test_executed_notebooks_hold_no_error_and_no_warning_of_ours(finished, stage):
    notebook = nbformat.read(OUTPUTS / RUN / "notebooks" / f"{stage}.ipynb", as_version=4)
    for out in (out for cell in notebook.cells for out in cell.get("outputs", [])):
        text = out.text if out.get("name") == "stderr" else ""
        assert out.output_type != "error"
        assert str(REPOSITORY) not in text and "Glyph" not in text, text[:500]


def test_every_stage_left_its_artefacts(finished):
    folder = OUTPUTS / RUN
    assert all((folder / name).stat().st_size for name in table_beside(__file__, "smoke")["artefacts"])
    publish = folder / "06_merge_to_gguf" / "publish"
    for line in (publish / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ")
        assert file_sha256(publish / name) == digest, name
    check_folder(folder / "06_merge_to_gguf" / "merged")


def test_what_holds_on_any_budget(finished):
    """学習の量によらず成り立つべき値（学習の効果は test_notebooks_alone が実測で見る）。"""
    metrics = {stage: read_json(OUTPUTS / RUN / stage / "metrics.json") for stage in STAGES}
    assert metrics["01_concepts"]["lora_max_difference"] < 1e-5
    assert metrics["01_concepts"]["llama8b_qv_trainable"] == 6_815_744
    assert metrics["01_concepts"]["llama8b_all_trainable"] == 41_943_040
    assert metrics["02_dataset"]["leaks"] == metrics["02_dataset"]["truncated"] == 0
    assert metrics["04_lora_sft"]["loss_difference"] < 1e-5
    dpo, gguf = metrics["05_preference"], metrics["06_merge_to_gguf"]
    assert dpo["dpo_loss_difference"] < 1e-4 and abs(dpo["dpo_first_loss"] - 0.6931) < 0.01
    assert gguf["merge_logit_difference"] < 1e-4 and gguf["merge_probability_difference"] < 1e-5
    assert gguf["template_ids_equal"] == gguf["modelfile_ids_equal"] == 1.0 and gguf["f16_token_agreement"] >= 0.95


def test_a_finished_run_is_not_computed_again(finished):
    done = execute("--run", RUN, "--no-index")
    assert done.returncode == 0 and done.stdout.count("済み（飛ばします）") == len(STAGES)
