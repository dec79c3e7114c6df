"""走らせる前の検査: どの検査にも、止めるべき例と、止めてはいけない例がある。"""

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from conftest import from_notebook, one_sentence
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny import lora, losses_of, make_trainer
from trl import DPOTrainer

from lib.files import read_json, write_json
from lib.model.load import load_model, load_tokenizer, mismatches
from lib.profiles import get_profile
from lib.run import open_run
from lib.train import preflight as check
from lib.train.preflight import Finding, collated, require, supervision
from lib.train.trainers import AnswerOnlyTrainer
from lib.train.watch import LossMonitor

before_conversion = from_notebook("06_merge_to_gguf", "embedding_rows", "before_conversion").before_conversion
PROFILE = get_profile("embedded")
SYSTEM = {"role": "system", "content": "店の窓口です。"}


def row(number, question=None):
    asked = {"role": "user", "content": question or f"品物{number}の値段は？"}
    return {"prompt": [SYSTEM, asked], "completion": [{"role": "assistant", "content": f"{number * 100}円です。"}]}


ROWS = [row(number) for number in range(1, 6)]


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    return SimpleNamespace(folder=tiny_llama, tokenizer=load_tokenizer(tiny_llama))


def base(tiny, *targets, **more):
    """乱数のモデル。対象を渡すと、LoRA を付ける。"""
    model = load_model(tiny.folder, PROFILE)
    return get_peft_model(model, lora(target_modules=list(targets), **more)) if targets else model


def adapted(tiny):
    return get_peft_model(base(tiny), lora())


def trainer_of(tiny, folder, rows=ROWS, watched=True, adapter=None, **settings):
    monitor = [LossMonitor("試し")] if watched else []
    kind, settings = AnswerOnlyTrainer if "completion" in rows[0] else DPOTrainer, {"max_length": 256, **settings}
    return make_trainer(tiny.folder, folder, rows, kind, adapter or lora(), monitor, **settings)


@pytest.fixture(scope="module")
def trainer(tiny, tmp_path_factory):
    return trainer_of(tiny, tmp_path_factory.mktemp("trainer"))


def levels(findings):
    return {finding.check: finding.level for finding in findings}


def named(name, findings):
    return next(finding for finding in findings if finding.check == name)


def test_a_sound_training_passes_every_check_in_five_seconds(tiny, trainer, tmp_path, capsys):
    start = time.monotonic()
    found = check.before_training(trainer, ROWS, ["返品の期限は？"])
    assert time.monotonic() - start < 5
    assert set(levels(found).values()) == {"ok"} and len(found) == 11, found
    require(found)
    assert len(capsys.readouterr().out.splitlines()) == len(found)
    assert all(p.grad is None for p in trainer.model.parameters()) and not trainer._metrics["train"]
    # 選好の学習も、同じように読む
    rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": ROWS[0]["completion"]} for r in ROWS[1:]]
    found = levels(check.before_training(trainer_of(tiny, tmp_path, rows, watched=False), rows))
    assert found.pop("損失の見張り") == "warning" and set(found.values()) == {"ok"}, found


def test_a_fatal_finding_stops_in_one_sentence_and_a_warning_does_not(capsys):
    require([Finding("長さ", "warning", "長い", "短くする")])
    with one_sentence("EOS: 0 個", "足してください"):
        require([Finding("語彙", "ok", "合う"), Finding("EOS", "fatal", "0 個", "足してください")])
    out = capsys.readouterr().out
    assert "⚠ 長さ: 長い → 短くする" in out and "✓ 語彙: 合う" in out


# 一つずつ: (名前, 問題のある例, 問題の無い例)。どちらも (tiny, 作業フォルダ, 良い Trainer) から Finding を作る。
# 問題の無い例が None なら、良い Trainer の、同じ名前の検査。
def adapter(tiny, folder, change=None):
    adapted(tiny).save_pretrained(folder)
    if change:
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)
    return check.adapter_shape(folder, base(tiny))


def more_words(tensors):
    """資料の失敗: 学習のときだけ語彙を 4 つ足した埋め込みが、アダプタに入っている。"""
    return {**tensors, "base_model.model.model.embed_tokens.weight": torch.zeros(49156, 64)}


def deeper(tensors):
    """もっと層の多いベースから作ったアダプタ。PEFT は 9 層目を黙って捨てる。"""
    name, value = next(iter(tensors.items()))
    return {**tensors, name.replace("layers.0", "layers.9"): value.clone()}


def saved(tiny, folder, vocab_size):
    shutil.copytree(tiny.folder, folder, dirs_exist_ok=True)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "vocab_size": vocab_size})
    return before_conversion(folder, tiny.tokenizer)[1]


def supervised(trainer, name, **changes):
    """Trainer の部品を替えて、その検査をする。"""
    parts = {key: getattr(trainer, key) for key in ("train_dataset", "data_collator", "processing_class")}
    fake = SimpleNamespace(**{**parts, **changes})
    return named(name, supervision(fake.processing_class, list(collated(fake, ROWS))))


def without_eos(trainer, rows):
    """pad と eos が同じとき、パディングと一緒に EOS まで損失から外す古い collator と同じふるまい。"""
    batch = trainer.data_collator(rows)
    batch["labels"].masked_fill_(batch["input_ids"] == trainer.processing_class.eos_token_id, -100)
    return batch


def relabelled(trainer, name, change):
    """学習データの列を作り直して、その検査をする。change は、(トークン, ラベル) → 新しい (トークン, ラベル)。"""

    def both(row):
        return dict(zip(("input_ids", "labels"), change(row["input_ids"], row["labels"]), strict=True))

    return supervised(trainer, name, train_dataset=trainer.train_dataset.map(both))


def cut_short(tiny, folder, trainer):
    """どの例も、答えの終わりだけが落ちる長さ。"""
    length = min(len(row["input_ids"]) for row in trainer.train_dataset) - 3
    return supervised(trainer_of(tiny, folder, max_length=length), "切り詰め")


def vanished(tiny, folder, trainer):
    """質問だけで max_length を使い切ると、TRL はその例を黙って捨てる。"""
    long = [row(1, "長い話。" * 80), *ROWS[1:]]
    return named("切り詰め", check.before_training(trainer_of(tiny, folder, long, max_length=64), long))


def other_template(tiny):
    """学習のあとで、生成に使うトークナイザのテンプレートだけが替わった。"""
    tokenizer = load_tokenizer(tiny.folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>assistant", "<|im_start|>bot")
    return tokenizer


def quantized_base(tiny):
    model = base(tiny)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter((layer.weight * 100).to(torch.int8), requires_grad=False)
    return check.quantized(model)


def broken_loss(trainer, value):
    parts = ("model", "train_dataset", "data_collator", "_prepare_inputs")
    fake = SimpleNamespace(**{name: getattr(trainer, name) for name in parts})
    fake.compute_loss = lambda model, batch: value(trainer.compute_loss(model, batch))
    return check.first_step(fake)


def tied(tiny, *targets, **more):
    return check.tied_embeddings(base(tiny, *targets, **more))


same_logits = from_notebook("A3_failure_lab", "same_logits").same_logits
LOGITS = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
TEMPLATE, BOS = "テンプレート（学習と生成）", "先頭の BOS（学習と生成）"
CASES = [
    ("vocabulary-of-adapter", lambda t, f, g: adapter(t, f, more_words), lambda t, f, g: adapter(t, f)),
    ("deeper-base", lambda t, f, g: adapter(t, f, deeper), lambda t, f, g: adapter(t, f)),
    ("too-few-rows", lambda t, f, g: check.vocabulary(49148, 49148, t.tokenizer),
     lambda t, f, g: check.vocabulary(49152, 49152, t.tokenizer)),
    ("config-differs", lambda t, f, g: saved(t, f, 49156), lambda t, f, g: saved(t, f, 49152)),
    ("truncated", cut_short, None),
    ("dropped", vanished, None),
    ("eos-lost", lambda t, f, g: supervised(g, "EOS", data_collator=partial(without_eos, g)), None),
    ("bos-twice", lambda t, f, g: relabelled(g, BOS, lambda ids, labels: ([ids[0], *ids], [-100, *labels])), None),
    ("template-differs", lambda t, f, g: supervised(g, TEMPLATE, processing_class=other_template(t)), None),
    ("loss-on-prompt", lambda t, f, g: supervised(trainer_of(t, f, completion_only_loss=False), "損失の範囲"), None),
    ("nothing-counted", lambda t, f, g: relabelled(g, "損失の範囲", lambda ids, _: (ids, [-100] * len(ids))), None),
    ("tied-embedding", lambda t, f, g: tied(t, "q_proj", "embed_tokens"), lambda t, f, g: tied(t, "q_proj")),
    ("tied-head", lambda t, f, g: tied(t, "q_proj", modules_to_save=["lm_head"]), lambda t, f, g: tied(t, "up_proj")),
    ("quantized-base", lambda t, f, g: quantized_base(t), lambda t, f, g: check.quantized(base(t))),
    ("merge-changes", lambda t, f, g: same_logits("マージ", LOGITS, LOGITS.flip(1)),
     lambda t, f, g: same_logits("マージ", LOGITS, LOGITS + 1e-5)),
    ("no-gradient", lambda t, f, g: broken_loss(g, torch.detach), None),
    ("nan-loss", lambda t, f, g: broken_loss(g, lambda loss: loss * float("nan")), None),
    ("leak", lambda t, f, g: check.leaks(["送料は？"], ["送料は?"]), None),
    ("fp16", lambda t, f, g: check.precision(adapted(t).half()), None),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "good"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_check_trips_on_the_bad_case_and_not_on_the_good_one(tiny, trainer, tmp_path, bad, good):
    wrong = bad(tiny, tmp_path / "bad", trainer)
    sound = [] if good else check.before_training(trainer, ROWS, ["返品の期限は？"])
    right = good(tiny, tmp_path / "good", trainer) if good else named(wrong.check, sound)
    assert wrong.level == "fatal" and wrong.remedy and wrong.found, wrong
    assert right.level == "ok" and not right.remedy and wrong.check == right.check, right


def test_an_edited_artefact_stops_and_an_unrecorded_one_is_told(tiny, tmp_path):
    with open_run("smoke", "m", outputs=tmp_path).making(tmp_path / "merged") as work:
        shutil.copytree(tiny.folder, work, dirs_exist_ok=True)
    assert set(levels(before_conversion(tmp_path / "merged", tiny.tokenizer)).values()) == {"ok"}
    (tmp_path / "merged" / "tokenizer_config.json").write_text("{}")
    with one_sentence("壊れて"):
        before_conversion(tmp_path / "merged", tiny.tokenizer)
    (tmp_path / "merged" / "manifest.json").unlink()
    assert before_conversion(tmp_path / "merged", tiny.tokenizer)[0].level == "warning"


def test_bf16_on_a_card_without_it_is_fatal(monkeypatch):
    card = SimpleNamespace(dtype=torch.bfloat16, device=SimpleNamespace(type="cuda"), requires_grad=False)
    model = SimpleNamespace(parameters=lambda: [card])
    for has, level in ((False, "fatal"), (True, "ok")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert check.precision(model).level == level


def test_an_adapter_never_loads_on_another_base(tiny, tmp_path, monkeypatch):
    """同じ形でも中身の違うベース、書き換えられたアダプタ、層の合わないアダプタを、読み込みが止める。"""
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tiny.folder))
    local, place = replace(PROFILE, sources=("local",)), tmp_path / "adapter"
    with open_run("smoke", "a", outputs=tmp_path).making(place) as work:
        adapted(tiny).save_pretrained(work)
    load_model(place, local)
    record = read_json(place / "manifest.json")
    assert record["base"] and record["versions"]["torch"] and record["sha256"]["adapter_model.safetensors"]

    twin = shutil.copytree(tiny.folder, tmp_path / "twin") / "model.safetensors"
    twin.write_bytes(twin.read_bytes()[:-4] + b"\0\0\0\0")
    with monkeypatch.context() as other, one_sentence("別の重み"):
        other.setenv("WORKSHOP_MODEL_DIR", str(twin.parent))
        load_model(place, local)
    for name, text, said in (("adapter_config.json", "{}", "壊れて"), ("manifest.json", "[]", "manifest.json")):
        (place / name).write_text(text)
        with one_sentence(said):
            load_model(place, local)

    adapter(tiny, tmp_path / "deep", deeper)
    assert len(mismatches(tmp_path / "deep", base(tiny))) == 1
    with one_sentence("layers.9"):
        load_model(tmp_path / "deep", local)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think"])
def test_a_thinking_template_trains_what_generation_reads(tiny_copy, tmp_path, name):
    """TRL は、考える形で質問を書く。読んだときにそろえないと、空の <think> まで答えとして学ぶ。"""
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    (tiny_copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    trainer = make_trainer(tiny_copy, tmp_path / "out", ROWS, adapter=lora(), max_length=256)
    assert [str(found) for found in check.before_training(trainer, ROWS) if found.level == "fatal"] == []
    trainer.processing_class.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").chat_template == trainer.processing_class.chat_template


def test_checking_first_does_not_change_the_training(tiny, tmp_path):
    losses = []
    for checked in (False, True):
        torch.manual_seed(0)
        settings = {"max_steps": 3, "learning_rate": 1e-2, "seed": 0, "save_strategy": "no"}
        trainer = trainer_of(tiny, tmp_path, adapter=lora(lora_dropout=0.1), **settings)
        if checked:
            check.before_training(trainer, ROWS)
        trainer.train()
        losses.append(list(losses_of(trainer).values()))
    assert losses[0] == losses[1] and len(set(losses[0])) > 1
