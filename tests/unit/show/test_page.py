"""人に見せるもの: 言葉は検定で決まり、同じ成果物からは同じ報告ができ、設定と準備のコードは畳まれる。"""

import nbformat
import pytest
from conftest import exam_sheet, from_notebook, one_sentence
from huggingface_hub import ModelCard

import lib.run
from lib.files import write_json
from lib.profiles import get_profile
from lib.run import STAGES, open_run
from lib.score.exam import PARTS, save_rows
from lib.show.page import BASE, main, notebook_html, write_index, write_report

RESULTS = {BASE: exam_sheet("base", {"general": 3})}
RESULTS["SFT"] = exam_sheet("SFT", {"near": 1, "far": 12}, answer="a|b\nc")


@pytest.fixture
def run(tmp_path):
    run = open_run("smoke", "told", outputs=tmp_path)
    save_rows(run.stage("07_evaluation"), "comparison_evaluation", [r for rows in RESULTS.values() for r in rows])
    history = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_loss": 0.75}]
    write_json(run.stage("04_lora_sft") / "training_results.json", {"seconds": 12.3, "history": history})
    write_json(run.folder / "04_lora_sft/adapter/manifest.json", {"model": "some/Base", "versions": {"torch": "9.8.7"}})
    return run


def told(run, name="report.md"):
    write_report(run)
    return (run.folder / "07_evaluation" / name).read_text(encoding="utf-8")


def test_the_report_says_what_the_tests_say(run):
    names = ("report.md", "report.html", "model_card.md")
    text, page, _ = first = [told(run, name) for name in names]
    assert first == [told(run, name) for name in names], "同じ成果物からは、一字も違わない報告"
    assert f"- {PARTS['near']}: 12 事実で良化・0 事実で悪化（12 事実）、p < 0.001、上がった" in text
    assert f"- {PARTS['far']}: 2 事実で良化・0 事実で悪化（12 事実）、p = 0.5、差は示せない" in text
    assert f"- {PARTS['general']}: 0 問で良化・8 問で悪化（12 問）、p = 0.0078、下がった" in text
    assert f"| {PARTS['unseen']} | +0.0 ポイント（12 事実とも）。12 事実とも正答の数が同じ |" in text
    assert "[+100.0, +100.0]" not in text + page
    assert "2.5000 → 0.5000" in text and "0.7500" in text and "一般の問答を" in text
    assert f"{PARTS['far']}に弱い" in text and "回答を控える例を" in text and "下限が 70% 未満" not in text
    assert "版: torch 9.8.7" in text
    assert "| 依頼（評価用） | 24 | 0 | 24 |" in text and "| 別の言葉 3（評価用） | 24 | 0 | 2 |" in text
    assert "<table>" in page and "data:image/png" in page and "https://" not in page


def test_a_model_that_could_not_be_read_is_missing_and_not_zero(run):
    write_json(run.folder / "07_evaluation" / "missing.json", {"SFT + DPO": "重みが壊れています"})
    text = told(run)
    assert "**SFT + DPO**: 測れなかった（重みが壊れています）" in text
    assert "SFT + DPO" not in text.split("## 点数")[1]


def test_the_card_can_be_read_by_the_hub_and_a_cell_cannot_break_the_table(run):
    card = ModelCard(told(run, "model_card.md"))
    assert card.data.language == "ja" and card.data.base_model == "some/Base"
    assert "| 100.0% [75.8, 100.0] |" in card.text
    assert "a|b" not in told(run) and "a｜b c" in told(run)


KEPT = {"near": 1, "far": 1, "general": 2}
GATES = [  # SFT と SFT + DPO と量子化が何問に 1 問正答するか、比べる実行の SFT、赤になるもの
    ({"SFT": KEPT}, None, ""),
    ({"SFT": {**KEPT, "general": 0}}, None, ""),  # 悪化を示せるが、認める 25 ポイントの中
    ({"SFT": {**KEPT, "general": 0}}, KEPT, "SFT、一般の質問: 0 問で良化・12 問で悪化"),
    ({"SFT": KEPT}, {**KEPT, "general": 0}, ""),
    ({"SFT": {"near": 12, "far": 1, "general": 2}}, None, "SFT、言い換え（近い）: 2 事実で良化"),
    ({"SFT": KEPT, "SFT + DPO": {"near": 1, "general": 2}}, None, "SFT → SFT + DPO、言い換え（遠い）"),
    ({"SFT": KEPT, "量子化": {"near": 3}}, None, "F16 → 量子化、言い換え（近い）"),
]


def answered(folder, name, right, **more):
    """03・05・06 の答えの残った実行。"""
    run, right = open_run("smoke", name, outputs=folder), {"SFT + DPO": right["SFT"], "F16": KEPT, **right}
    rows = {model: exam_sheet(model, right.get(model, {}), **more) for model in ("SFT", "SFT + DPO", "F16", "量子化")}
    save_rows(run.stage("03_baseline"), "baseline_evaluation", exam_sheet("base", {"general": 2}))
    save_rows(run.stage("05_preference"), "preference_evaluation", rows["SFT"] + rows["SFT + DPO"])
    if "量子化" in right:
        near = [row for row in rows["F16"] + rows["量子化"] if row["part"] == "near"]
        save_rows(run.stage("06_merge_to_gguf"), "gguf_evaluation", near)


@pytest.fixture
def gate(tmp_path, monkeypatch, capsys):
    """`make gate` の入口。終わりのコードと、画面の字を返す。"""

    def call(*names):
        monkeypatch.setattr(lib.run, "OUTPUTS", tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("sys.argv", ["page", "gate", *names])
        with pytest.raises(SystemExit) as stopped:
            main()
            raise SystemExit(0)
        return stopped.value.code, "".join(capsys.readouterr())

    return call


@pytest.mark.parametrize(("right", "against", "red"), GATES)
def test_the_gate_is_red_for_what_is_shown_to_be_worse(tmp_path, gate, right, against, red):
    answered(tmp_path, "ours", right)
    if against:
        answered(tmp_path, "theirs", {"SFT": against, "SFT + DPO": right["SFT"]})
    code, said = gate("ours", *["theirs"] * bool(against))
    assert (code, said.count("• ×")) == ((1, 1) if red else (0, 0)) and red in said
    assert ("比べていません" in said) != ("量子化" in right) and ("赤が 1 件" in said) == bool(red)
    assert ("△" in said.partition("×: 赤")[0]) == (not right["SFT"]["general"] and not against)


def test_the_gate_counts_made_up_figures_and_compares_only_what_can_be_compared(tmp_path, gate):
    for name, more in (("ours", {}), ("liar", {"made_up": True}), ("other", {"question": "別の問い"}), ("half", {})):
        answered(tmp_path, name, {"SFT": KEPT}, **more)
    code, said = gate("liar")
    assert code == 1 and "学習前 → SFT、数字を作らないこと: 0 話題で良化・12 話題で悪化" in said
    (tmp_path / "half" / "05_preference").rename(tmp_path / "half" / "05")
    for name, word in {"other": "片方の評価にしか無い質問が", "half": "05_preference", "gone": "run.json"}.items():
        code, said = gate("ours", name)
        assert code == 1 and said.startswith("✋ ") and word in said and said.count("\n") == 1


def test_the_index_links_what_was_run_under_the_heading_of_its_notebook(run):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 済み")])
    (run.folder / "notebooks").mkdir()
    nbformat.write(notebook, run.folder / "notebooks" / "07_evaluation.ipynb")
    run.finish("07_evaluation", {"near_gain": 0.5})
    page = write_index(run, {"07_evaluation": {"seconds": 90}}).read_text(encoding="utf-8")
    assert '<a href="html/07_evaluation.html">07 ' in page and '<td class="n">1.5</td>' in page and "+50.0%" in page
    assert page.count("（未完）") == len(STAGES) - 1 and "https://" not in page
    assert "済み" in (run.folder / "html" / "07_evaluation.html").read_text(encoding="utf-8")


def test_parameters_and_set_up_are_folded_and_the_badge_is_left_out(tmp_path):
    tags = [["parameters"], ["injected-parameters"], ["setup"], []]
    badge = nbformat.v4.new_markdown_cell("![colab](https://x/badge.svg)", metadata={"tags": ["badge"]})
    cells = [nbformat.v4.new_code_cell(f"x = {n}", metadata={"tags": found}) for n, found in enumerate(tags)]
    nbformat.write(nbformat.v4.new_notebook(cells=[badge, *cells]), tmp_path / "a.ipynb")
    page = notebook_html(tmp_path / "a.ipynb", tmp_path / "a.html").read_text(encoding="utf-8")
    folded = [piece.partition("</details>")[0] for piece in page.split("<details")[1:]]
    assert len(folded) == 3 and all(f'<span class="mi">{n}</span>' in piece for n, piece in enumerate(folded))
    assert '<span class="mi">3</span>' in page.rpartition("</details>")[2] and "<details open" not in page
    assert "badge.svg" not in page


def test_the_folder_to_publish_holds_no_pickle_and_no_copies(tmp_path, tiny_llama):
    made = from_notebook("06_merge_to_gguf", "UNSAFE", "put")
    target = tmp_path / "publish"
    target.mkdir()
    for path in tiny_llama.iterdir():
        made.put(path, target)
    assert all((target / path.name).samefile(path) for path in tiny_llama.iterdir())
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"x")
    with one_sentence("pickle"):
        made.put(pickle, target)


@pytest.mark.parametrize(("profile", "licence"), [("embedded", "apache-2.0"), ("embedded-ja", "other")])
def test_the_published_card_names_the_licence_as_the_hub_does(profile, licence):
    made = from_notebook("06_merge_to_gguf", "spec", "licence", "front", profile=get_profile(profile))
    card = ModelCard(f"---\n{made.front}\n---\n\n# 題\n")
    assert card.data.license == licence and card.data.base_model == made.spec.hub_id
    assert card.data.to_dict().get("license_name") == (made.spec.licence if licence == "other" else None)
