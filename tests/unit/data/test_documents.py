"""文書 → 問答: どの数値も、指した行の原文にある。採用した行だけを学ぶ。悪い文書と教師は、一文で断り、何も残さない。"""

import json
import re
import time

import matplotlib
import pandas
import pypdf
import pytest
from conftest import one_sentence

from lib.data import documents
from lib.data.documents import RULES, ask_by_rules, statements, write_pairs
from lib.data.facts import DATA, normalise_question
from lib.data.own import check_file, own_split, read_own
from lib.profiles import get_profile
from lib.text.quantities import split_items, states

HANDBOOK, REPORT = DATA / "handbook" / "handbook.md", DATA / "sanyo" / "report.md"
DEADLINE = "返品の期限は、届いた日から14日以内です。"


def table(path):
    return pandas.read_csv(path, keep_default_na=False)


def put(frame, path):
    path.write_text("\ufeff" + frame.to_csv(index=False), encoding="utf-8")
    return path


def traced(rows, text):
    """どの行も、キーワードが原文と答えにあり、質問には無く、原文が出典の行にある。"""
    lines = text.split("\n")
    for row in rows.itertuples():
        for word in split_items(row.キーワード):
            assert states(row.原文, word) and states(row.回答, word) and not states(row.質問, word), row
        line = int(re.search(r" (\d+) 行目$", row.出典)[1])
        assert row.原文.split(" | ")[0][:6] in re.sub(r"[`*]", "", lines[line - 1]), row
    assert rows.質問.map(normalise_question).is_unique and set(rows.採否) == {""}


@pytest.mark.parametrize("path", [HANDBOOK, REPORT], ids=["handbook", "sanyo"])
def test_every_figure_stands_in_the_sentence_that_the_row_points_to(tmp_path, path):
    start = time.monotonic()
    rows = table(write_pairs(str(path), tmp_path))
    assert time.monotonic() - start < 60 and list(rows.columns) == RULES["columns"] and len(rows) > 100
    traced(rows, path.read_text(encoding="utf-8"))
    assert (rows.groupby("事実").質問.nunique() >= 2).mean() > 0.9  # 一つの事実を、いくつもの形で尋ねる


def test_the_reviewed_example_is_what_the_rules_make_today(tmp_path):
    fresh, reviewed = table(write_pairs(str(HANDBOOK), tmp_path)), table(DATA / "handbook" / "pairs.csv")
    assert fresh.drop(columns="採否").equals(reviewed.drop(columns="採否"))
    assert set(reviewed.採否) == {"採用", "不採用"} and not check_file(DATA / "handbook").count("error")


ASKED = {
    DEADLINE: ("返品の期限は、届いた日から何日以内ですか。", "14日以内です。"),
    "証券コードは 8011 である（F3, MON1）。": ("証券コードは何ですか。", "8011です。"),
    "2014年5月19日に、契約の終了を発表した。": ("いつ、契約の終了を発表したのでしょうか。", "2014年5月19日です。"),
    "窓口は10時から18時まで開いています。": ("窓口は何時から何時まで開いていますか。", "10時から18時です。"),
    "会費は約3万円だった。": ("会費はいくらでしたか。", "約3万円です。"),
    "創業者は吉原信之である。": ("創業者は誰ですか。", "吉原信之です。"),
    "「100年コート」は2013年に始まった。": ("「100年コート」は何年に始まったのでしょうか。", "2013年です。"),
    "この期限は14日です。": None,  # 前の文が無いと決まらない
    "本店は四谷本塩町6番14号に置く。": None,  # 住所の一部
    "受付で伺います。": None,
}


@pytest.mark.parametrize("text", ASKED)
def test_a_rule_asks_for_the_figure_or_keeps_silent(text):
    made = ask_by_rules(re.sub(RULES["citation"], "", text))
    assert (made[0] if made else None) == ASKED[text]


def test_a_paragraph_over_lines_a_table_and_plain_text_keep_their_lines(tmp_path):
    text = "# 送料\n\n全国の送料は690円です。返品の期限は、\n届いた日から14日以内です。窓口は\n電話です。\n"
    text += "\n| 品 | 値段 |\n|---|---|\n| 茶碗 | 800円 |\n\n```\n禁則は5回です。\n```\n"
    (path := tmp_path / "a.md").write_bytes(text.encode("cp932"))  # 文字コードも見分ける
    found = {one.source: (one.place, one.heading) for one in statements(path)}
    assert found == {
        "全国の送料は690円です。": ("3 行目", "送料"),
        DEADLINE: ("3 行目", "送料"),
        "窓口は電話です。": ("4 行目", "送料"),
        "茶碗 | 800円": ("9 行目", "送料"),
    }
    assert table(write_pairs(str(path), tmp_path / "my")).質問.str.contains("茶碗の値段はいくらですか").any()


def pdf(path, *pages):
    """matplotlib で書いた PDF。文字列の列なら文のページ、空なら画像だけのページ。"""
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(path) as book:
        import matplotlib_fontja

        matplotlib_fontja.japanize()
        for lines in pages:
            figure = Figure((6, 4))
            for n, line in enumerate(lines):
                figure.text(0.1, 0.9 - 0.1 * n, line)
            if not lines:
                figure.figimage([[0.0, 1.0], [1.0, 0.0]])
            book.savefig(figure)
    return path


def test_a_pdf_gives_the_page_and_an_image_only_one_is_told(tmp_path):
    second = ["出張の手引き", "出張の日当は2,400円で、宿泊費の精算の期限は、もどった", "日から30日以内です。"]
    rows = table(write_pairs(str(pdf(tmp_path / "a.pdf", ["はじめに"], second)), tmp_path / "my"))
    assert set(rows.出典) == {"a.pdf 2 ページ"} and set(rows.キーワード) == {"2,400円", "30日"}
    assert not rows.原文.str.contains("手引き").any()  # 見出しを文につながない
    with one_sentence("文がありません", "scan.pdf", "文字認識"):
        write_pairs(str(pdf(tmp_path / "scan.pdf", [])), tmp_path / "my")
    locked = pypdf.PdfWriter(tmp_path / "a.pdf")
    locked.encrypt("secret", algorithm="RC4-128")
    locked.write(tmp_path / "locked.pdf")
    with one_sentence("読めません", "locked.pdf", "鍵"):
        write_pairs(str(tmp_path / "locked.pdf"), tmp_path / "my")


BAD = {
    "empty.md": (b"", "文がありません"),
    "blank.txt": (b"\n \n\n", "文がありません"),
    "code.md": ("```\nこれは5日です。\n```\n".encode(), "文がありません"),
    "english.md": (b"Returns are accepted within 14 days.\n", "日本語の文がありません"),
    "chinese.md": ("退货期限为14天。\n".encode(), "日本語の文がありません"),
    "report.docx": (b"PK\x03\x04\x14\x00\x06\x00" + bytes(range(256)) * 8, "ありません"),
    "broken.pdf": (b"%PDF-1.7\n1 0 obj\n", "読めません"),
    "talk.md": ("こんにちは。よろしくお願いします。\n".encode(), "使える問答が一つも作れません"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_document_is_told_in_one_sentence_and_leaves_nothing(tmp_path, name):
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content)
    with one_sentence(words, name):
        write_pairs(str(tmp_path / name), tmp_path / "my")
    with one_sentence("読めません", "nowhere.md"):
        write_pairs(str(tmp_path / "nowhere.md"), tmp_path / "my")
    assert not (tmp_path / "my").exists()


def test_a_second_time_does_not_erase_what_a_person_wrote(tmp_path):
    path = write_pairs(str(HANDBOOK), tmp_path)
    written = put(table(path).assign(採否="採用"), path).read_bytes()
    with one_sentence("もうあります", path.name):
        write_pairs(str(HANDBOOK), tmp_path)
    assert path.read_bytes() == written


def test_nothing_that_was_not_accepted_is_trained(tmp_path):
    rows = table(write_pairs(str(HANDBOOK), tmp_path))
    with one_sentence("一つもありません", "採否"):
        check_file(tmp_path / "handbook.csv")  # まだ、だれも読んでいない
    marks = ["採用", "不採用", "○", "×", "", "採用 "]
    rows["採否"] = [marks[number // 3 % len(marks)] for number in range(len(rows))]
    path, taken = put(rows, tmp_path / "handbook.csv"), rows[rows.採否.isin(["採用", "○", "採用 "])]
    assert [e.question for e in read_own(path)] == list(taken.質問)
    said = " ".join(e.question for part in vars(own_split(path, get_profile("smoke"))).values() for e in part)
    left = rows.drop(taken.index)
    assert len(left) > 50 and not any(question in said for question in left.質問)
    report = check_file(path)
    assert not report.count("error") and f"{len(left)} 行は使いません" in report.text()
    rows.loc[4, "採否"] = "たぶん"
    wrong = check_file(put(rows, path))
    assert [(p.line, p.code) for p in wrong.problems if p.level == "error"] == [(6, "verdict")]
    with one_sentence("採否が読めません", "6 行目"):
        read_own(path)


GOOD = [{"question": "返品できるのは、届いてからいつまで？", "answer": "14日以内です。"}]
LIES = [{"question": "返品は何日までですか。", "answer": "30日以内です。"}]
LIES += [{"question": "14日で何ができますか。", "answer": "14日"}]


@pytest.fixture
def teacher(endpoint, monkeypatch):
    monkeypatch.setenv("WORKSHOP_TEACHER_URL", endpoint.url)
    monkeypatch.setenv("WORKSHOP_TEACHER_KEY", "very-secret-key")
    return endpoint


@pytest.fixture
def deadline(tmp_path):
    (path := tmp_path / "a.md").write_text(DEADLINE, encoding="utf-8")
    return str(path)


def test_a_teacher_adds_only_what_the_sentence_says(tmp_path, teacher, deadline):
    teacher.reply = f"<think>[1]</think>はい。\n```json\n{json.dumps(GOOD + LIES, ensure_ascii=False)}\n```"
    rows = table(write_pairs(deadline, tmp_path / "my"))
    assert list(rows[rows.作り方 == "教師モデル"].質問) == [GOOD[0]["question"]] and rows.事実.nunique() == 1
    (place, key, body), told = teacher.seen[0], teacher.seen[0][2]["messages"][-1]["content"]
    assert place == "/v1/chat/completions" and key == "Bearer very-secret-key" and DEADLINE in told and body["model"]


FAILURES = {
    "nonsense": ({"reply": "わかりません。"}, "一つも作れません"),
    "lies": ({"reply": json.dumps(LIES, ensure_ascii=False)}, "一つも作れません"),
    "not-an-api": ({"reply": b"<html>"}, "受け取れません"),
    "nothing": ({"reply": {}}, "受け取れません"),
    "refused": ({"status": 401}, "受け取れません（HTTPError"),
    "late": ({"wait": 1}, "受け取れません（TimeoutError"),
    "absent": ({}, "文書の 1 行目"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_bad_or_absent_teacher_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, teacher, deadline, name):
    how, words = FAILURES[name]
    if "wait" in how:
        monkeypatch.setattr(documents, "PATIENCE", 0.3)
    if name == "absent":
        monkeypatch.setenv("WORKSHOP_TEACHER_URL", "http://127.0.0.1:9/v1")
    vars(teacher).update(how)
    with one_sentence(words, "127.0.0.1") as error:
        write_pairs(deadline, tmp_path / "my")
    assert "very-secret" not in str(error.value) and not (tmp_path / "my").exists()
