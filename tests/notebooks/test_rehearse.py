"""発表を本当に通す: 45 分に収まり、スライドは 1 ファイルで、本物のブラウザで 1280×720 に収まる。"""

import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import python

from lib.files import read_json
from lib.run import OUTPUTS
from lib.talk.deck import write_deck
from lib.talk.plan import load_plan
from lib.talk.rehearse import SOURCE, computed_seconds, report

RUN = "pytest-rehearse"
MEASURE = Path(__file__).with_name("slide.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rehearsal():
    """発表を一度通した結果（画面の出力と終了コード）。"""
    return python("-m", "lib.talk.rehearse", "--run", RUN)


def cell(seconds, *tags):
    return SimpleNamespace(metadata={"papermill": {"duration": seconds}, "tags": list(tags)})


def test_seconds_are_counted_per_section():
    cells = [cell(3.0), cell(None), cell(1.0, "section-1"), cell(0.5), cell(2.0, "section-2", "other")]
    assert computed_seconds(cells) == [3.0, 1.5, 2.0]


def test_the_report_says_what_does_not_fit():
    plan = load_plan()
    table, fits = report(plan, [9.0, *[1.0] * 8])
    assert fits and "話す前の準備: 9 秒" in table and "45.0" in table
    table, fits = report(plan, [9.0, *[1.0] * 3, 60 * 9.0, *[1.0] * 4])
    assert not fits and re.search(r"4\. 実演\s+← 収まらない", table)
    table, fits = report(plan, [0.0, *[60 * (section["minutes"] - section["spoken"]) for section in plan["sections"]]])
    assert not fits and "収まらない" not in table  # どの節も収まるが、2 分の余りが無い


def test_a_deck_follows_the_marks_of_the_cells(tmp_path):
    """印の無いセルは載らず、話し手だけのセルは aside に入り、隠したコードは出力だけが載る。文字は文字として載る。"""
    marked = [("載せない一", None), ("# 題", "slide"), ("続き", "-"), ("載せない二", "skip")]
    marked += [("覚え書き", "notes"), ("次", "subslide")]
    cells = [nbformat.v4.new_markdown_cell(text, metadata=mark(kind)) for text, kind in marked]
    for number, hidden in enumerate((False, True)):
        output = nbformat.v4.new_output("stream", text=f"出力{number}<b>")
        cells.append(nbformat.v4.new_code_cell(f"code{number}", metadata=mark("-"), outputs=[output]))
        cells[-1].metadata["jupyter"] = {"source_hidden": hidden}
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "talk.ipynb")
    page = write_deck(tmp_path / "talk.ipynb", tmp_path / "slides.html", "<題>").read_text(encoding="utf-8")
    first, second = page.split('<section class="slide">')[1:]
    assert "題" in first and "続き" in first and "覚え書き" in first.split("<aside>")[1] and "<aside>" not in second
    assert "載せない" not in page and "code0" in second and "code1" not in second
    assert "出力0&lt;b&gt;" in second and "出力1" in second and "<title>&lt;題&gt;" in page


def mark(kind):
    return {"slideshow": {"slide_type": kind}} if kind else {}


def test_the_notebook_follows_the_plan():
    plan, notebook = load_plan(), nbformat.read(SOURCE, as_version=4)
    headings = re.findall(r"^## (\d)\. (.+)$", "\n".join(c.source for c in notebook.cells), re.M)
    assert headings == [(str(section["number"]), section["title"]) for section in plan["sections"]]
    tags = [tag for c in notebook.cells for tag in c.metadata.get("tags", []) if tag.startswith("section-")]
    assert tags == [f"section-{n}" for n in range(1, 9)]
    written = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    for argument in ("lora_alpha=", "learning_rate=", "num_train_epochs=", "target_modules="):
        assert argument in written  # 学習の引数は、隠さずここに書く


def test_the_talk_fits_and_leaves_a_deck(rehearsal):
    assert rehearsal.returncode == 0, rehearsal.stdout + rehearsal.stderr
    assert "合計" in rehearsal.stdout and re.search(r"実演: (実演|記録済み)（", rehearsal.stdout)
    shown = read_json(OUTPUTS / RUN / "00_talk" / "demo.json")
    assert shown["live"] or shown["label"].startswith("記録済み")
    if shown["live"]:
        near = [row["after_ok"] for row in shown["rows"] if row["part"] == "言い換え（近い）"]
        assert len(near) == 4 and sum(near) >= 3
        assert not any(row["after_ok"] for row in shown["rows"] if row["part"] == "未学習の事実")
    for item in nbformat.read(OUTPUTS / RUN / "notebooks" / SOURCE.name, as_version=4).cells:
        for out in item.get("outputs", []):
            assert out.output_type != "error" and "Glyph" not in out.get("text", "")


def test_the_deck_is_one_file_without_the_network(rehearsal):
    page = (OUTPUTS / RUN / "slides.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', page) and not re.search(r"url\((?!data:|#)", page)
    assert page.count("<svg") == 4 and "576 × 576" in page and "18,432 個（W の 5.56%）" in page
    assert page.count('class="slide"') >= 20 and page.count("<aside>") == 8 and 'lang="ja"' in page
    assert "想定問答" in page and "記録済み" in page and "まだ測っていない）" not in page


def test_every_slide_is_readable_at_1280_by_720(window, rehearsal, tmp_path):
    asked, wrong = [], []
    window.on("request", lambda request: asked.append(request.url))
    window.on("pageerror", lambda error: wrong.append(str(error)))
    window.goto((OUTPUTS / RUN / "slides.html").as_uri())
    window.evaluate("document.fonts.ready")
    assert window.evaluate("document.fonts.check('20px Workshop', '記録')")
    count = window.locator(".slide").count()
    for number in range(count):
        slide = window.locator(".slide.on")
        assert window.locator("footer:visible").inner_text().endswith(f"{number + 1} / {count}")
        low, right, small, floor = slide.evaluate(MEASURE)
        window.screenshot(path=tmp_path / f"{number + 1:02d}.png")
        assert low <= floor and right <= 1280, f"{number + 1} 枚目がはみ出しています（{low:.0f}, {right:.0f}）"
        assert small >= 13, f"{number + 1} 枚目の字が小さすぎます（{small} px）"
        window.keyboard.press("ArrowRight")
    assert window.locator("footer:visible").inner_text().endswith(f"{count} / {count}")  # 最後で止まる
    window.keyboard.press("Home")
    window.keyboard.press("ArrowRight")
    window.keyboard.press("n")
    assert "話し手の覚え書き" in window.locator(".slide.on aside").inner_text()
    window.set_viewport_size({"width": 640, "height": 360})  # 小さな窓では、全体が縮む
    assert window.locator(".slide.on").bounding_box()["width"] == pytest.approx(640, abs=1)
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"} and not wrong
