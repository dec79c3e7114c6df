"""読み込みと変換: 文字コード、行番号、形の見分け、往復で失われないこと。"""

import codecs
import json

import pytest

from lib.data.formats import convert, detect_format, load, map_texts, save_rows, scan, turns
from lib.errors import WorkshopError

QA = {"question": "営業時間は？", "answer": "10時からです。"}
CHAT = [{"role": "user", "content": "こんにちは"}, {"role": "assistant", "content": "はい、どうぞ。"}]
MESSAGES = {"messages": CHAT}
TWO_TURNS = {"messages": [*CHAT, *CHAT]}
INSTRUCTION = {"instruction": "要約してください。", "input": "", "output": "要約です。"}
PREFERENCE = {"prompt": "質問", "chosen": "良い答え", "rejected": "悪い答え"}
CSV = '質問,回答\r\n"一行目\r\n二行目",はい\r\n三,"ほんの「""字""」, です"\r\n'


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


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
    assert {detect_format(row.data) for row in rows} == {"qa"}


def test_tab_separated_text_is_read_under_both_names(tmp_path):
    text = "question\tanswer\nこれは, 何\t本です\n"
    for name in ("a.tsv", "b.csv"):
        assert load(write(tmp_path, name, text))[0].data == {"question": "これは, 何", "answer": "本です"}


def test_cp932_jsonl_is_read_and_noted_but_a_damaged_utf8_file_is_not_taken_for_cp932(tmp_path):
    line = json.dumps(QA, ensure_ascii=False)
    rows, problems = scan(write(tmp_path, "a.jsonl", f"{line}\n{line}\n".encode("cp932")))
    assert rows[0].data == QA and [(p.code, p.level) for p in problems] == [("not-utf8", "note")]
    good = line.encode()
    rows, problems = scan(
        write(tmp_path, "b.jsonl", good + b"\n" + good.replace("時".encode(), b"\xe6\x99") + b"\n" + good)
    )
    assert [row.line for row in rows] == [1, 3] and [(p.code, p.line) for p in problems] == [("encoding", 2)]


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
    assert "2026-01-02" in save_rows(tmp_path / "b.jsonl", [row.data for row in rows]).read_text(encoding="utf-8")


def test_a_hub_name_reads_train_and_says_what_to_do_offline(monkeypatch):
    import datasets

    calls = []

    def pretend(name, **options):
        calls.append((name, options))
        return [QA, QA]

    monkeypatch.setattr(datasets, "load_dataset", pretend)
    assert [row.line for row in load("owner/name")] == [1, 2]
    assert calls == [("owner/name", {"split": "train"})]  # trust_remote_code は渡さない

    def offline(name, **options):
        raise ConnectionError("Couldn't reach the Hub\nlong detail")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(WorkshopError, match="ネットワークを確かめるか、先に取得したファイルを") as caught:
        load("owner/name")
    assert "\n" not in str(caught.value) and "owner/name" in str(caught.value)


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
        (INSTRUCTION, "instruction"),
        ({"instruction": "a", "output": "b", "system": "c"}, "instruction"),
        ({"指示": "a", "入力": "b", "出力": "c"}, "instruction"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "prompt_completion"),
        (MESSAGES, "messages"),
        (PREFERENCE, "preference"),
        ({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}, "preference"),
        ({"text": "a"}, None),
        ({"question": "a"}, None),
        ({}, None),
    ],
)
def test_formats_are_recognised_by_their_columns(row, form):
    assert detect_format(row) == form


EXTRA = {"id": "x-1", "licence": "CC BY 4.0", "fact": ["F1"], "memo": None}


@pytest.mark.parametrize("middle", ["messages", "instruction", "prompt_completion"])
def test_question_and_answer_survive_a_round_trip(middle):
    row = {**QA, **EXTRA}
    assert convert(convert(row, middle), "qa") == row
    assert convert({"質問": "a", "回答": "b", **EXTRA}, middle)["id"] == "x-1"


@pytest.mark.parametrize("middle", ["messages", "prompt_completion"])
@pytest.mark.parametrize("system", [{}, {"system": "窓口です。"}])
def test_instruction_survives_a_round_trip(middle, system):
    row = {**INSTRUCTION, **system, **EXTRA}
    assert convert(convert(row, middle), "instruction") == row


def test_messages_survive_a_round_trip_with_what_is_attached_to_a_turn():
    row = {"messages": [{**CHAT[0], "name": "客"}, CHAT[1], *CHAT], **EXTRA}
    assert convert(convert(row, "prompt_completion"), "messages") == row
    assert convert(row, "messages") == row


def test_input_joins_the_instruction_with_a_blank_line():
    assert convert({**INSTRUCTION, "input": "本文"}, "qa")["question"] == "要約してください。\n\n本文"


@pytest.mark.parametrize(
    ("row", "target", "lost"),
    [
        (TWO_TURNS, "instruction", "4 個の発言"),
        (TWO_TURNS, "qa", "4 個の発言"),
        (PREFERENCE, "qa", "rejected"),
        (PREFERENCE, "messages", "rejected"),
        ({**INSTRUCTION, "system": "窓口"}, "qa", "システム文"),
        ({"messages": [{**CHAT[0], "name": "客"}, CHAT[1]]}, "qa", "name"),
        ({**QA, "output": "別の値"}, "instruction", "output"),
        (QA, "preference", "作れません"),
        ({"messages": CHAT[:1]}, "qa", "assistant"),
        ({"messages": []}, "qa", "messages"),
        ({"messages": [{"role": "user"}]}, "qa", "1 番目"),
        ({"question": 1, "answer": "a"}, "messages", "question"),
        ({"text": "a"}, "qa", "text"),
        (QA, "alpaca", "alpaca"),
    ],
)
def test_a_conversion_that_would_lose_something_says_what(row, target, lost):
    with pytest.raises(WorkshopError, match=lost):
        convert(row, target)


def test_allowed_losses():
    assert convert({**PREFERENCE, "id": 1}, "qa", allow_loss=True) == {
        "question": "質問",
        "answer": "良い答え",
        "id": 1,
    }
    lists = {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}
    assert convert(lists, "messages", allow_loss=True) == MESSAGES
    assert convert({**INSTRUCTION, "system": "窓口"}, "qa", allow_loss=True)["answer"] == "要約です。"
    with pytest.raises(WorkshopError, match="失われます"):
        convert(TWO_TURNS, "qa", allow_loss=True)


def test_map_texts_changes_only_the_training_text():
    row = {"質問": "a", "回答": "b", "memo": "a"}
    assert map_texts(row, "qa", str.upper) == {"質問": "A", "回答": "B", "memo": "a"}
    made = map_texts(MESSAGES, "messages", lambda text: text + "!")
    assert [text for _, _, text in turns(made, "messages")] == ["こんにちは!", "はい、どうぞ。!"]
    assert CHAT[0]["content"] == "こんにちは"


def test_saved_rows_load_back(tmp_path):
    rows = [{**QA, "id": 'a"b'}, {"question": '改\r行, と\n引用"符"', "answer": "b\rc", "id": ""}]
    assert [row.data for row in load(save_rows(tmp_path / "a.jsonl", rows))] == rows
    path = save_rows(tmp_path / "a.csv", rows)
    assert path.read_bytes().startswith(codecs.BOM_UTF8)
    assert [row.data for row in load(path)] == rows
    chats = [MESSAGES, TWO_TURNS]
    assert [row.data for row in load(save_rows(tmp_path / "b.csv", chats))] == chats


@pytest.mark.parametrize("value", [float("nan"), "\ud83d"])
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, value):
    with pytest.raises(WorkshopError, match="書けない値"):
        save_rows(tmp_path / "a.jsonl", [{"question": value}])
    with pytest.raises(WorkshopError, match=r"\.jsonl か \.csv"):
        save_rows(tmp_path / "a.txt", [QA])
    assert list(tmp_path.iterdir()) == []
