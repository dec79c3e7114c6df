"""検査と修理: 壊れたファイルの一つずつが場所と直し方を示し、きれいなデータは何も言われない。"""

import hashlib
import io
import json
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.data.facts import DATA, read_jsonl
from lib.data.formats import load, save_rows
from lib.data.textcheck import is_mojibake, is_suspect, personal_data, repair, undo_mojibake
from lib.data.validate import check_file, fix_file, main
from lib.errors import WorkshopError

QA = {"question": "営業時間は？", "answer": "10時からです。"}
U, A, S = ("user", "質問"), ("assistant", "答え"), ("system", "窓口です。")


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
    *[("half-width-kana", ask("ｶﾅです")), ("full-width-alnum", ask("Ａ１です"))],
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
    ("after.json", '[\n{"question": "a", "answer": "b"}\n]\n\n[]', "stopped", 3),
    ("cut.json", '[\n{"question": "a",\n"answ', "stopped", 3),
    ("nan.json", '[\n\n{"question": "a", "answer": NaN}]', "stopped", 3),
    ("twice.json", '[\n\n{"answer": "a", "answer": "a"}]', "stopped", 3),
    ("deep.json", "[\n\n" + "[" * 100_000, "stopped", 3),
    ("number.json", '[\n{"question": "a", "answer": "b"},\n1]', "not-object", 3),
    ("bytes.json", '[\n{"question": "あああ", "answer": "b"},\n{"question": "'.encode() + b'\xe3"}]', "encoding", 3),
]


def zipped():
    stream = io.BytesIO()
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
    ("half.csv", "質問,回答\r\nあ,い".encode("utf-16") + b"\x42", r"csv:2 行目"),
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


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


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
_KEYS = [
    "question",
    "answer",
    "messages",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "instruction",
    "output",
    "質問",
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
    """どんな中身でも、場所つきの報告か一文の失敗になり、修理はもとのファイルに触れない。"""
    path, target = write(folder, "a" + suffix, raw), folder / "fixed.jsonl"
    target.unlink(missing_ok=True)
    try:
        report = check_file(path)
    except WorkshopError as error:
        assert "\n" not in str(error)
        return
    last = max(raw.count(b"\n"), raw.count(b"\r")) + 1
    assert all(0 <= p.line <= last and p.message and p.remedy for p in report.problems)
    (json.dumps(report.to_dict(), ensure_ascii=False) + report.text()).encode()
    try:
        fix_file(path, target)
    except WorkshopError:
        assert not target.exists()
    else:
        left = {p.code for p in check_file(target).problems}
        assert not left & {"encoding", "json", "not-object", "empty", "duplicate", "ragged"}, left
    assert path.read_bytes() == raw


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
    path = save_rows(tmp_path / "support.jsonl", texts_of_support())
    for source in (path, DATA / "sanyo" / "qa_core.jsonl", DATA / "sanyo" / "qa_extended.jsonl"):
        report = check_file(source)
        assert report.count("error") == report.count("warning") == 0, report.text()
        assert report.rows > 100 and list(report.formats) == ["qa"]


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
    secrets = ("4111 1111 1111 1111", "123456789018", "090-1234-5678", "hanako@mail.test")
    path = save_rows(tmp_path / "a.jsonl", [ask(f"{s} です") for s in secrets] + [{s: "a"} for s in secrets])
    out, fixed = tmp_path / "out.json", tmp_path / "b.jsonl"
    with pytest.raises(SystemExit) as caught:
        main([str(path), "--no-tokens", "--json", str(out), "--fix", str(fixed)])
    text = "".join(capsys.readouterr()) + out.read_text(encoding="utf-8")
    assert caught.value.code == 1 and not [s for s in secrets if s in text or s.split("@")[0] in text]
    assert {"card", "my-number", "phone", "mail"} <= {p["code"] for p in json.loads(out.read_text("utf-8"))["problems"]}
    assert all(s in fixed.read_text(encoding="utf-8") for s in secrets)  # 消すかどうかは人が決める


def test_check_digit_of_my_number_rejects_every_other_digit():
    assert [d for d in range(10) if list(personal_data(f"12345678901{d}"))] == [8]


def test_licence_is_asked_for_only_when_nothing_says_it(tmp_path):
    path = save_rows(tmp_path / "a.jsonl", [QA])
    assert [(p.code, p.line, p.level) for p in check_file(path).problems] == [("no-licence", 0, "note")]
    assert not check_file(save_rows(tmp_path / "b.jsonl", [{**QA, "licence": "CC BY 4.0"}])).problems
    (tmp_path / "README.md").write_text("出どころ", encoding="utf-8")
    assert not check_file(path).problems


def test_conflicts_name_both_lines_and_different_questions_do_not_conflict(tmp_path):
    path = save_rows(tmp_path / "a.jsonl", [ask("一"), ask("二"), ask(" 一", "いいえ。"), ask("三")])
    conflict = [p for p in check_file(path).problems if p.code == "conflict"]
    assert [p.line for p in conflict] == [3] and "1 行目" in conflict[0].message
    pairs = [{"prompt": "a", "chosen": f"b{i}", "rejected": "c"} for i in range(2)]
    assert not [p for p in check_file(save_rows(tmp_path / "b.jsonl", pairs)).problems if p.level != "note"]


def test_tokens_are_the_real_ones_with_the_template(tmp_path, model_folder):
    from lib.model.load import load_tokenizer

    tokenizer = load_tokenizer(model_folder)
    rows = [chat(U, A), chat(S, U, A), chat(U, A, ("user", "長い" * 100), ("assistant", "はい。"))]
    lengths = [len(tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"]) for row in rows]
    report = check_file(save_rows(tmp_path / "a.jsonl", rows), tokenizer, max_tokens=100)
    low, middle, high = sorted(lengths)
    assert report.tokens == {"min": low, "median": middle, "max": high, "total": sum(lengths), "over": 1, "limit": 100}
    assert [(p.line, p.level) for p in report.problems if p.code == "too-long"] == [(3, "warning")]
    assert check_file(tmp_path / "a.jsonl").tokens is None
    pair = {"prompt": "質問", "chosen": "短い", "rejected": "とても長い答え" * 5}
    longer = [*chat(U)["messages"], {"role": "assistant", "content": pair["rejected"]}]
    expected = len(tokenizer.apply_chat_template(longer, tokenize=True)["input_ids"])
    assert check_file(save_rows(tmp_path / "b.jsonl", [pair]), tokenizer).tokens["max"] == expected
    pair = {"prompt": chat(S, U)["messages"], "chosen": chat(A)["messages"], "rejected": longer[1:]}
    expected = len(tokenizer.apply_chat_template([*chat(S)["messages"], *longer], tokenize=True)["input_ids"])
    assert check_file(save_rows(tmp_path / "c.jsonl", [pair]), tokenizer).tokens["max"] == expected
    parts = {"instruction": "要約して", "input": "本文", "output": "答え"}
    joined = chat(("user", "要約して\n\n本文"), A)["messages"]
    expected = len(tokenizer.apply_chat_template(joined, tokenize=True)["input_ids"])
    assert check_file(save_rows(tmp_path / "d.jsonl", [parts]), tokenizer).tokens["max"] == expected


def test_a_long_table_is_shortened_and_the_json_is_not(tmp_path):
    report = check_file(save_rows(tmp_path / "a.jsonl", [ask(f"Ｑ{i}") for i in range(60)]))
    assert sum(row["種類"] == "full-width-alnum" for row in report.table()) == 51
    assert "ほかに 10 件" in report.text() and "数えていません" in report.text()
    assert sum(p["code"] == "full-width-alnum" for p in report.to_dict()["problems"]) == 60


DIRTY = [
    ask(" 前後に空白 "),
    ask("ｶﾞｲﾄﾞは Ａ４ です"),
    ask("見え\u200bない\x07文字"),
    ask(garbled(HIRAGANA, "latin-1")),
    ask(garbled("こんにちは", "cp932")),
    ask("前後に空白"),
    ask("　"),
    "{壊れた行",
    chat(("user", "同じ形に"), A),
]


def test_fix_repairs_a_copy_and_the_copy_is_clean(tmp_path):
    raw = "\n".join(x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in DIRTY[:-1]).encode()
    path, target = write(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + raw), tmp_path / "new" / "b.jsonl"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    changes = fix_file(path, target)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [c.line for c in changes] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert "1 行目と同じ" in changes[6].what and "除いた" in changes[7].what and "除いた" in changes[8].what
    questions = [row.data["question"] for row in load(target)]
    assert questions == ["前後に空白", "ガイドは A4 です", "見えない文字", HIRAGANA, "こんにちは"]
    assert [p.code for p in check_file(target).problems] == ["no-licence"]
    assert not target.read_bytes().startswith(b"\xef\xbb\xbf")


def test_fix_turns_an_excel_csv_into_utf8_and_keeps_other_columns(tmp_path):
    path = write(tmp_path, "a.csv", "質問,回答,備考\r\nﾃｽﾄ,はい,ｶﾅ\r\n".encode("cp932"))
    changes = fix_file(path, tmp_path / "b.jsonl")
    assert [c.line for c in changes] == [0, 2]
    assert load(tmp_path / "b.jsonl")[0].data == {"質問": "テスト", "回答": "はい", "備考": "ｶﾅ"}


def test_fix_leaves_to_people_what_people_must_decide(tmp_path):
    rows = [
        ask("一"),
        ask("一", "いいえ。"),
        ask("090-1234-5678 へ"),
        ask("こ\ufffd"),
        {"text": "a"},
        chat(("bot", "a"), A),
    ]
    path = save_rows(tmp_path / "a.jsonl", rows)
    assert fix_file(path, tmp_path / "b.jsonl") == []
    assert [row.data for row in load(tmp_path / "b.jsonl")] == rows


def test_fix_refuses_rather_than_lose_something(tmp_path):
    path = save_rows(tmp_path / "a.jsonl", [QA])
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "nowhere.jsonl")
    for target in (path, link, save_rows(tmp_path / "b.jsonl", [QA])):
        with pytest.raises(WorkshopError, match="すでにあります"):
            fix_file(path, target)
    with pytest.raises(WorkshopError, match="JSONL で書きます"):
        fix_file(path, tmp_path / "c.csv")
    with pytest.raises(WorkshopError, match="3 行目.*後ろは読めません"):  # 続きを黙って捨てない
        fix_file(write(tmp_path, "d.csv", CELLS + '"c,d\ne,f\n'), tmp_path / "e.jsonl")
    with pytest.raises(WorkshopError, match="直せる行が一つも"):
        fix_file(write(tmp_path, "f.jsonl", json.dumps(ask(""))), tmp_path / "e.jsonl")
    assert not (tmp_path / "e.jsonl").exists() and load(path)[0].data == QA


@pytest.mark.parametrize("text", ["こんにちは", "東京", "テスト", "半角ｶﾅではない", "文字化けしない文章です。"])
def test_mojibake_is_undone_only_when_it_comes_back_clean(text):
    assert undo_mojibake(text) is None and not is_mojibake(text)
    wrong = garbled(text, "latin-1")
    assert is_suspect(wrong) and is_mojibake(wrong) and undo_mojibake(wrong) == text
    assert repair(wrong)[0].startswith(text[:2])
    broken = garbled(text, "cp932", "replace")
    if "\ufffd" in broken:
        assert repair(broken) == (broken, [])


def test_the_command_tells_success_by_its_exit_code(tmp_path, capsys):
    good, out = save_rows(tmp_path / "a.jsonl", [QA]), tmp_path / "out.json"
    for arguments, code in (
        ([str(good), "--json", str(out)], 0),
        ([str(save_rows(tmp_path / "b.jsonl", [ask("")])), "--no-tokens"], 1),
        ([str(tmp_path / "no.jsonl")], 1),
        ([str(good), "--no-tokens", "--json", str(good)], 1),
        ([str(good), "--no-tokens", "--fix", str(good)], 1),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        shown = capsys.readouterr()
        assert caught.value.code == code and "Traceback" not in shown.err, arguments
    assert json.loads(out.read_text(encoding="utf-8"))["tokens"]["min"] > 5 and load(good)[0].data == QA
