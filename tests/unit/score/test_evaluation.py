"""報告・門番・段の比べ方: 言葉は区間から決まり、同じ成果物からは同じ報告ができる。"""

import subprocess
import sys

import pytest

from lib.errors import WorkshopError
from lib.files import REPOSITORY, write_json
from lib.run import open_run, reopen
from lib.score.exam import PARTS, chance, gain, save_rows, weighted_gain
from lib.show.page import BASE, gate, load_results, model_card, write_report


def row(model, part, number, correct, made_up=False, answer="690円です。"):
    return {
        "model": model, "part": part, "fact": f"fact-{number // 2}", "form": "request" if part == "near" else "other_3",
        "question": f"{part} の問い {number}", "reference": "690円です。", "answer": answer, "correct": correct,
        "made_up": made_up, "refused": False,
    }  # fmt: skip


def sheet(model, right):
    """部分 → 何問に 1 問正答するか（0 なら全問誤答）。"""
    return [row(model, part, n, bool(right.get(part)) and n % right[part] == 0) for part in PARTS for n in range(24)]


RESULTS = {
    BASE: sheet(BASE, {"general": 3}),
    "SFT": sheet("SFT", {"near": 1, "far": 12}),
}


@pytest.fixture
def run(tmp_path):
    run = open_run("smoke", "told", outputs=tmp_path)
    save_rows(run.stage("07_evaluation"), "comparison_evaluation", [r for rows in RESULTS.values() for r in rows])
    history = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_loss": 0.75}]
    write_json(run.stage("04_lora_sft") / "training_results.json", {"seconds": 12.3, "history": history})
    return run


def test_the_same_artefacts_give_the_same_report_to_the_letter(run):
    pages = [write_report(run).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1] and (run.folder / "07_evaluation" / "report.md").exists()


def test_the_report_says_what_the_intervals_say(run):
    write_report(run)
    text = (run.folder / "07_evaluation" / "report.md").read_text(encoding="utf-8")
    assert f"{PARTS['near']}: 上がった（100.0%" in text and f"{PARTS['general']}: 下がった" in text
    assert f"{PARTS['far']}: 差は示せない" in text
    assert "2.5000 → 0.5000" in text and "0.7500" in text and "一般の問答を" in text
    assert "別の言葉での質問に弱い" in text and "断りの例を" in text
    page = (run.folder / "07_evaluation" / "report.html").read_text(encoding="utf-8")
    assert "<table>" in page and "data:image/png" in page and "https://" not in page


def test_a_model_that_could_not_be_read_is_missing_and_not_zero(run):
    write_json(run.folder / "07_evaluation" / "missing.json", {"SFT + DPO": "重みが壊れています"})
    write_report(run)
    text = (run.folder / "07_evaluation" / "report.md").read_text(encoding="utf-8")
    assert "**SFT + DPO**: 測れなかった（重みが壊れています）" in text
    assert "SFT + DPO" not in text.split("## 点数")[1]


def test_a_cell_cannot_break_the_table(run):
    strange = [row("SFT", "near", 0, False, answer="a|b\nc")]
    card = model_card(run, {BASE: RESULTS[BASE], "SFT": [*strange, *RESULTS["SFT"][1:]]})
    assert card.startswith("---\nlanguage: ja\n") and "a|b" not in card


def test_the_gate_opens_only_for_a_gain_the_interval_shows():
    assert [passed for *_, passed in gate(RESULTS, "SFT", ["near"], [])] == [True]
    assert [passed for *_, passed in gate(RESULTS, "SFT", ["near", "far"], ["general"])] == [True, False, False]
    with pytest.raises(WorkshopError, match="採点がありません"):
        gate(RESULTS, "DPO", ["near"], [])
    with pytest.raises(WorkshopError, match="部分「nea」"):
        gate(RESULTS, "SFT", ["nea"], [])


def test_the_gate_is_one_command_and_a_missing_run_is_one_sentence():
    command = [sys.executable, "-m", "lib.show.page", "gate", "--run", "no-such-run"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 1 and "ありません" in found.stderr and "Traceback" not in found.stderr


def test_a_report_before_the_exam_is_one_sentence(tmp_path):
    open_run("smoke", "early", outputs=tmp_path)
    with pytest.raises(WorkshopError, match="先に 07"):
        load_results(reopen("early", tmp_path))


def test_a_gain_by_chance_is_rare():
    assert chance(RESULTS[BASE], RESULTS["SFT"], "near") < 0.01 < chance(RESULTS[BASE], RESULTS["SFT"], "far")


def test_weights_combine_the_parts():
    near = weighted_gain(RESULTS[BASE], RESULTS["SFT"], {"near": 1.0, "far": 0.0})
    assert near == gain(RESULTS[BASE], RESULTS["SFT"], "near")
    both = weighted_gain(RESULTS[BASE], RESULTS["SFT"], {"near": 0.5, "general": 0.5})
    assert both.value == pytest.approx(0.5 * 1.0 - 0.5 / 3) and both.low < both.value < both.high
