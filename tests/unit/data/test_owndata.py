"""自分のデータ: 読めて、事実ごとに分かれ、試験の行が学習に混ざらない。壊れた表は一文で断る。"""

import json
from dataclasses import replace

import pytest

from lib.data.facts import FORM_LABELS
from lib.data.own import own_split, read_own, split_for
from lib.data.validate import check_file
from lib.errors import WorkshopError
from lib.files import REPOSITORY, find_data
from lib.profiles import get_profile
from lib.run import data_path, open_run
from lib.score.answers import is_correct
from lib.score.pairs import make_pairs
from lib.show.page import stage_summary

SCHOOL = REPOSITORY / "data" / "school" / "rules.csv"


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
    train, test = make_pairs(own_split(SCHOOL, get_profile("embedded")), 64)
    assert {row["reason"] for row in train} == {"数字が違う", "でたらめ"} == {row["reason"] for row in test}
    assert all(row["chosen"] != row["rejected"] for row in train + test)


def test_the_budget_of_a_profile_is_kept(tmp_path):
    path = tmp_path / "big.jsonl"
    rows = [{"question": f"品番{i}の値段は", "answer": f"{i}円です。"} for i in range(1000)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    notes: list[str] = []
    split = own_split(path, get_profile("embedded"), notes)
    assert len(split.train) == 2 * 112 and len(split.unseen) == 100
    assert any("予算" in note for note in notes) and any("一つだけ" in note for note in notes)


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
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
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
    split, notes = split_for(run)
    assert split.train[0].system != "" and notes
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
