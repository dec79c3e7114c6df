"""答えを比べるページ: 中身を素の関数で、画面を本物のブラウザで確かめる。モデルは読まず、偽の答え手を使う。"""

import socket
import sys
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from conftest import one_sentence

from lib.data.facts import Example, write_examples
from lib.errors import WorkshopError
from lib.export.serve import modelfile
from lib.files import read_json, write_json
from lib.run import open_run
from lib.score.answers import score_rows
from lib.score.exam import save_rows
from lib.show.plots import picture
from lib.talk import app
from lib.talk.app import answer_card, coloured, open_ballot, open_models, open_page, read_exam
from lib.text.words import nfkc

KNOWN = [("request", "名入れ", 16), ("casual", "取り寄せ", 9), ("other_3", "お直し", 21), ("request", "配送", 3)]
EXAMPLES = [
    Example(f"fact-{n}", form, f"{thing}は何日かかりますか？", f"{thing}は{days}日かかります。", (f"{days}日",))
    for n, (form, thing, days) in enumerate(KNOWN)
]
REFUSAL = Example("ask-0", "unanswerable", "社長の趣味は何ですか？", "その情報は分かりかねます。", ())
EXAM = {nfkc(example.question): example for example in (*EXAMPLES, REFUSAL)}
NASTY = '<img src="http://example.com/a.png" onerror="document.title=\'破られた\'">${alert()}{{value}}`'


def broken(question):
    raise WorkshopError("重みを読めません", "ファイルを確かめてください", "adapter")


MODELS = {
    "学習前": lambda question: f"2024年に{NASTY}",
    "SFT": lambda question: "名入れの所要日数は16日です。" if "名入れ" in question else "9日です。",
    "SFT + DPO": broken,
    "GGUF Q4_K_M": lambda question: "およそ１７日、つまり十六日です。",
}


@pytest.fixture
def run(tmp_path):
    """07 まで終わった実行。"""
    run = open_run("smoke", "trial", outputs=tmp_path)
    rows = []
    for model, days in (("base", 2), ("SFT", 16), ("DPO", 9)):
        rows += score_rows(EXAMPLES, [f"{days}日です。"] * len(EXAMPLES), model, "near")
        rows += score_rows([REFUSAL], ["はい。"], model, "unanswerable")
    save_rows(run.stage("07_evaluation"), "comparison_evaluation", rows)
    return run


def test_figures_are_marked_in_place_and_escaped():
    example = EXAMPLES[0]
    assert coloured("１６日です<b>", example) == '<span class="figure right">○１６日</span>です&lt;b&gt;'
    assert coloured("5月16日です", example).startswith('<span class="figure wrong">×5月16日</span>')
    assert "○16日" in coloured("十六日です", example)  # 長さが変わる書き方は、読んだ形で見せる
    assert coloured("もう一つ、16日です", example).startswith("もう一つ、<span")  # 数えない「一つ」には付けない
    assert coloured("16日<", None) == "16日&lt;" and coloured("", example) == "（何も答えませんでした）"
    assert coloured("16日です", REFUSAL).startswith('<span class="figure wrong">×')


def test_a_model_that_cannot_be_read_is_not_an_empty_answer():
    shown = picture("talk/cards.html", cards=[answer_card("SFT", broken, "問い", EXAMPLES[0])]).data
    assert "読めません: 重みを読めません（adapter）" in shown and "×" not in shown and "quiet" in shown
    refused = answer_card("SFT", lambda question: "それは分かりかねます。", REFUSAL.question, REFUSAL)
    assert refused["verdict"] == "○ 回答を控えた"
    assert not answer_card("SFT", lambda question: "16日です。", "別の問い", None)["verdict"]


def test_the_vote_is_the_one_of_the_notebook(run):
    ballot = open_ballot(run)
    assert ballot.names == ("学習前", "SFT") and len(ballot.rows) == len(EXAMPLES)  # 回答不能な質問は、投票に出さない
    assert ballot.path == run.folder / "07_evaluation" / "votes.json"
    ballot.vote(0, "左")
    assert open_ballot(run).votes == ballot.votes
    # 07 が SFT を測れなかったときの票（学習前と SFT + DPO）が残っていても、混ぜない。
    write_json(ballot.path, {"names": ["学習前", "SFT + DPO"], "votes": {"0": "SFT + DPO"}})
    with one_sentence("別のモデルどうし"):
        open_ballot(run)


def test_an_unfinished_run_is_one_sentence(tmp_path):
    run = open_run("smoke", outputs=tmp_path)
    with one_sentence("02_dataset・04_lora_sft が終わっていません"):
        read_exam(run)
    for part, example in (("near", EXAMPLES[0]), ("far", EXAMPLES[2])):
        write_examples(run.stage("02_dataset") / f"{part}.jsonl", [example])
    run.finish("02_dataset", {})
    run.finish("04_lora_sft", {})
    exam = read_exam(run)  # 07 がまだでも、並べて答えるほうは使える
    assert len(exam) == 2 and list(open_models(run, exam, ExitStack())) == ["学習前"]
    with one_sentence("ファイルがありません", "comparison_evaluation.json"):
        open_ballot(run)


def test_models_load_once_when_first_asked_and_llama_cpp_always_stops(tmp_path, monkeypatch):
    run = open_run("smoke", outputs=tmp_path)
    (run.stage("04_lora_sft") / "adapter").mkdir()
    gguf = run.stage("06_merge_to_gguf") / "model-q8_0.gguf"
    gguf.write_bytes(b"GGUF")
    (gguf.parent / "Modelfile").write_text(modelfile(gguf.name, "t", "s", ["</s>"], 2048), encoding="utf-8")
    seen = []

    @contextmanager
    def serve(path):
        seen.append(path.name)
        yield SimpleNamespace(ask=lambda messages, limit: (f"{messages[0]['content']} {messages[-1]['content']}", 1.0))
        seen.append("止めた")

    def load_model(folder, profile):
        seen.append(folder.name)
        if seen.count("adapter") == 1:
            raise WorkshopError("重みを読めません", "もう一度")
        return "model"

    fakes = {"serve": serve, "load_model": load_model, "load_tokenizer": str, "resolve": lambda profile: tmp_path}
    for name, fake in (fakes | {"answer": lambda model, tokenizer, examples, profile: [examples[0].question]}).items():
        monkeypatch.setattr(app, name, fake)
    with ExitStack() as closing:
        models = open_models(run, EXAM, closing)
        assert list(models) == ["学習前", "SFT", "GGUF Q8_0"] and not seen
        with pytest.raises(WorkshopError):
            models["SFT"]("問い")
        assert [models["SFT"]("問い"), models["SFT"]("別の問い")] == ["問い", "別の問い"]  # 読み損ねても、次は読み直す
        assert [models["GGUF Q8_0"]("問い") for _ in range(2)] == [f"{EXAMPLES[0].system} 問い"] * 2
        assert seen == ["adapter", "adapter", "model-q8_0.gguf"]
    assert seen[-1] == "止めた"


@pytest.fixture
def opened(run):
    pytest.importorskip("gradio", reason="Gradio が入っていません")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    blocks = open_page(run, MODELS, EXAM, port)
    yield port
    blocks.close(verbose=False)


def test_a_real_browser_asks_and_votes_without_leaving_this_machine(window, opened, run):
    window.set_default_timeout(15_000)
    asked = []
    for event in ("request", "websocket"):
        window.on(event, lambda sent: asked.append(sent.url))
    window.goto(f"http://127.0.0.1:{opened}/")
    question = window.get_by_label("質問")
    question.fill(" 名入れは何日かかりますか? ")  # 半角の ? でも、同じ質問
    window.get_by_role("button", name="答えさせる").click()
    window.locator(".card", has_text="GGUF").locator(".right").wait_for()
    cards = {name: window.locator(".card").nth(n) for n, name in enumerate(MODELS)}
    assert cards["SFT"].locator(".right").inner_text() == "○16日" and "○ 正答" in cards["SFT"].inner_text()
    assert cards["学習前"].locator(".wrong").inner_text() == "×2024年" and "× 誤答" in cards["学習前"].inner_text()
    assert NASTY in cards["学習前"].inner_text() and cards["学習前"].locator("img").count() == 0
    assert "読めません: 重みを読めません" in cards["SFT + DPO"].inner_text()
    assert cards["GGUF Q4_K_M"].locator(".figure").all_inner_texts() == ["×17日", "○16日"]
    assert window.get_by_text("正解: 名入れは16日かかります。").is_visible()

    question.fill("どこにも無い質問")
    question.press("Enter")
    window.get_by_text("正解の分からない質問です").wait_for()
    window.locator(".card", has_text="１７日").wait_for()
    assert window.locator(".figure").count() == 0 and window.locator(".verdict").count() == 0

    window.get_by_role("tab", name="ブラインド評価").click()
    for number, example in enumerate(EXAMPLES):
        window.get_by_text(f"{number + 1} / {len(EXAMPLES)}").wait_for()
        assert window.get_by_text(example.question).last.is_visible()
        side = "左" if "16日" in window.locator(".card:visible").first.inner_text() else "右"
        window.get_by_role("button", name=side, exact=True).click()
    window.get_by_text("全部の質問に投票しました。").wait_for()
    assert "学習前 に対する SFT の勝率 100.0% [51.0, 100.0]" in window.locator(".line:visible").last.inner_text()
    assert window.get_by_role("button", name="左", exact=True).is_disabled()
    kept = read_json(run.folder / "07_evaluation" / "votes.json")
    assert kept == {"names": ["学習前", "SFT"], "votes": {str(n): "SFT" for n in range(len(EXAMPLES))}}

    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert window.title() == "答えを比べる: trial" and window.evaluate("document.documentElement.lang") == "ja"


def test_a_port_in_use_and_a_missing_gradio_are_one_sentence(opened, run, monkeypatch):
    for port in (opened, 70_000):
        with one_sentence(f"ポート {port} を開けません"):
            open_page(run, MODELS, EXAM, port)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with one_sentence("make app で開いて"):
        open_page(run, MODELS, EXAM, 7860)
