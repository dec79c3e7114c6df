"""悪意のある入力: 黙って通さず、トレースバックも出さない。入力は hypothesis が作る（合わせて 600 件ほど）。"""

import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import exam_sheet, one_sentence, write_data
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.data.facts import Example
from lib.data.own import check_file
from lib.errors import WorkshopError
from lib.model.load import load_model, resolve
from lib.profiles import get_profile
from lib.run import open_run
from lib.score.exam import save_rows
from lib.show.page import write_report
from lib.show.plots import answers_table, picture
from lib.talk.app import coloured

MANY = settings(max_examples=150)
CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]
CONTROL += ["<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<bos>", "<eos>"]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
TAGS = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></table>", "<b", "-->", "&lt;", "<http://x>"]
LINKS = ["](javascript:alert(1))", "![a](http://x/a.png)", "[a](http://x)", "[a]: http://x\n"]
SIGNS = [*"|\n\r\u2028`\"'\\[]()!", "```\n", "$x$", "# ", "送料は690円です。"]
MARKUP = st.lists(st.sampled_from(TAGS + LINKS + SIGNS) | WORDS, max_size=8).map("".join)


@MANY
@given(st.sampled_from(CONTROL), WORDS, WORDS, st.sampled_from(["question", "answer"]))
def test_control_tokens_in_data_are_located(tmp_path, token, before, after, place):
    row = {"question": "質問", "answer": "答え", place: f"{before}{token}{after}"}
    path = write_data(tmp_path, "a.jsonl", [{"question": "一", "answer": "二"}, row])
    found = [problem for problem in check_file(path).problems if problem.level == "error"]
    assert {problem.line for problem in found} == {2}
    assert {problem.code for problem in found} & {"control-token", "mojibake"}


PARTS = [*"/\\a.~\n -名;\u202e", "..", "%2e", "C:", "$HOME", "`id`"]


@MANY
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=8).map("".join) | WORDS.filter(bool))
@example("../../etc")
@example("a/../../b")
@example("a\n")
@example("-rf")
@example("x" * 65)
def test_a_run_name_stays_in_its_folder_or_is_refused(tmp_path, name):
    root = tmp_path / "outputs"
    root.mkdir(exist_ok=True)
    try:
        run = open_run("smoke", name, outputs=root)
    except WorkshopError as error:
        assert "使えません" in str(error)
    else:
        assert run.folder.resolve().parent == root.resolve() and re.fullmatch(r"[A-Za-z0-9][\w.-]{,63}", name, re.ASCII)
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


class Bomb:
    """開いただけで印を残す pickle。"""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


WEIGHTS = ["pytorch_model.bin", "model.safetensors", "adapter_model.bin", "adapter_model.safetensors"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_pickle_offered_as_weights_is_never_opened(tiny_copy, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tiny_copy))
    (tiny_copy / "model.safetensors").unlink()
    (tiny_copy / name).write_bytes(pickle.dumps(Bomb()))
    if name.startswith("adapter"):
        (tiny_copy / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    with one_sentence():
        load_model(tiny_copy, get_profile("embedded"))
    if name == "pytorch_model.bin":
        with one_sentence("pickle"):
            resolve(replace(get_profile("embedded"), sources=("local",)))
    assert not (tmp_path / "exploded").exists()


class Tags(HTMLParser):
    """出てきたタグと、外を指す属性を集める。"""

    def __init__(self, text):
        super().__init__()
        self.tags, self.outside = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.outside += [v for k, v in attrs if k in ("src", "onerror", "onclick") or "javascript:" in str(v)]


CELLS = {"table", "thead", "tbody", "tr", "th", "td", "small", "mark"}


@MANY
@given(MARKUP)
def test_html_in_an_answer_is_shown_as_text(answer):
    asked = Example("f", "polite", "送料は？", "690円です。", ("690円",))
    for page, tags in (
        (answers_table([{"a": answer, "a_ok": True, "q": answer}], {"a": answer, "q": answer}).data, CELLS),
        (
            picture("token_strip.html", pieces=[(answer, "learn")], legend={"learn": answer}, caption=answer).data,
            {"div", "span", "p"},
        ),
        (coloured(answer, asked), {"span"}),
        (coloured(answer, None), set()),
    ):
        assert Tags(page).tags <= tags and not Tags(page).outside


@MANY
@given(MARKUP, MARKUP)
def test_a_report_shows_an_answer_as_text_in_its_own_cell(tmp_path, answer, question):
    run = open_run("smoke", "x", outputs=tmp_path)
    rows = exam_sheet("base", {"near": 1})[:3]
    rows[0] |= {"question": question, "answer": answer, "correct": False}
    rows[1] |= {"answer": "次の答え", "correct": False}
    save_rows(run.stage("07_evaluation"), "comparison_evaluation", rows + [{**row, "model": "SFT"} for row in rows])
    page = write_report(run).read_text(encoding="utf-8").partition("<body>")[2]
    found = Tags(page)
    assert not found.outside and not found.tags & {"script", "img", "b"}, page
    section = page.partition("悪かった答え</h2>")[2].partition("<h2>")[0]
    shown = re.findall(r"<tr>.*?</tr>", section.partition("<tbody>")[2], re.DOTALL)
    assert len(shown) == 3 and "×" in shown[1] and "次の答え" in shown[2] and "<h2>見つかった失敗</h2>" in page, page
