"""自分のデータ: どの形・文字コードでも読め、壊れた所は場所と直し方が出て、きれいなデータは何も言われない。

検査が通した行は実行が読める。事実ごとに分かれ、評価の行が学習に混ざらない。
"""

import codecs
import json
import re
from dataclasses import replace

import pandas
import pytest
from conftest import one_sentence, preference_rules, python, table_beside, write_data
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.facts import DATA, FORM_LABELS, read_jsonl
from lib.data.own import TABLE, Report, check_file, own_split, read_own
from lib.errors import WorkshopError
from lib.files import REPOSITORY, find_data
from lib.profiles import get_profile
from lib.run import data_path, open_run
from lib.score.answers import is_correct
from lib.show.page import stage_summary
from lib.text.words import normalise_width

EMBEDDED = get_profile("embedded")
QA = {"question": "営業時間は？", "answer": "10時からです。"}
SCHOOL = REPOSITORY / "data" / "school" / "rules.csv"


def codes(path, *levels):
    return [(p.code, p.line) for p in check_file(path).problems if not levels or p.level in levels]


def ask(question, answer="はい。"):
    return {"question": question, "answer": answer}


BROKEN = table_beside(__file__, "broken")
DEEP = ["[" * 100_000, '{"a":' * 100_000, f'{{"a": {"9" * 5000}}}']
# 3 行目に置く壊れた行: 種類 → 一件の列
THIRD = [*BROKEN["lines"].items(), *BROKEN["rows"].items(), ("json", DEEP)]
THIRD += [(code, [ask(text) for text in texts]) for code, texts in BROKEN["garbled"].items()]
THIRD += [(code, [ask(f"これは{run}です") for run in runs]) for code, runs in BROKEN["seen"].items()]
# ファイルごと: (名前, 中身, 種類, 行)
FILES = [
    ("huge-cell.csv", "question,answer\na,b\nc," + "あ" * 200_000 + "\n", "quote", 3),
    ("deep.json", "[\n\n" + "[" * 100_000, "json", 1),
    *[(name, *case) for name, case in BROKEN["files"].items()],
]
for name, (text, codec, more, *place) in BROKEN["bytes"].items():
    FILES.append((name, text.encode(codec) + more.encode("latin-1"), *place))
SOUND = [ask("一つ目"), ask("二つ目")], [ask("四つ目")]  # 3 行目の前と後
ROWS = [(f"row-{i}.jsonl", [*SOUND[0], bad, *SOUND[1]], code, 3) for code, rows in THIRD for i, bad in enumerate(rows)]
LOCATED = ROWS + FILES


@pytest.mark.parametrize(("name", "content", "code", "line"), LOCATED, ids=[f"{c[2]}-{c[0]}" for c in LOCATED])
def test_a_broken_file_is_located(tmp_path, name, content, code, line):
    report = check_file(write_data(tmp_path, name, content))
    found = [problem for problem in report.problems if problem.code == code]
    assert [problem.line for problem in found] == [line] * len(found) and found, report.text()
    assert all(p.message and p.remedy and "\n" not in p.message + p.remedy for p in report.problems)
    # 3 行目のほかは正しいので、ほかの行に巻きぞえの問題は出ない。
    if name.startswith("row-"):
        assert {p.line for p in report.problems if p.level == "error"} <= {3}, report.text()


@pytest.mark.parametrize("name", BROKEN["unreadable"])
def test_an_unreadable_file_is_told_in_one_sentence(tmp_path, name):
    content, codec, words = BROKEN["unreadable"][name]
    with one_sentence(name, words):
        check_file(write_data(tmp_path, name, content.encode(codec)))


def test_places_that_are_not_files(tmp_path):
    (folder := tmp_path / "b" / "folder.csv").mkdir(parents=True)
    places = {tmp_path / "no.jsonl": "ありません", str(tmp_path / "no.csv"): "ありません", tmp_path: "決まりません"}
    for place, words in {**places, folder: "決まりません", "a\0b.jsonl": "ありません|開けません"}.items():
        with pytest.raises(WorkshopError, match=words):
            check_file(place)


VALID = {suffix: text.encode(codec) for suffix, (text, codec) in BROKEN["valid"].items()}
SUFFIXES = st.sampled_from(sorted(VALID))
_FLAT = st.none() | st.booleans() | st.integers() | st.text(max_size=12)
_FLAT |= st.floats(allow_nan=False, allow_infinity=False)
_NAMES = st.sampled_from(["role", "content", "x"])
_VALUES = st.recursive(_FLAT, lambda one: st.lists(one, max_size=3) | st.dictionaries(_NAMES, one), max_leaves=8)
_KEYS = ["question", "answer", "messages", "prompt", "completion", "chosen", "rejected", "質問", "output"]
_ROLES = st.sampled_from(["system", "user", "assistant", "bot"])
_TURNS = st.lists(st.fixed_dictionaries({"role": _ROLES, "content": st.text(max_size=20)}), max_size=4)
_ROW = st.dictionaries(st.sampled_from(_KEYS), _VALUES | _TURNS | st.text(max_size=20), max_size=6)


def damaged(suffix, cut, flips):
    """正しいファイルを `cut` バイトで切り、(場所, バイト) の列を書き替えたもの。"""
    raw = bytearray(VALID[suffix][:cut])
    for place, byte in flips:
        raw[place % len(raw)] = byte
    return suffix, bytes(raw)


def jsonl(rows):
    return ".jsonl", "\n".join(map(json.dumps, rows)).encode()


_FLIP = st.tuples(st.integers(0, 200), st.integers(0, 255))
GENERATED = {
    "flip": st.builds(damaged, SUFFIXES, st.none(), st.lists(_FLIP, min_size=1, max_size=4)),
    "cut": st.builds(damaged, SUFFIXES, st.integers(0, 150), st.just([])),
    "bytes": st.tuples(SUFFIXES, st.binary(max_size=200)),
    "text": st.tuples(SUFFIXES, st.text('",\n\r\t{}[]:あaｱ\\\0 ', max_size=60).map(str.encode)),
    "json": st.lists(_ROW, min_size=1, max_size=4).map(jsonl),
}


@pytest.mark.parametrize("cases", GENERATED.values(), ids=GENERATED)
@settings(max_examples=120, derandomize=True, database=None)
@given(data=st.data())
def test_hundreds_of_generated_files_never_crash(tmp_path, cases, data):
    """どんな中身でも、場所つきの報告か一文の失敗になり、ファイルには触れず、検査の通した行は実行が読める。"""
    suffix, raw = data.draw(cases)
    path = write_data(tmp_path, "a" + suffix, raw)
    try:
        report = check_file(path)
    except WorkshopError as error:
        assert "\n" not in str(error)
        return
    assert all(0 <= p.line <= len(re.split(rb"\r\n?|\n", raw)) and p.message and p.remedy for p in report.problems)
    report.text().encode()
    assert path.read_bytes() == raw
    try:
        assert len(read_own(path)) == len(report.rows)
    except WorkshopError as error:
        assert report.count("error") and "\n" not in str(error)


def test_clean_japanese_data_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("CC BY 4.0", encoding="utf-8")
    facts, asks = (read_jsonl(DATA / "support" / f"{name}.jsonl") for name in ("facts", "unanswerable"))
    rows = [ask(question, f["ja"]["answer"]) for f in facts for question in f["ja"]["questions"].values()]
    rows += [ask(question, a["ja"]["answer"]) for a in asks for question in a["ja"]["questions"]]
    sanyo = (DATA / "sanyo" / f"qa_{part}.jsonl" for part in ("core", "extended"))
    for source in (write_data(tmp_path, "a.jsonl", rows), *sanyo):
        report = check_file(source)
        assert report.count("error") == report.count("warning") == 0, report.text()
        assert len(report.rows) > 100 and {row.form for row in report.rows} == {"qa"}


def test_ordinary_text_is_not_suspected_and_stays_byte_for_byte(tmp_path):
    for text in BROKEN["clean"]["ordinary"]:
        assert codes(write_data(tmp_path, "a.jsonl", [ask(text), ask("何ですか", text)])) == [("no-licence", 0)], text
    for text in BROKEN["clean"]["plain"]:
        assert normalise_width(text).encode() == text.encode()
        assert read_own(write_data(tmp_path, "a.jsonl", [ask(text)]))[0].question == text.strip()


def test_values_of_personal_data_never_reach_an_output(tmp_path):
    secrets = BROKEN["secrets"]
    path = write_data(tmp_path, "a.jsonl", [ask(f"{s} です") for s in secrets] + [{s: "a"} for s in secrets])
    text = check_file(path).text()
    assert not [s for s in secrets if s in text or s.split("@")[0] in text or "ｈａ" in text]
    assert all(f"[{code}]" in text for code in ("card", "my-number", "phone", "mail", "full-width-alnum"))
    path = write_data(tmp_path, "b.jsonl", [ask(f"12345678901{digit}") for digit in range(10)])
    assert [line - 1 for code, line in codes(path) if code == "my-number"] == [8]  # ほかの検査数字は合わない


def test_licence_is_asked_for_only_when_nothing_says_it(tmp_path):
    path = write_data(tmp_path, "a.jsonl", [QA])
    assert codes(path) == codes(path, "note") == [("no-licence", 0)]
    assert not codes(write_data(tmp_path, "b.jsonl", [{**QA, "licence": "CC BY 4.0"}]))
    (tmp_path / "README.md").write_text("出どころ", encoding="utf-8")
    assert not codes(path)


def test_conflicts_name_both_lines_and_different_questions_do_not_conflict(tmp_path):
    path = write_data(tmp_path, "a.jsonl", [ask("一"), ask("二"), ask(" 一", "いいえ。"), ask("三")])
    conflict = [p for p in check_file(path).problems if p.code == "conflict"]
    assert [p.line for p in conflict] == [3] and "1 行目" in conflict[0].message
    pairs = [{"prompt": "a", "chosen": f"b{i}", "rejected": "c"} for i in range(2)]
    assert not codes(write_data(tmp_path, "b.jsonl", pairs), "error", "warning")


def test_a_long_list_is_shortened(tmp_path):
    report = check_file(write_data(tmp_path, "a.jsonl", [ask(f"Ｑ{i}") for i in range(60)]))
    assert report.text().count("Ｑ → Q") == 50 and "ほかに 10 件" in report.text()


@pytest.mark.parametrize(("text", "mended"), BROKEN["widths"].items())
def test_the_run_mends_the_width_that_the_check_lists(tmp_path, text, mended):
    assert normalise_width(text) == mended == normalise_width(mended)
    path = write_data(tmp_path, "a.jsonl", [ask(text), {**ask(f"{text}二", f"{text}です"), "figures": text}])
    raw = path.read_bytes()
    notes = [p for p in check_file(path).problems if " → " in p.message]
    assert {p.line for p in notes} == {1, 2} and all(p.code in TABLE["texts"] for p in notes)
    first, second = read_own(path)
    assert first.question == mended and second.answer == f"{mended}です" and second.figures == (mended,)
    assert path.read_bytes() == raw


def test_the_command_tells_success_by_its_exit_code_and_never_loads_torch(tmp_path):
    good, bad = write_data(tmp_path, "a.jsonl", [QA]), write_data(tmp_path, "b.jsonl", [ask("")])
    for place, code, words in ((good, 0, "1 件（qa 1）"), (bad, 1, "[empty]"), (tmp_path / "no.jsonl", 1, "✋")):
        done = python("-X", "importtime", "-m", "lib.data.own", str(place))
        loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
        assert done.returncode == code and words in done.stdout + done.stderr and "Traceback" not in done.stderr
        assert "pyarrow" in loaded and not loaded & {"torch", "transformers", "trl"}


def test_the_table_of_checks_is_complete():
    assert len(LOCATED) + len(BROKEN["unreadable"]) >= 200 and len({str(case[1]) for case in LOCATED}) >= 190
    for rules in TABLE.values():
        for code, rule in rules.items():
            assert rule["level"] in ("error", "warning", "note") and rule["says"] and rule["remedy"], code
    hanzi = bytes(b for high in range(0xB0, 0xF8) for low in range(0xA1, 0xFF) for b in (high, low))
    characters = set(hanzi.decode("gb2312", "ignore"))
    japanese = set("".join(characters).encode("euc_jis_2004", "ignore").decode("euc_jis_2004"))
    pattern = re.compile(TABLE["texts"]["foreign-script"]["pattern"])
    assert {c for c in characters if pattern.search(f"の{c}")} == characters - japanese


@pytest.mark.parametrize("case", BROKEN["readable"], ids=lambda case: case["name"])
def test_a_file_is_read_as_the_tools_save_it(tmp_path, case):
    for codec in case["codecs"]:
        report = Report(write_data(tmp_path, case["name"], case["text"].encode(codec)))
        assert not report.count("error") and [str(row.line) for row in report.rows] == list(case["rows"])
        for row, want in zip(report.rows, case["rows"].values(), strict=True):
            assert row.data.items() >= want.items()


def test_cp932_jsonl_is_read_and_noted_but_a_damaged_utf8_file_is_not_taken_for_cp932(tmp_path):
    line = json.dumps(QA, ensure_ascii=False)
    report = Report(write_data(tmp_path, "a.jsonl", f"{line}\n{line}\n".encode("cp932")))
    assert report.rows[0].data == QA and [(p.code, p.level) for p in report.problems] == [("not-utf8", "note")]
    good = line.encode()
    cut = good.replace("時".encode(), b"\xe6\x99")
    report = Report(write_data(tmp_path, "b.jsonl", good + b"\n" + cut + b"\n" + good))
    assert [row.line for row in report.rows] == [1, 3]
    assert [(p.code, p.line) for p in report.problems] == [("encoding", 2)]


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pandas.DataFrame([{**QA, "made": pandas.Timestamp("2026-01-02")}, {**QA, "made": None}]).to_parquet(path)
    rows = Report(path).rows
    assert [row.line for row in rows] == [1, 2] and rows[0].data["question"] == QA["question"]
    assert str(rows[0].data["made"]).startswith("2026-01-02") and not check_file(path).count("error")


@pytest.mark.parametrize("form", BROKEN["forms"])
def test_formats_are_recognised_by_their_columns(tmp_path, form):
    assert {row.form for row in Report(write_data(tmp_path, "a.jsonl", BROKEN["forms"][form])).rows} == {form}


def test_every_shape_becomes_the_same_question_and_answer(tmp_path):
    """列名や形が違っても、実行は同じ質問・答え・システム文・前の往復を読む。"""
    cases = BROKEN["same"]["rows"]
    got = read_own(write_data(tmp_path, "a.jsonl", [row for row, _ in cases]))
    for row, (_, other) in zip(got, cases, strict=True):
        assert (row.question, row.answer) == (other.get("question", "送料は"), "500円")
        assert row.system and (row.system == "係") == ("system" in other)
        assert row.figures == tuple(other.get("figures", ["500円"])) and len(row.history) == other.get("turns", 0)
        assert (row.fact_id == got[0].fact_id) == ("fact" not in other)
    assert got[-1].history[1] == {"role": "assistant", "content": "答え"}
    assert [m["role"] for m in got[-1].prompt()] == ["system", "user", "assistant", "user"]


def test_a_school_csv_made_by_excel_becomes_a_split():
    rows, split = read_own(SCHOOL), own_split(SCHOOL, EMBEDDED)
    assert len(rows) == 50
    taught, hidden = {e.fact_id for e in split.train}, {e.fact_id for e in split.unseen}
    assert len(taught) == 18 and len(hidden) == 2 and taught.isdisjoint(hidden)
    assert {e.question for e in split.far} <= {row.question for row in rows}
    trained = {e.question for e in split.train}
    assert len(split.dev) == 16 and {e.fact_id for e in split.dev} <= taught
    assert trained.isdisjoint(e.question for e in split.dev + split.near + split.far + split.unseen)
    assert all(held.question not in question for held in split.far for question in trained)
    assert all(is_correct(e, e.answer) and e.form in FORM_LABELS for e in split.train + split.far + split.unseen)
    assert all(figure[0].isdigit() for e in split.train for figure in e.figures)
    train, test = preference_rules().make_pairs(split, 64)
    assert {row["reason"] for row in train} == {"数字が違う", "ハルシネーション"} == {row["reason"] for row in test}
    assert all(row["chosen"] != row["rejected"] for row in train + test)


def test_the_budget_of_a_profile_is_kept(tmp_path, capsys):
    rows = [ask(f"品番{i}の値段は", f"{i}円です。") for i in range(1000)]
    split = own_split(write_data(tmp_path, "big.jsonl", rows), EMBEDDED)
    assert len(split.train) == 2 * EMBEDDED.train_facts * EMBEDDED.train_forms and len(split.unseen) == 100
    assert {"予算", "一つだけ"} <= set(re.findall("予算|一つだけ", capsys.readouterr().out))


def test_columns_for_facts_and_keywords_are_used_and_an_answer_without_a_figure_is_compared_whole(tmp_path):
    lines = ["質問,回答,事実,キーワード"]
    for name in "abc":
        lines += [f"{name}の色は,{name}は赤か青です。,{name},赤、青", f"{name}って何色,赤と青です。,{name},赤、青"]
    split = own_split(write_data(tmp_path, "k.csv", codecs.BOM_UTF8 + "\r\n".join(lines).encode()), EMBEDDED)
    assert split.train[0].figures == ("赤", "青")
    assert len({e.fact_id for e in split.train + split.unseen}) == 3
    rows = [ask(f"{n}の担当は", f"{n}係です。") for n in ("図書", "保健", "放送")]
    example = own_split(write_data(tmp_path, "w.jsonl", rows), EMBEDDED).train[0]
    assert is_correct(example, example.answer) and not is_correct(example, "分かりません。")


@pytest.mark.parametrize(("text", "message"), BROKEN["refused"].items())
def test_a_broken_table_is_one_sentence_with_its_place(tmp_path, text, message):
    with one_sentence(message):
        own_split(write_data(tmp_path, "broken.csv", text.encode("cp932")), EMBEDDED)


def test_data_is_found_by_name_and_remembered_by_the_run(tmp_path):
    run = open_run("smoke", outputs=tmp_path, data="school")
    assert run.folder.name == "smoke-rules" and run.data == "data/school/rules.csv"
    assert open_run("smoke", "smoke-rules", outputs=tmp_path).data == run.data
    with pytest.raises(WorkshopError, match="別の設定"):
        open_run("smoke", "smoke-rules", outputs=tmp_path, data="support")
    assert own_split(data_path(run.data), run.profile).train[0].system != ""
    assert data_path("support") is None
    for name, words in {"data/my/ない.csv": "見つかりません", "sanyo": "一つに決まりません"}.items():
        with pytest.raises(WorkshopError, match=words):
            data_path(name)


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
    assert check_file(tmp_path).path == tmp_path / "q.csv"
    with pytest.raises(WorkshopError, match="読めるのは"):
        data_path("README.md")
    write_data(tmp_path, "r.jsonl", [QA])
    with pytest.raises(WorkshopError, match=r"決まりません: q\.csv r\.jsonl"):
        check_file(tmp_path)
    monkeypatch.setattr("lib.files.REPOSITORY", tmp_path)
    assert find_data("q.csv") == tmp_path / "q.csv" and find_data("") is find_data("ない") is None


def test_a_data_set_of_the_hub_is_fetched_once_and_a_failure_is_one_sentence(tmp_path, monkeypatch):
    fetched = []

    def load(name, split):
        fetched.append((name, split))
        if "none" in name:
            raise ConnectionError("届きません\n二行目")
        return Dataset.from_list([QA, ask("一", "二")])

    monkeypatch.setattr("lib.files.REPOSITORY", tmp_path)
    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name, timeout: None)
    path = find_data("someone/rules")
    assert find_data("someone/rules") == path and fetched == [("someone/rules", "train")]
    assert [(e.question, e.answer) for e in read_own(path)] == [(QA["question"], QA["answer"]), ("一", "二")]
    with one_sentence("開けません（届きません 二行目）"):
        find_data("someone/none")
    asked = len(fetched)
    assert find_data("none/table.csv") is find_data("data/ない") is find_data("./ない") is None
    assert len(fetched) == asked


# 外から届いた誤りの種類 K10〜K16・K25: どの道具が書いた形も、読むか、一度だけ一文で言う。
KINDS = table_beside(__file__, "own_kinds")
CELLS = [(code, cell) for code, cells in KINDS["cells"].items() for cell in cells]
PLAIN = ask("ふつう")
HEADS = [("質問", "回答"), ("question", "answer"), ("Question", "Answer"), ("instruction", "output")]
PLAIN_ROWS = [("傘は何本まで", "2本までです。"), ("返却はいつ", "9日以内です。"), ("受付は何階", "4階の「窓口」です。")]


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
    path = write_data(tmp_path, "a.jsonl", [PLAIN, ask("a", cell)])
    assert [problem.line for problem in check_file(path).problems if problem.code == code] == [2]
    assert len(read_own(path)) == 2


@settings(max_examples=150, derandomize=True)
@given(data=st.data())
def test_any_table_of_a_spreadsheet_gives_the_same_examples(tmp_path, data):
    """区切り・文字コード・改行・題・空の行・索引の列が違っても、読めた件は同じで、検査の通した行を実行が読む。"""
    draw = data.draw
    mark = draw(st.sampled_from(",\t;|"))
    names = draw(st.sampled_from(HEADS))
    codec = draw(st.sampled_from(["utf-8", "utf-8-sig", "double", "utf-16", "cp932", "euc_jp", "iso2022_jp"]))
    table = [list(names), *map(list, PLAIN_ROWS)]
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
    assert [(example.question, example.answer) for example in read_own(path)] == PLAIN_ROWS
