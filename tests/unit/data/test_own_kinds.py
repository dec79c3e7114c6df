"""外から届いた誤りの種類 K10〜K16・K25: どの道具が書いた形も、読むか、一度だけ一文で言う。入力は own_kinds.toml。"""

import codecs

import pytest
from conftest import table_beside, write_data
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.own import check_file, read_own

KINDS = table_beside(__file__, "own_kinds")
CELLS = [(code, cell) for code, cells in KINDS["cells"].items() for cell in cells]
PLAIN = {"question": "ふつう", "answer": "はい。"}
NAMES = [("質問", "回答"), ("question", "answer"), ("Question", "Answer"), ("instruction", "output")]
ROWS = [("傘は何本まで", "2本までです。"), ("返却はいつ", "9日以内です。"), ("受付は何階", "4階の「窓口」です。")]


@pytest.mark.parametrize("row", KINDS["read"])
def test_the_shapes_of_other_tools_are_read(tmp_path, row):
    path = write_data(tmp_path, "a.jsonl", row)
    assert {problem.code for problem in check_file(path).problems} <= {"no-licence"}
    (example,) = read_own(path)
    assert (example.question, example.answer) == ("送料は", "500円")


@pytest.mark.parametrize(("row", "code", "name"), KINDS["named"])
def test_a_column_with_a_meaning_is_named_once(tmp_path, row, code, name):
    path = write_data(tmp_path, "a.jsonl", [PLAIN, row, row])
    (problem,) = [problem for problem in check_file(path).problems if problem.code == code]
    assert problem.line == 2 and name in problem.message and len(read_own(path)) == 3


@pytest.mark.parametrize(("row", "code"), KINDS["shapes"])
def test_a_shape_that_cannot_be_read_is_told_once(tmp_path, row, code):
    path = write_data(tmp_path, "a.jsonl", [row.replace("\n", "\\n")] * 3)
    errors = [problem.code for problem in check_file(path).problems if problem.level == "error"]
    assert errors == [code]


@pytest.mark.parametrize(("code", "cell"), CELLS, ids=[cell for _, cell in CELLS])
def test_what_tools_leave_in_a_cell_is_found(tmp_path, code, cell):
    path = write_data(tmp_path, "a.jsonl", [PLAIN, {"question": "a", "answer": cell}])
    assert [problem.line for problem in check_file(path).problems if problem.code == code] == [2]
    assert len(read_own(path)) == 2


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_any_table_of_a_spreadsheet_gives_the_same_examples(tmp_path, data):
    """区切り・文字コード・改行・題・空の行・索引の列が違っても、読めた件は同じで、検査の通した行を実行が読む。"""
    draw = data.draw
    mark = draw(st.sampled_from(",\t;|"))
    names = draw(st.sampled_from(NAMES))
    codec = draw(st.sampled_from(["utf-8", "utf-8-sig", "double", "utf-16", "cp932", "euc_jp", "iso2022_jp"]))
    table = [list(names), *map(list, ROWS)]
    if draw(st.booleans()):
        table = [row[::-1] for row in table]
    if draw(st.booleans()):
        table = [["" if n == 0 else str(n - 1), *row] for n, row in enumerate(table)]
    width = len(table[0]) + draw(st.integers(0, 2))
    table = [row + [""] * (width - len(row)) for row in table]
    for place in draw(st.lists(st.integers(1, len(table)), max_size=3)):
        table.insert(place, [""] * width)
    if draw(st.booleans()):
        table.insert(0, ["よくある質問"] + [""] * (width - 1))
    text = "".join(mark.join(row) + draw(st.sampled_from(["\n", "\r\n"])) for row in table)
    if draw(st.booleans()):
        text = f"sep={mark}\r\n{text}"
    raw = codecs.BOM_UTF8 * 2 + text.encode() if codec == "double" else text.encode(codec)
    report = check_file(path := write_data(tmp_path, "a.csv", raw))
    assert not report.count("error"), report.text()
    assert [(example.question, example.answer) for example in read_own(path)] == ROWS
