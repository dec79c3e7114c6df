"""触って試す部品: 中身の計算が本物と同じこと、画面の無いときは何も出さないこと、文字を逃がすこと。"""

import inspect
import re
from functools import partial

import nbformat
import pandas as pd
import pytest
import torch
from conftest import from_notebook
from ipywidgets import FloatLogSlider, Text
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

import lib.show.widgets
from lib.data.facts import make_split
from lib.files import REPOSITORY
from lib.model.load import count_parameters, load_tokenizer
from lib.profiles import get_profile
from lib.show.plots import curve, picture
from lib.show.widgets import TIE, Ballot, sliders
from lib.train.trainers import encode_pair

lora_parameters = from_notebook("01_concepts", "lora_parameters").lora_parameters
pieces = from_notebook("02_dataset", "pieces").pieces
learning_rates = from_notebook("04_lora_sft", "learning_rates").learning_rates
smallest_fit = from_notebook("06_merge_to_gguf", "smallest_fit").smallest_fit
side_by_side = from_notebook("07_evaluation", "side_by_side").side_by_side
NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture
def screen(monkeypatch):
    """画面のある実行。"""
    monkeypatch.delenv("WORKSHOP_HEADLESS", raising=False)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj", "down_proj", "up_proj"]])
def test_lora_is_counted_as_peft_counts_it(targets):
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                 num_key_value_heads=2, vocab_size=64)  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape)).requires_grad_(False)
    ours = [lora_parameters(model, targets, rank) for rank in (1, 5)]
    assert ours[1] == 5 * ours[0] > 0
    assert ours[1] == count_parameters(inject_adapter_in_model(LoraConfig(r=5, target_modules=targets), model))[0]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant_with_warmup"])
@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 25), (0.0, 7), (3, 10), (0.5, 1)])
def test_the_rates_are_those_of_the_trainer(kind, warmup, steps, tmp_path):
    args = TrainingArguments(str(tmp_path), lr_scheduler_type=kind, warmup_steps=warmup, learning_rate=2e-3,
                             report_to="none", use_cpu=True)  # fmt: skip
    trainer = Trainer(torch.nn.Linear(1, 1), args)
    trainer.create_optimizer_and_scheduler(steps)
    real = []
    for _ in range(steps):
        real.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    rows = learning_rates(kind, 2e-3, warmup, steps)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert [row["learning_rate"] for row in rows] == pytest.approx(real, abs=1e-12)


def test_pieces_hold_every_id_and_every_character_once_and_a_split_character_in_one_colour(model_folder):
    tokenizer = load_tokenizer(model_folder)
    for text in ("名入れは何日？", "Gift 🎁 wrapping\n3日", "髙﨑", "", "  二つの空白", "髙"):
        found = pieces(tokenizer, text)
        assert [number for _, number, _ in found] == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(piece for piece, _, _ in found if piece != "…") == text
        assert not found or not found[0][2]
    assert len(found) > 1 and found[0][0] == "髙" and all(piece == "…" and on for piece, _, on in found[1:])
    page = picture("token_boxes.html", pieces=found, caption="説明").data
    assert page.count("#cfe8ff") == len(found) and str(found[0][1]) in page


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_the_strings_and_labels_that_02_shows_are_those_that_are_trained(model_folder, lang):
    tokenizer, row = load_tokenizer(model_folder), make_split(get_profile("smoke"), lang).train[0].sft_row()
    shown = from_notebook("02_dataset", "to_tokens", "coloured", tokenizer=tokenizer)
    prompt, reply = encode_pair(tokenizer, {**row, "chosen": row["completion"]}, "chosen")
    assert shown.to_tokens(row) == {"input_ids": prompt + reply, "labels": [-100] * len(prompt) + reply}
    said = row["prompt"] + row["completion"]
    found = shown.coloured(said)
    assert "".join(text for text, _ in found) == tokenizer.decode(prompt + reply)
    assert [pair for pair in found if pair[1] != "mark"] == [(turn["content"], turn["role"]) for turn in said]


def test_the_smallest_that_fits_is_chosen():
    sizes = {"F16": (200.0, 0.0, 0.0), "Q8": (100.0, 0.01, 0.0), "Q4": (60.0, 0.08, 0.0), "Q2": (40.0, 0.01, 0.2)}
    table = pd.DataFrame(sizes, index=["megabytes", "kl", "lost"]).to_dict()
    asked = [(300, 0.02, 0.1), (300, 0.1, 0.1), (300, 0.02, 0.5), (50, 0.02, 0.1), (300, 0.0, 0.1)]
    assert [smallest_fit(table, *limits) for limits in asked] == ["Q8", "Q4", "Q2", None, "F16"]


def test_kept_answers_stand_side_by_side_as_plain_text():
    row = {"part": "near", "question": NASTY, "reference": "16日です。"}
    results = {"学習前": [{**row, "answer": NASTY, "correct": False}]}
    results["SFT"] = [{**row, "answer": "16日です。", "correct": True}]
    ((name, found),) = side_by_side(results, {"near": "言い換え"}).items()
    assert name == f"言い換え: {NASTY}" and found["answers"] == [("学習前", NASTY, False), ("SFT", "16日です。", True)]
    page = picture("chat.html", **found).data
    assert "<img" not in page and page.count("&lt;img") == 2 and page.index("学習前 ✗ 誤答") < page.index("SFT ✓ 正答")
    assert "<br><mark>16日</mark>です。" in page  # 採点が読んだ数値
    assert "<img" not in picture("token_boxes.html", pieces=[(NASTY, 1, False)], caption=NASTY).data
    with pytest.raises(AssertionError, match="並び"):
        side_by_side({**results, "DPO": [{**results["SFT"][0], "question": "別の質問"}]}, {"near": "言い換え"})


def table(rank=4, ratio=0.5, rate=1e-3, model="a", text="字"):
    return pd.DataFrame({"値": [f"{rank}/{ratio:.2f}/{rate:.0e}/{model}/{text}"]})


CONTROLS = {"rank": (1, 9), "ratio": (0.0, 1.0, 0.01), "model": ["a", "b"]}
RATE = partial(FloatLogSlider, min=-5, max=-2)


def line(peak=1e-3):
    return curve(learning_rates("cosine", peak, 0.1, 5), ["learning_rate"], "学習率")


def test_every_control_redraws_the_view(screen):
    *parts, page = sliders(table, **CONTROLS, rate=RATE, text=partial(Text, placeholder="書く")).children
    assert "4/0.50/1e-03/a/字" in page.value
    for part, value in zip(parts, (9, 1.0, "b", 1e-2, NASTY), strict=True):
        part.value = value
    assert "9/1.00/1e-02/b/&lt;img" in page.value and "<img" not in page.value
    assert [type(part).__name__ for part in parts] == ["IntSlider", "FloatSlider", "Dropdown", "FloatLogSlider", "Text"]
    assert parts[1].step == 0.01 and parts[4].placeholder == "書く"
    slider, page = sliders(line, peak=RATE).children  # 図も、頁に描かれる
    before = page.value
    slider.value = 1e-2
    assert curve([{"step": 1, "loss": 2.0}], ["loss", "eval_loss"], "最初の評価の前")
    assert page.value.startswith('<img alt="図" src="data:image/png') and page.value != before


def test_votes_are_blind_kept_and_counted(tmp_path, screen):
    """票は失われず、左右は行ごとに替わり、引き分けは勝率に入らない。"""
    win_rate = from_notebook("07_evaluation", "win_rate").win_rate
    rows = [(f"問い{n}", "前の答え", NASTY) for n in range(40)]
    ballot = Ballot(("学習前", "SFT"), rows, tmp_path / "votes.json")
    assert {ballot.sides(n)[0] for n in range(40)} == {"前の答え", NASTY}  # いつも同じ側に置かない
    while (number := ballot.next()) is not None and number < 30:
        ballot.vote(number, "左" if ballot.sides(number)[0] == NASTY else "右")
    again = Ballot(("学習前", "SFT"), rows, tmp_path / "votes.json")  # 途中で閉じても、続きから
    assert again.next() == 30 and set(again.votes.values()) == {"SFT"}
    assert "SFT の勝率 100.0% [88" in win_rate(again)
    again.vote(30, TIE)
    assert win_rate(again) == win_rate(ballot)
    buttons, page = from_notebook("07_evaluation", "poll", "vote", ballot=again).vote.children
    assert "32/40" in page.value and "<img" not in page.value and "&lt;img" in page.value and "SFT" not in page.value
    left = again.sides(31)[0]
    for number in range(31, 40):
        buttons.value = "左"  # 同じ側を続けて押しても、一票ずつ
        assert len(again.votes) == number + 1 and buttons.value is None
    assert again.votes["31"] == ("SFT" if left == NASTY else "学習前") and "終わりました" in page.value
    buttons.value = "左"  # 終わった後に押しても、何も起きない
    assert len(again.votes) == 40 and again.next() is None


def test_without_a_screen_there_is_no_widget(monkeypatch):
    monkeypatch.setenv("WORKSHOP_HEADLESS", "1")
    assert sliders(table, **CONTROLS) is None
    source = inspect.getsource(lib.show.widgets)
    assert "ipywidgets.Output" not in source and "interact(" not in source


def test_every_widget_in_a_notebook_has_a_static_view():
    """スライダーの前のセルに、初めの値の表や図がある（HTML で読む人にも、何の話かが分かる）。"""
    seen = 0
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        for cell in (c for c in code if re.search(r"^(\w+ = )?sliders\(", c, re.M)):
            shown = cell.split("sliders(")[1].split(",")[0]
            seen += 1
            assert shown == "mask" or any(c.rstrip().endswith(f"{shown}()") for c in code), (path.name, shown)
    assert seen >= 7
