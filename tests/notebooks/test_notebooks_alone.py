"""自分のデータ、一つだけ開いた 04 と付録。"""

import pytest
from conftest import execute, refused

from lib.files import read_json
from lib.run import APPENDICES, OUTPUTS, STAGES


def test_an_unseen_csv_goes_from_02_to_07_without_an_edit(tmp_path, short_model):
    """テストの中で初めて作る 50 行の CSV が、1 行も書き換えずに最後まで走る（学習の効果は問わない）。"""
    items = ["鉛筆", "定規", "地図", "電池", "切手", "風船", "積木", "雑巾", "軍手", "石鹸"]
    asks = ["{}の値段は？", "{}はいくら？", "{}を買うと何円払いますか。", "{}、いくらする？", "{}の価格を知りたい。"]
    lines = [f"{ask.format(name)},{name}は{137 + 41 * i}円です。" for ask in asks for i, name in enumerate(items)]
    table = tmp_path / "値段表.csv"
    table.write_text("\r\n".join(["質問,回答", *lines]), encoding="cp932")
    name = "pytest-own"
    done = execute("--run", name, "--data", str(table), "--no-index", **short_model)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(read_json(OUTPUTS / name / "stages.json")) == list(STAGES[1:])
    rows = read_json(OUTPUTS / name / "07_evaluation" / "comparison_evaluation.json")
    own = [row for row in rows if row["model"] == "SFT" and row["part"] in ("near", "far", "unseen")]
    assert {row["reference"] for row in own} <= {line.split(",")[1] for line in lines} and own
    assert all(row["answer"] for row in own)
    table.write_text("質問,回答\r\n", encoding="cp932")  # 書き換えたら、黙って古い結果を使わない
    refused(execute("--run", name, "--no-index"), "一つもありません")


def test_lora_opened_alone_makes_what_it_needs_and_teaches_facts_that_answer_unseen_phrasings():
    """本物のモデルが、本当に覚えるか。発表用の talk プロファイルで、言い換え（近い）で測る。"""
    run = OUTPUTS / "pytest-talk"
    done = execute("--profile", "talk", "--run", run.name, "--no-index", "04_lora_sft")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(read_json(run / "stages.json")) == ["02_dataset", "03_baseline", "04_lora_sft"]
    before, after = (read_json(run / name / "metrics.json")["near_accuracy"] for name in ("03_baseline", "04_lora_sft"))
    assert before <= 0.05 and after >= 0.5  # 28 問（14 事実 × 2）


@pytest.mark.parametrize("name", APPENDICES)
def test_appendices_open_alone_and_say_where_every_number_came_from(name):
    """ふだんの実行では学習せず、記録を「記録済み」と言って見せる。A3〜A5 は、その場で失敗を起こし、学習する。"""
    short, recorded = name[:2], ("A0", "A1", "A2")
    run = OUTPUTS / ("pytest-recorded" if short in recorded else "pytest-appendix")
    done = execute(*["--profile", "smollm2-ja"] * (short in recorded), "--run", run.name, "--no-index", name)
    assert done.returncode == 0, done.stdout + done.stderr
    folder, metrics = run / name, read_json(run / name / "metrics.json")
    cells = read_json(run / "notebooks" / f"{name}.ipynb")["cells"]
    told = "".join(str(out) for cell in cells for out in cell.get("outputs", []))
    if short in (*recorded, "A5"):
        assert "記録済み（20" in told and "いま計算" not in told
    if short in recorded:
        assert "まだ測っていない" not in told
        assert short != "A1" or metrics["two_process_difference"] <= 1e-4  # 二つのプロセスに分けても、同じ学習になる
    elif short == "A3":
        assert metrics["failures"] == 17 and metrics["eos_probability_masked"] < metrics["eos_probability_right"]
    elif short == "A4":
        assert (metrics["facts"], metrics["leaks"]) == (119, 0) and metrics["drafts"] > 200
        files = ("baseline_evaluation.csv", "comparison_evaluation.json", "training_results.json", "report.md")
        assert all((folder / file).stat().st_size for file in (*files, "adapter-same-8x3/manifest.json"))
        rows = read_json(folder / "comparison_evaluation.json")
        columns = "model part fact form question reference answer correct made_up refused"
        assert all(list(row) == columns.split() and row["reference"] for row in rows)
        assert {row["model"] for row in rows} == {"学習前", "報告の設計"}
        assert "まだ測っていない" in (folder / "report.md").read_text(encoding="utf-8")  # 分けた設計
    else:  # A5: 学習はその場で、例の数・文体・会話は記録
        assert metrics["leaks"] == 0 and metrics["grammar_readable_rate"] > metrics["zero_readable_rate"]
