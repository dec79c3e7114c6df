"""発表を本当に通す: 45 分に収まり、スライドは 1 ファイルで、本物のブラウザで三つの大きさに収まる。話し手のページも。"""

import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from conftest import python

from lib.files import read_json
from lib.run import OUTPUTS
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
    cells = [cell(3.0), cell(None), cell(1.0, "section-4"), cell(0.5), cell(2.0, "section-5", "other")]
    assert computed_seconds(cells) == [3.0, 0, 0, 0, 1.5, 2.0, 0, 0, 0]


def test_the_report_says_what_does_not_fit():
    plan = load_plan()
    table, fits = report(plan, [9.0, *[1.0] * 8])
    assert fits and "話す前の準備: 9 秒" in table and "45.0" in table
    table, fits = report(plan, [9.0, *[1.0] * 3, 60 * 9.0, *[1.0] * 4])
    assert not fits and re.search(r"4\. 実演\s+← 収まらない", table)
    table, fits = report(
        plan, [0.0, *[59.9 * (section["minutes"] - section["spoken"]) for section in plan["sections"]]]
    )
    assert not fits and "収まらない" not in table  # どの節も収まるが、3 分の余りが無い


def test_the_arguments_of_training_stand_in_the_notebook():
    written = "\n".join(c.source for c in nbformat.read(SOURCE, as_version=4).cells if c.cell_type == "code")
    for argument in ("lora_alpha=", "learning_rate=", "num_train_epochs=", "target_modules="):
        assert argument in written  # 学習の引数は、隠さずここに書く


def test_the_talk_fits_and_leaves_a_deck(rehearsal):
    assert rehearsal.returncode == 0, rehearsal.stdout + rehearsal.stderr
    assert "合計" in rehearsal.stdout and re.search(r"実演: (実演|記録済み)（", rehearsal.stdout)
    shown = read_json(OUTPUTS / RUN / "00_talk" / "demo.json")
    assert shown["live"] or shown["label"].startswith("記録済み")
    if shown["live"]:
        near = [row["after_ok"] for row in shown["rows"] if row["part"] == "言い換え（近い）"]
        assert len(near) == 14 and sum(near) >= 12
        assert not any(row["after_ok"] for row in shown["rows"] if row["part"] == "未学習の事実")
    for item in nbformat.read(OUTPUTS / RUN / "notebooks" / SOURCE.name, as_version=4).cells:
        for out in item.get("outputs", []):
            assert out.output_type != "error" and "Glyph" not in out.get("text", "")


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (1024, 768)])
def test_every_slide_is_readable(window, rehearsal, tmp_path, size):
    asked, wrong = [], []
    window.set_viewport_size({"width": size[0], "height": size[1]})
    window.route(re.compile("^https?:"), lambda route: route.abort())  # 回線は無い
    window.on("request", lambda request: asked.append(request.url))
    window.on("pageerror", lambda error: wrong.append(str(error)))
    window.goto((OUTPUTS / RUN / "slides.html").as_uri())
    window.evaluate("document.fonts.ready")
    assert window.evaluate("document.fonts.check('20px Workshop', '記録')")
    main = sum(len(section["slides"]) for section in load_plan()["sections"])
    pages = [f"{number} / {main}" for number in range(1, main + 1)]
    pages += [f"予備 {number}" for number in range(1, window.locator(".slide").count() - main + 1)]
    for number, page in enumerate(pages):
        slide = window.locator(".slide.on")
        assert slide.locator("footer").inner_text() == page
        low, right, small = slide.evaluate(MEASURE)
        window.screenshot(path=tmp_path / f"{number + 1:02d}.png")
        assert low and right, f"{number + 1} 枚目がはみ出しています"
        assert small >= 27.9, f"{number + 1} 枚目の字が小さすぎます（{small} px）"
        window.keyboard.press("ArrowRight")
    assert window.locator(".slide.on footer").inner_text() == pages[-1] and len(pages) > main  # 最後で止まる
    assert not window.locator("#speaker").is_visible()  # 台本と時計は、客席に見せない
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"} and not wrong


def test_the_speaker_has_the_words_and_the_clock(window, rehearsal):
    """話し手のページ: 始まる、進む、遅れる、閉じて開き直す、スライドを読み直す。"""
    page = (OUTPUTS / RUN / "slides.html").as_uri()
    window.goto(page)

    def opened():
        with window.expect_popup() as popup:
            window.keyboard.press("s")
        return popup.value

    plan, speaker = load_plan(), opened()
    speaker.get_by_text(plan["sections"][0]["slides"][0]["say"][:20]).wait_for()
    assert "始まります" in speaker.locator("#late").inner_text()
    speaker.keyboard.press("ArrowRight")  # 話し手の窓からも送れる
    window.wait_for_function("location.hash === '#2'")
    speaker.get_by_text("予定どおり").wait_for()
    window.evaluate("kept.set('began', (began -= 15 * 60e3)); tell()")  # 15 分、遅れた
    speaker.locator("#late.late", has_text="遅れ").wait_for()
    speaker.close()  # スライドは、そのまま
    window.wait_for_function("peer.closed")  # 閉じかけの窓には、同じ名前で開いても何も起きない
    again = opened()
    again.locator("#late.late", has_text="遅れ").wait_for()
    window.reload()
    assert window.evaluate("began > 0 && at() === 1")  # 読み直しても、時計も場所も続きから
    window.keyboard.press("q")
    assert window.locator(".slide.on").get_attribute("data-id") == "qa"
