"""自分のデータ: どの形・文字コードでも読め、壊れた所は場所と直し方が出て、きれいなデータは何も言われない。

検査が通した行は実行が読める。事実ごとに分かれ、試験の行が学習に混ざらない。
"""

import codecs
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from io import BytesIO

import pytest
from conftest import own_split, preference_rules
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.data.facts import DATA, FORM_LABELS, read_jsonl
from lib.data.own import OWN_SYSTEM, TABLE, Report, check_file, read_own
from lib.errors import WorkshopError
from lib.files import REPOSITORY, find_data
from lib.profiles import get_profile
from lib.run import data_path, open_run
from lib.score.answers import is_correct
from lib.show.page import stage_summary
from lib.text.words import normalise_width

QA = {"question": "営業時間は？", "answer": "10時からです。"}
U, A, S = ("user", "質問"), ("assistant", "答え"), ("system", "窓口です。")
CSV = '質問,回答\r\n"一行目\r\n二行目",はい\r\n三,"ほんの「""字""」, です"\r\n'
SCHOOL = REPOSITORY / "data" / "school" / "rules.csv"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def save(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load(source):
    """読めた行と、その始まりの行。壊れた所があれば失敗する。"""
    report = Report(source)
    assert not [p for p in report.problems if p.level == "error" and p.code not in TABLE["rows"] and p.code != "format"]
    return report.rows


def chat(*said):
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def ask(question, answer="はい。"):
    return {"question": question, "answer": answer}


def third(bad):
    """正しい 2 行のあと、3 行目に `bad` を置いた JSONL。"""
    lines = [ask("一つ目"), ask("二つ目"), bad, ask("四つ目")]
    return "\n".join(x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in lines).encode()


def garbled(text, codec, errors="strict"):
    return text.encode().decode(codec, errors)


HIRAGANA = "こんにちは、元気です。"
# JSON として壊れた行（どれも 3 行目で、種類は json）
JSON_LINES = [
    *("{", "}", "{}{}", '{"question": "a"', '{"question": "a",}', '{"a": 1 "b": 2}', '{"a" 1}', "{'a': 'b'}", "{a: 1}"),
    *('{"a": "b\tc"}', '{"a": "b', '{"a": NaN}', '{"a": [Infinity]}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": tru}'),
    *('{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', "[" * 100_000, '{"a":' * 100_000, '{"a": "\\ud83d"}'),
    *('{"\\udc00": 1}', '{"a": "\\x"}', '{"a": "\\u12"}', f'{{"a": {"9" * 5000}}}', '{"a": 1},', "// 注", "undefined"),
    *('{"a": "b\0c"}', "｛｝", '{“a”: "b"}', "質問: a", '{"a": 01}', '{"a": .5}', '{"a": 1}]'),
]
# 一件が { } でない行
NOT_OBJECTS = ["[1]", "1", '"a"', "null", "true", "[]", '["a", {"b": 1}]']
# 中身がおかしい行: (種類, 一件)
ROWS = [
    *[("format", row) for row in ({}, {"text": "a"}, {"question": "a"}, {"prompt": "a", "chosen": "b"}, {"出力": "a"})],
    ("no-turns", {"messages": []}),
    *[("not-list", {"messages": value}) for value in ("文", None, 1, {"role": "user"})],
    *[
        ("role", {"messages": [turn]})
        for turn in (1, None, "a", [], {}, {"content": "a"}, {"role": None, "content": "a"})
    ],
    *[("role", chat((role, "a"), A)) for role in ("bot", "User", "tool", "", 1, ["user"], {"a": 1}, "human")],
    *[("empty", chat(("user", text), A)) for text in ("", " ", "\u3000\n", None)],
    ("empty", {"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}),
    *[("not-text", chat(("user", text), A)) for text in (1, True, ["a"], {"text": "a"}, 0.5)],
    *[("system-order", chat(*said)) for said in ((U, S, A), (S, S, U, A), (U, A, S, U, A))],
    *[("same-role", chat(*said)) for said in ((U, ("user", "別"), A), (U, A, ("assistant", "別")))],
    *[("no-answer", chat(*said)) for said in ((U,), (S,), (S, U), (U, A, U))],
    ("repeated-turn", chat(U, A, U, A)),
    *[("no-question", chat(*said)) for said in ((S, A), (A,))],
    ("no-question", {"prompt": chat(S)["messages"], "completion": "b"}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}]}),
    ("label", {"prompt": "a", "completion": "b", "label": False}),
    *[("empty", ask(text)) for text in ("", "  ", "\t", None)],
    *[("empty", ask("a", text)) for text in ("", "\u3000", None)],
    *[("not-text", ask("a", value)) for value in (42, False, ["a"], {"a": "b"}, 1.5, [])[:5]],
    ("no-turns", ask("a", [])),
    *[("empty", {"instruction": a, "output": b}) for a, b in (("", "b"), ("a", ""), (None, "b"))],
    ("not-text", {"instruction": "a", "input": 1, "output": "b"}),
    ("no-turns", {"prompt": [], "completion": "b"}),
    ("no-turns", {"prompt": "a", "completion": []}),
    ("no-answer", {"prompt": chat(U)["messages"], "completion": chat(("user", "別"))["messages"]}),
    ("same-choice", {"prompt": "a", "chosen": "はい。", "rejected": " はい。"}),
    ("same-choice", {"prompt": "a", "chosen": chat(A)["messages"], "rejected": chat(A)["messages"]}),
    ("no-answer", {"prompt": "a", "chosen": "b", "rejected": chat(U)["messages"]}),
    ("empty", {"prompt": "a", "chosen": "b", "rejected": None}),
    ("no-turns", {"prompt": "a", "chosen": [], "rejected": "b"}),
    ("duplicate", ask("一つ目")),
    ("duplicate", ask("　一つ目 ")),
    ("conflict", ask("二つ目", "いいえ。")),
    *[
        ("mojibake", ask(text))
        for text in (
            *(
                garbled(HIRAGANA, "latin-1"),
                garbled("東京", "latin-1"),
                garbled("テスト", "cp1252"),
                "caf\u00c3\u00a9です",
            ),
            *(garbled("こんにちは", "cp932"), garbled("東京", "cp932"), garbled("文字化け", "cp932", "replace")),
            *("こ\ufffdにちは", garbled(HIRAGANA, "cp932", "ignore"), "確認：" + garbled("こんにちは", "cp932")),
        )
    ],
    *[("invisible", ask(f"見え{c}ない")) for c in "\0\x07\x1b\x7f\u200b\u200d\u200f\u202e\u2066\ufeff\xad"],
    *[("foreign-script", ask(f"これは{text}です")) for text in ("한국", "привет", "مرحبا", "ไทย", "这", "说明")],
    *[
        ("half-width-kana", ask("ｶﾅです")),
        ("full-width-alnum", ask("Ａ１です")),
        ("decomposed-kana", ask("か\u3099くせい")),
    ],
    *[("mail", ask(f"宛先は{text}です")) for text in (" taro@mail.test ", "ｔａｒｏ＠ｍａｉｌ.ｔｅｓｔ")],
    *[
        ("phone", ask(f"番号は{text}まで"))
        for text in (
            *(
                "090-1234-5678",
                "080 1234 5678",
                "07012345678",
                "０９０－１２３４－５６７８",
                "090‐1234‐5678",
                "050-1234-5678",
            ),
            *(
                "03-1234-5678",
                "03(1234)5678",
                "（06）1234-5678",
                "03ー1234ー5678",
                "+81 90-1234-5678",
                "+81-3-1234-5678",
            ),
        )
    ],
    *[
        ("freephone", ask(f"{text}へ"))
        for text in ("0120-123-456", "0800-123-4567", "0570-000-000", "０１２０−１２３−４５６")
    ],
    *[
        ("card", ask(f"{text}です"))
        for text in ("4111 1111 1111 1111", "4111111111111111", "378282246310005", "５５５５-5555-5555-4444")
    ],
    *[("my-number", ask(f"{text}です")) for text in ("123456789018", "1234 5678 9018", "１２３４−５６７８−９０１８")],
    ("licence", {**ask("a"), "licence": "知らない"}),
    ("licence", {**ask("a"), "license": None}),
]
CELLS = "question,answer\na,b\n"
# ファイルの形が壊れたもの: (名前, 中身, 種類, 行)
FILES = [
    ("short.csv", CELLS + "c\n", "ragged", 3),
    ("long.csv", CELLS + "c,d,e\n", "ragged", 3),
    ("comma.csv", CELLS + "c, d, e と f\n", "ragged", 3),
    ("after-newline.csv", 'question,answer\n"a\n\nb",c\nd\n', "ragged", 5),
    ("open.csv", CELLS + '"c,d\ne,f\n', "stopped", 3),
    ("open-at-end.csv", CELLS + 'c,"d', "stopped", 3),
    ("after-quote.csv", CELLS + '"c"x,d\ne,f\n', "csv", 3),
    ("inner-quote.csv", CELLS + '"c "d" e",f\n', "csv", 3),
    ("huge-cell.csv", CELLS + "c," + "あ" * 200_000 + "\n", "stopped", 3),
    ("no-name.csv", "question,,answer\na,b,c\n", "stopped", 1),
    ("last-no-name.csv", "\n\nquestion,answer,\na,b,\n", "stopped", 3),
    ("same-name.csv", "question,answer,answer\na,b,c\n", "stopped", 1),
    ("open-name.csv", '"question,answer\na,b\n', "stopped", 1),
    ("no-header.csv", "営業時間は,10時です\nどこ,東京です\n", "format", 2),
    ("semicolon.csv", "question;answer\na;b\n", "format", 2),
    ("empty-cell.csv", CELLS + "c,\n", "empty", 3),
    ("blank-row.csv", CELLS + ",\n", "empty", 3),
    ("nul.csv", CELLS + "c,d" + "あ" * 50 + "\0\n", "invisible", 3),
    ("short.tsv", "question\tanswer\na\tb\nc\n", "ragged", 3),
    ("cp932.csv", "質問,回答\r\nあ,い\r\nう\r\n".encode("cp932"), "ragged", 3),
    ("cp932-cut.csv", "質問,回答\r\nあ,い\r\nう,".encode("cp932") + b"\x82", "encoding", 3),
    ("utf16.csv", "質問,回答\r\nあ,い\r\nう\r\n".encode("utf-16"), "ragged", 3),
    ("half.csv", "質問,回答\r\nあ,い".encode("utf-16") + b"\x42", "encoding", 2),
    ("utf8-cut.csv", "質問,回答\nあ,い\nう,".encode() + b"\xe3\x81", "encoding", 3),
    ("utf8-in-cell.csv", "質問,回答\nあ,い\n".encode() + b'"\n\xe3",b\n', "encoding", 4),
    ("flip.jsonl", third(ask("東西南")).replace("西".encode(), b"\xe3\xff\x84"), "encoding", 3),
    ("latin.jsonl", third(ask("caf_")).replace(b"_", b"\xe9"), "encoding", 3),
    ("euc.jsonl", third(ask("あいう")).replace("あいう".encode(), "日本語".encode("euc_jp")), "encoding", 3),
    ("crlf.jsonl", third("{").replace(b"\n", b"\r\n"), "json", 3),
    ("cr.jsonl", third("{").replace(b"\n", b"\r"), "json", 3),
    ("blank-lines.jsonl", b"\n\n" + third("{"), "json", 5),
    ("cut-in-text.jsonl", third("")[:-2], "json", 4),
    ("cut-in-character.jsonl", third("")[:-3], "encoding", 4),
    ("array.jsonl", "\n" + json.dumps([QA, QA], indent=1), "stopped", 2),
    ("array-in-line.jsonl", json.dumps([QA, QA]), "not-object", 1),
    ("mixed.jsonl", third(chat(U, A)), "mixed-format", 3),
    ("object.json", "\n\n" + json.dumps({"data": [QA]}), "stopped", 3),
    ("lines.json", third(QA), "stopped", 1),
    ("comma.json", '[\n{"question": "a", "answer": "b"},\n]', "stopped", 3),
    ("no-comma.json", '[\n{"question": "a", "answer": "b"}\n{"question": "c"}]', "stopped", 3),
    ("no-end.json", '[\n{"question": "a", "answer": "b"}\n', "stopped", 3),
    ("after.json", '[\n{"question": "a", "answer": "b"}\n]\n\n[]', "stopped", 5),
    ("cut.json", '[\n{"question": "a",\n"answ', "stopped", 3),
    ("nan.json", '[\n\n{"question": "a", "answer": NaN}]', "json", 3),
    ("twice.json", '[\n\n{"answer": "a", "answer": "a"}]', "json", 3),
    ("deep.json", "[\n\n" + "[" * 100_000, "stopped", 0),
    ("number.json", '[\n{"question": "a", "answer": "b"},\n1]', "not-object", 3),
    ("bytes.json", '[\n{"question": "あああ", "answer": "b"},\n{"question": "'.encode() + b'\xe3"}]', "encoding", 3),
]


def zipped():
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("xl/workbook.xml", b"\0" * 5000)
    return stream.getvalue()


# 一件も読めないファイル: (名前, 中身, 伝える言葉)
UNREADABLE = [
    ("empty.jsonl", b"", "空です"),
    ("blank.csv", b" \r\n\n", "空です"),
    ("bom.jsonl", b"\xef\xbb\xbf", "空です"),
    ("header.csv", b"question,answer\n", "データの行が一つもありません"),
    ("none.json", b"[]", "データの行が一つもありません"),
    ("picture.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "テキストではありません"),
    ("book.csv", zipped(), "テキストではありません"),
    ("utf16-no-bom.csv", "質問,回答\r\na,b\r\n".encode("utf-16-le"), "テキストではありません"),
    ("text.txt", b"a", "読めるのは"),
    ("book.xlsx", zipped(), "読めるのは"),
    ("no-suffix", b"a", "読めるのは"),
    ("a.parquet", b"PAR1 but not really", "Parquet として読めません"),
    ("b.parquet", b"", "Parquet として読めません"),
]
LOCATED = [
    *[(f"line-{i}.jsonl", third(bad), "json", 3) for i, bad in enumerate(JSON_LINES)],
    *[(f"value-{i}.jsonl", third(bad), "not-object", 3) for i, bad in enumerate(NOT_OBJECTS)],
    *[(f"row-{i}.jsonl", third(bad), code, 3) for i, (code, bad) in enumerate(ROWS)],
    *FILES,
]


@pytest.mark.parametrize(("name", "content", "code", "line"), LOCATED, ids=[f"{c[2]}-{c[0]}" for c in LOCATED])
def test_a_broken_file_is_located(tmp_path, name, content, code, line):
    report = check_file(write(tmp_path, name, content))
    found = [problem for problem in report.problems if problem.code == code]
    assert [problem.line for problem in found] == [line] * len(found) and found, report.text()
    assert all(p.message and p.remedy and "\n" not in p.message + p.remedy for p in report.problems)
    # 3 行目のほかは正しいので、ほかの行に巻きぞえの問題は出ない。
    if name.startswith(("line-", "value-", "row-")):
        assert {p.line for p in report.problems if p.level == "error"} <= {3}, report.text()


@pytest.mark.parametrize(("name", "content", "words"), UNREADABLE, ids=[case[0] for case in UNREADABLE])
def test_an_unreadable_file_is_told_in_one_sentence(tmp_path, name, content, words):
    with pytest.raises(WorkshopError, match=words) as caught:
        check_file(write(tmp_path, name, content))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_places_that_are_not_files(tmp_path):
    for place, words in (
        (tmp_path / "no.jsonl", "ありません"),
        (tmp_path, "0 個"),
        ("a\0b.jsonl", "ありません|開けません"),
    ):
        with pytest.raises(WorkshopError, match=words):
            check_file(place)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(WorkshopError, match="0 個"):
        check_file(tmp_path / "folder.csv")
    with pytest.raises(WorkshopError, match="ありません"):
        check_file(str(tmp_path / "no.csv"))


VALID = {
    ".jsonl": third(QA),
    ".json": json.dumps([QA, ask("はい？"), chat(S, U, A)], ensure_ascii=False, indent=1).encode(),
    ".csv": 'question,answer\n"一\n行",はい\nＡ,"い""い""え"\n'.encode(),
    ".tsv": "質問\t回答\r\nあ\tい\r\n".encode("cp932"),
}
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=8,
)
_KEYS = ["question", "answer", "messages", "prompt", "completion", "chosen", "rejected", "質問"] + [
    "instruction",
    "output",
]
_ROLES = st.sampled_from(["system", "user", "assistant", "bot"])
_TURNS = st.lists(st.fixed_dictionaries({"role": _ROLES, "content": st.text(max_size=20)}), max_size=4)
_ROW = st.dictionaries(st.sampled_from(_KEYS), _VALUES | _TURNS | st.text(max_size=20), max_size=6)


@st.composite
def mutated(draw):
    suffix = draw(st.sampled_from(sorted(VALID)))
    raw = bytearray(VALID[suffix])
    for _ in range(draw(st.integers(1, 4))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return suffix, bytes(raw)


@st.composite
def truncated(draw):
    suffix = draw(st.sampled_from(sorted(VALID)))
    return suffix, VALID[suffix][: draw(st.integers(0, len(VALID[suffix])))]


_ANY = st.tuples(st.sampled_from(sorted(VALID)), st.binary(max_size=200))
_TEXT = st.tuples(st.sampled_from(sorted(VALID)), st.text('",\n\r\t{}[]:あaｱ\\\0 ', max_size=60).map(str.encode))
_JSONS = st.lists(_ROW, min_size=1, max_size=4).map(
    lambda rows: (".jsonl", "\n".join(json.dumps(row) for row in rows).encode())
)


def survives(folder, suffix, raw):
    """どんな中身でも、場所つきの報告か一文の失敗になり、ファイルには触れず、検査の通した行は実行が読める。"""
    path = write(folder, "a" + suffix, raw)
    try:
        report = check_file(path)
    except WorkshopError as error:
        assert "\n" not in str(error)
        return
    last = max(raw.count(b"\n"), raw.count(b"\r")) + 1
    assert all(0 <= p.line <= last and p.message and p.remedy for p in report.problems)
    report.text().encode()
    assert path.read_bytes() == raw
    try:
        assert len(read_own(path)) == len(report.rows)
    except WorkshopError as error:
        assert report.count("error") and "\n" not in str(error)


@pytest.mark.parametrize(
    "cases", [mutated(), truncated(), _ANY, _TEXT, _JSONS], ids=["flip", "cut", "bytes", "text", "json"]
)
def test_hundreds_of_generated_files_never_crash(tmp_path, cases):
    seen = set()

    @settings(
        max_examples=120,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(cases)
    def run(case):
        seen.add(case)
        survives(tmp_path, *case)

    run()
    assert len(LOCATED) + len(UNREADABLE) >= 200 and len({case[1] for case in LOCATED}) >= 190
    assert len(seen) >= 40


def texts_of_support():
    for fact in read_jsonl(DATA / "support" / "facts.jsonl"):
        yield from (ask(question, fact["ja"]["answer"]) for question in fact["ja"]["questions"].values())
    for row in read_jsonl(DATA / "support" / "unanswerable.jsonl"):
        yield from (ask(question, row["ja"]["answer"]) for question in row["ja"]["questions"])


def test_clean_japanese_data_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("CC BY 4.0", encoding="utf-8")
    path = save(tmp_path / "support.jsonl", texts_of_support())
    for source in (path, DATA / "sanyo" / "qa_core.jsonl", DATA / "sanyo" / "qa_extended.jsonl"):
        report = check_file(source)
        assert report.count("error") == report.count("warning") == 0, report.text()
        assert len(report.rows) > 100 and {row.form for row in report.rows} == {"qa"}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "縺れた糸をほどく",
            "繧繝縁の畳、繧繝彩色、繧繝縁",
            "café の naïve な São Paulo",
            "“引用” — 「かぎ」…",
            "(´Д｀) ٩(ᐛ)و",
        ),
        *(
            "家族👨‍👩‍👧と花",
            "2026-01-02 から 2026-12-31",
            "2019 2020 2021 2022 年",
            "〒160-0003 8011 番",
            "ISBN 978-4-00-310101-8",
        ),
        *(
            "123456789012",
            "4111-1111-1111-1112",
            "info@example.com へ",
            "@minamodo を見る",
            "売上は 123,456,789,012 円",
            "剝く、塡める、頰、叱る、髙橋、﨑",
        ),
        *("한국어", "改行\nと\tタブ", "α と β、①、㌔"),
    ],
)
def test_ordinary_text_is_not_suspected(tmp_path, text):
    report = check_file(write(tmp_path, "a.jsonl", json.dumps(ask(text), ensure_ascii=False)))
    assert [p.code for p in report.problems] == ["no-licence"], report.text()


def test_values_of_personal_data_never_reach_an_output(tmp_path, capsys):
    secrets = (
        "4111 1111 1111 1111",
        "123456789018",
        "090-1234-5678",
        "hanako@mail.test",
        "ｈａｎａ＠ｍａｉｌ.ｔｅｓｔ",
    )
    path = save(tmp_path / "a.jsonl", [ask(f"{s} です") for s in secrets] + [{s: "a"} for s in secrets])
    text = check_file(path).text()
    assert not [s for s in secrets if s in text or s.split("@")[0] in text or "ｈａ" in text]
    assert all(f"[{code}]" in text for code in ("card", "my-number", "phone", "mail", "full-width-alnum"))


def test_check_digit_of_my_number_rejects_every_other_digit(tmp_path):
    path = save(tmp_path / "a.jsonl", [ask(f"12345678901{digit}") for digit in range(10)])
    assert [p.line - 1 for p in check_file(path).problems if p.code == "my-number"] == [8]


def test_licence_is_asked_for_only_when_nothing_says_it(tmp_path):
    path = save(tmp_path / "a.jsonl", [QA])
    assert [(p.code, p.line, p.level) for p in check_file(path).problems] == [("no-licence", 0, "note")]
    assert not check_file(save(tmp_path / "b.jsonl", [{**QA, "licence": "CC BY 4.0"}])).problems
    (tmp_path / "README.md").write_text("出どころ", encoding="utf-8")
    assert not check_file(path).problems


def test_conflicts_name_both_lines_and_different_questions_do_not_conflict(tmp_path):
    path = save(tmp_path / "a.jsonl", [ask("一"), ask("二"), ask(" 一", "いいえ。"), ask("三")])
    conflict = [p for p in check_file(path).problems if p.code == "conflict"]
    assert [p.line for p in conflict] == [3] and "1 行目" in conflict[0].message
    pairs = [{"prompt": "a", "chosen": f"b{i}", "rejected": "c"} for i in range(2)]
    assert not [p for p in check_file(save(tmp_path / "b.jsonl", pairs)).problems if p.level != "note"]


def test_a_long_list_is_shortened(tmp_path):
    report = check_file(save(tmp_path / "a.jsonl", [ask(f"Ｑ{i}") for i in range(60)]))
    assert report.text().count("Ｑ → Q") == 50 and "ほかに 10 件" in report.text()


WIDTHS = [
    *(("ﾎﾟｲﾝﾄ｡", "ポイント。"), ("ｶﾞｲﾄﾞは Ａ４ です", "ガイドは A4 です"), ("１８か月", "18か月"), ("カﾞ", "ガ")),
    *(("か\u3099くせいハ\u309aン", "がくせいパン"), ("ー1ｰ", "ー1ー")),
]


@pytest.mark.parametrize(("text", "mended"), WIDTHS)
def test_the_run_mends_the_width_that_the_check_lists(tmp_path, text, mended):
    assert normalise_width(text) == mended == normalise_width(mended)
    path = save(tmp_path / "a.jsonl", [ask(text), {**ask(f"{text}二", f"{text}です"), "figures": text}])
    raw = path.read_bytes()
    notes = [p for p in check_file(path).problems if p.level == "note" and " → " in p.message]
    assert {p.line for p in notes} == {1, 2} and all(p.code in TABLE["texts"] for p in notes)
    first, second = read_own(path)
    assert first.question == mended and second.answer == f"{mended}です" and second.figures == (mended,)
    assert path.read_bytes() == raw


@pytest.mark.parametrize(
    "text",
    [
        *("10時〜19時", "10時～19時", "“引用”と’", "「－」—―‐−", "髙橋・﨑・\ufa19社・\ufa1b", "①㈱㌔ ½", "がぱ"),
        *("Å Ω é e\u0301", "（）！？　：＠", "カナ・ー、。「」", "ABC123", "家族👨‍👩‍👧"),
    ],
)
def test_clean_text_stays_byte_for_byte(tmp_path, text):
    assert normalise_width(text).encode() == text.encode()
    assert read_own(save(tmp_path / "a.jsonl", [ask(text)]))[0].question == text.strip()


@pytest.mark.parametrize("text", ["こんにちは", "東京", "テスト", "半角ｶﾅではない", "文字化けしない文章です。"])
@pytest.mark.parametrize("codec", ["latin-1", "cp1252", "cp932"])
def test_mojibake_is_seen_and_its_original_is_not(tmp_path, text, codec):
    wrong = garbled(text, codec, "replace")
    report = check_file(save(tmp_path / "a.jsonl", [ask(text), ask(wrong)]))
    assert [p.line for p in report.problems if p.code == "mojibake"] == [2]


def test_the_command_tells_success_by_its_exit_code_and_never_loads_torch(tmp_path):
    good, bad = save(tmp_path / "a.jsonl", [QA]), save(tmp_path / "b.jsonl", [ask("")])
    for place, code, words in ((good, 0, "1 件（qa 1）"), (bad, 1, "[empty]"), (tmp_path / "no.jsonl", 1, "✋")):
        command = [sys.executable, "-X", "importtime", "-m", "lib.data.own", str(place)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, encoding="utf-8", check=False)
        loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
        assert done.returncode == code and words in done.stdout + done.stderr and "Traceback" not in done.stderr
        assert "pydantic" in loaded and not loaded & {"torch", "transformers", "trl"}


def test_the_table_of_checks_is_complete():
    for rules in TABLE.values():
        for code, rule in rules.items():
            assert rule["level"] in ("error", "warning", "note") and rule["says"] and rule["remedy"], code
    hanzi = bytes(b for high in range(0xB0, 0xF8) for low in range(0xA1, 0xFF) for b in (high, low))
    characters = set(hanzi.decode("gb2312", "ignore"))
    japanese = set("".join(characters).encode("euc_jis_2004", "ignore").decode("euc_jis_2004"))
    pattern = re.compile(TABLE["texts"]["foreign-script"]["pattern"])
    assert {c for c in characters if pattern.search(f"の{c}")} == characters - japanese


CHAT = chat(U, A)["messages"]


@pytest.mark.parametrize(
    "raw",
    [
        CSV.encode(),
        codecs.BOM_UTF8 + CSV.encode(),
        CSV.encode("utf-16"),
        codecs.BOM_UTF16_BE + CSV.encode("utf-16-be"),
        CSV.encode("cp932"),
        CSV.replace("\r\n", "\n").encode(),
    ],
    ids=["utf-8", "utf-8-bom", "utf-16-le", "utf-16-be", "cp932", "lf"],
)
def test_csv_as_excel_saves_it(tmp_path, raw):
    rows = load(write(tmp_path, "a.csv", raw))
    assert [row.line for row in rows] == [2, 4]
    assert rows[0].data["質問"].replace("\r", "") == "一行目\n二行目" and rows[0].data["回答"] == "はい"
    assert rows[1].data == {"質問": "三", "回答": 'ほんの「"字"」, です'}
    assert {row.form for row in rows} == {"qa"}


def test_tab_separated_text_is_read_under_both_names(tmp_path):
    text = "question\tanswer\nこれは, 何\t本です\n"
    for name in ("a.tsv", "b.csv"):
        assert load(write(tmp_path, name, text))[0].data == {"question": "これは, 何", "answer": "本です"}


def test_cp932_jsonl_is_read_and_noted_but_a_damaged_utf8_file_is_not_taken_for_cp932(tmp_path):
    line = json.dumps(QA, ensure_ascii=False)
    report = Report(write(tmp_path, "a.jsonl", f"{line}\n{line}\n".encode("cp932")))
    assert report.rows[0].data == QA and [(p.code, p.level) for p in report.problems] == [("not-utf8", "note")]
    good = line.encode()
    cut = good.replace("時".encode(), b"\xe6\x99")
    report = Report(write(tmp_path, "b.jsonl", good + b"\n" + cut + b"\n" + good))
    assert [row.line for row in report.rows] == [1, 3]
    assert [(p.code, p.line) for p in report.problems] == [("encoding", 2)]


def test_a_json_array_knows_the_line_of_each_element(tmp_path):
    rows = load(write(tmp_path, "a.json", json.dumps([QA, QA, QA], ensure_ascii=False, indent=2)))
    assert [row.line for row in rows] == [2, 6, 10]


def test_line_separators_inside_a_string_do_not_split_the_line(tmp_path):
    row = {"question": "a\u2028b\x85c", "answer": "d"}
    assert load(write(tmp_path, "a.jsonl", json.dumps(row, ensure_ascii=False)))[0].data == row


def test_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "a.parquet"
    pandas.DataFrame([{**QA, "made": pandas.Timestamp("2026-01-02")}, {**QA, "made": None}]).to_parquet(path)
    rows = load(path)
    assert [row.line for row in rows] == [1, 2] and rows[0].data["question"] == QA["question"]
    assert str(rows[0].data["made"]).startswith("2026-01-02") and not check_file(path).count("error")


def test_a_folder_stands_for_its_only_data_file(tmp_path):
    write(tmp_path, "README.md", "# 説明")
    with pytest.raises(WorkshopError, match="0 個"):
        load(tmp_path)
    write(tmp_path, "a.jsonl", json.dumps(QA))
    assert load(tmp_path)[0].data == QA
    write(tmp_path, "b.csv", CSV)
    with pytest.raises(WorkshopError, match=r"2 個: a\.jsonl、b\.csv"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        (QA, "qa"),
        ({"質問": "a", "回答": "b"}, "qa"),
        ({"質問": "a", "答え": "b"}, "qa"),
        ({"問い": "a", "答え": "b"}, "qa"),
        ({"Q": "a", "A": "b"}, "qa"),
        ({" Ｑｕｅｓｔｉｏｎ ": "a", "ANSWER": "b"}, "qa"),
        ({"instruction": "要約", "input": "", "output": "要約です。"}, "instruction"),
        ({"instruction": "a", "output": "b", "system": "c"}, "instruction"),
        ({"指示": "a", "入力": "b", "出力": "c"}, "instruction"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "prompt_completion"),
        (chat(U, A), "messages"),
        ({"prompt": "質問", "chosen": "良い", "rejected": "悪い"}, "preference"),
        ({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}, "preference"),
        ({"text": "a"}, None),
        ({"question": "a"}, None),
        ({}, None),
    ],
)
def test_formats_are_recognised_by_their_columns(tmp_path, row, form):
    path = save(tmp_path / "a.jsonl", [row])
    assert Report(path).rows[0].form == (form or "不明")


def test_every_shape_becomes_the_same_question_and_answer(tmp_path):
    """列名や形が違っても、実行は同じ質問・答え・システム文・前の往復を読む。"""
    history = chat(U, A, ("user", "送料は"), ("assistant", "500円"))["messages"]
    rows = [
        {"質問": "送料は", "回答": "500円"},
        {"instruction": "送料は", "input": "", "output": "500円", "system": "係"},
        {"instruction": "送料", "input": "は", "output": "500円"},
        {"prompt": "送料は", "completion": "500円"},
        {"prompt": history[2:3], "chosen": history[3:], "rejected": "600円"},
        {"messages": [{"role": "system", "content": "係"}, *history]},
        {"messages": history, "fact": "F1", "キーワード": "円、500"},
    ]
    got = read_own(save(tmp_path / "a.jsonl", rows))
    assert {row.answer for row in got} == {"500円"}
    assert [row.question for row in got] == ["送料は", "送料は", "送料\n\nは", *["送料は"] * 4]
    assert [row.system for row in got] == [OWN_SYSTEM, "係", *[OWN_SYSTEM] * 3, "係", OWN_SYSTEM]
    assert [len(row.history) for row in got] == [0, 0, 0, 0, 0, 2, 2] and got[6].history[1] == history[1]
    assert (got[6].fact, got[6].figures) == ("F1", ("円", "500")) and got[0].figures == ("500円",)


def test_cells_of_a_csv_keep_quotes_returns_and_conversations(tmp_path):
    talk = json.dumps(chat(U, A)["messages"], ensure_ascii=False).replace('"', '""')
    path = write(tmp_path, "a.csv", '\ufeff"question","answer"\n"改\r行, と\n引用""符""","b\rc"\n')
    assert load(path)[0].data == {"question": '改\r行, と\n引用"符"', "answer": "b\rc"}
    path = write(tmp_path, "b.csv", f'messages,id\n"{talk}",1\n')
    assert load(path)[0].said == [U, A] and load(path)[0].data["id"] == "1"


def test_a_school_csv_made_by_excel_becomes_a_split():
    rows = read_own(SCHOOL)
    split = own_split(SCHOOL, get_profile("embedded"))
    assert len(rows) == 50
    taught, hidden = {e.fact_id for e in split.train}, {e.fact_id for e in split.unseen}
    assert len(taught) == 18 and len(hidden) == 2 and taught.isdisjoint(hidden)
    written = {row.question for row in rows}
    assert {e.question for e in split.far} <= written
    trained = {e.question for e in split.train}
    assert len(split.dev) == 16 and {e.fact_id for e in split.dev} <= taught
    assert trained.isdisjoint(e.question for e in split.dev + split.near + split.far + split.unseen)
    assert all(held.question not in question for held in split.far for question in trained)
    assert all(is_correct(e, e.answer) and e.form in FORM_LABELS for e in split.train + split.far + split.unseen)
    assert all(figure[0].isdigit() for e in split.train for figure in e.figures)


def test_pairs_can_be_made_from_own_data():
    train, test = preference_rules().make_pairs(own_split(SCHOOL, get_profile("embedded")), 64)
    assert {row["reason"] for row in train} == {"数字が違う", "でたらめ"} == {row["reason"] for row in test}
    assert all(row["chosen"] != row["rejected"] for row in train + test)


def test_the_budget_of_a_profile_is_kept(tmp_path, capsys):
    path = tmp_path / "big.jsonl"
    rows = [{"question": f"品番{i}の値段は", "answer": f"{i}円です。"} for i in range(1000)]
    save(path, rows)
    split = own_split(path, get_profile("embedded"))
    assert len(split.train) == 2 * 112 and len(split.unseen) == 100
    assert {"予算", "一つだけ"} <= set(re.findall("予算|一つだけ", capsys.readouterr().out))


def test_columns_for_facts_and_keywords_are_used(tmp_path):
    path = tmp_path / "k.csv"
    lines = ["質問,回答,事実,キーワード"]
    for name in "abc":
        lines += [f"{name}の色は,{name}は赤か青です。,{name},赤、青", f"{name}って何色,赤と青です。,{name},赤、青"]
    path.write_text("\r\n".join(lines), encoding="utf-8-sig")
    split = own_split(path, get_profile("embedded"))
    assert split.train[0].figures == ("赤", "青")
    assert len({e.fact_id for e in split.train + split.unseen}) == 3


def test_answers_without_a_figure_are_compared_whole(tmp_path):
    path = tmp_path / "w.jsonl"
    rows = [{"question": f"{n}の担当は", "answer": f"{n}係です。"} for n in ("図書", "保健", "放送")]
    save(path, rows)
    example = own_split(path, get_profile("embedded")).train[0]
    assert is_correct(example, example.answer) and not is_correct(example, "分かりません。")


def test_earlier_turns_become_history(tmp_path):
    path = tmp_path / "m.jsonl"
    turns = [("user", "送料は"), ("assistant", "地域によります。"), ("user", "東京は"), ("assistant", "500円です。")]
    for index in range(3):
        messages = [{"role": role, "content": text.replace("500", str(500 + index))} for role, text in turns]
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    example = own_split(path, get_profile("embedded")).train[0]
    assert [m["role"] for m in example.prompt()] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("質問,回答\nいくら,500円\nいつ,\n", "3 行目"),
        ("質問,回答\nいくら,500円\n", "1 件しかなく"),
        ("なまえ,とし\nた,3\n", "2 行目"),
        ("質問,回答\n", "一つもありません"),
    ],
)
def test_a_broken_table_is_one_sentence_with_its_place(tmp_path, text, message):
    path = tmp_path / "broken.csv"
    path.write_text(text, encoding="cp932")
    with pytest.raises(WorkshopError, match=message):
        own_split(path, get_profile("embedded"))


def test_data_is_found_by_name_and_remembered_by_the_run(tmp_path):
    run = open_run("smoke", outputs=tmp_path, data="school")
    assert run.folder.name == "smoke-rules" and run.data == "data/school/rules.csv"
    assert open_run("smoke", "smoke-rules", outputs=tmp_path).data == run.data
    with pytest.raises(WorkshopError, match="別の設定"):
        open_run("smoke", "smoke-rules", outputs=tmp_path, data="support")
    assert own_split(data_path(run.data), run.profile).train[0].system != ""
    assert data_path("support") is None
    with pytest.raises(WorkshopError, match="見つかりません"):
        data_path("data/my/ない.csv")
    with pytest.raises(WorkshopError, match="一つに決まりません"):
        data_path("sanyo")


def test_the_index_of_an_own_data_run_shows_the_figure_people_wrote(tmp_path):
    """機械の前置きの正答率（甘い）を、その実行の結論に見せない。"""
    run = open_run("smoke", "x", outputs=tmp_path)
    for owner, headline in ((run, "+50.0%"), (replace(run, data="my.csv"), "11.0%")):
        owner.finish("07_evaluation", {"near_gain": 0.5, "sft_far_accuracy": 0.11})
        assert headline in stage_summary(owner, "07_evaluation")


def test_check_and_run_choose_the_same_file(tmp_path, monkeypatch):
    """macOS が書く `._q.csv` は、データではない。"""
    (tmp_path / "q.csv").write_text("質問,回答\nいくら,500円\n", encoding="utf-8")
    (tmp_path / "._q.csv").write_bytes(b"\0\5\x16\7Mac OS X")
    assert data_path(str(tmp_path)) == find_data(tmp_path).resolve() == (tmp_path / "q.csv").resolve()
    assert check_file(tmp_path).file == str(tmp_path / "q.csv")
    with pytest.raises(WorkshopError, match="読めるのは"):
        data_path("README.md")
    monkeypatch.setattr("lib.files.REPOSITORY", tmp_path)
    assert find_data("q.csv") == tmp_path / "q.csv" and find_data("") is find_data("ない") is None
