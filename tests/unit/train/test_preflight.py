"""走らせる前の検査: どの検査にも、止めるべき例と、止めてはいけない例がある。"""

import json
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig

from lib.errors import WorkshopError
from lib.export.serve import modelfile
from lib.model.load import load_model, load_tokenizer, mismatches
from lib.profiles import get_profile
from lib.run import open_run
from lib.train import preflight as check
from lib.train.preflight import Finding, collated, ollama_prompt, require, same_bos, same_tokens, supervision
from lib.train.trainers import AnswerOnlyTrainer
from lib.train.watch import LossMonitor

CHATML = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
SYSTEM = {"role": "system", "content": "店の窓口です。"}
ROWS = [
    {"prompt": [SYSTEM, {"role": "user", "content": f"品物{n}の値段は？"}],
     "completion": [{"role": "assistant", "content": f"{n * 100}円です。"}]} for n in range(1, 6)
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    return SimpleNamespace(folder=tiny_llama, tokenizer=load_tokenizer(tiny_llama))


def base(tiny, **lora):
    model = load_model(tiny.folder, get_profile("embedded"))
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **lora)) if lora else model


def trainer_of(tiny, folder, rows=ROWS, lora=None, **settings):
    arguments = {"max_length": 256, "activation_checkpointing": False, **settings}
    config = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **arguments)
    monitor = LossMonitor(open_run("smoke", "r", outputs=folder), "試し")
    return AnswerOnlyTrainer(
        model=str(tiny.folder), args=config, train_dataset=Dataset.from_list(rows), processing_class=tiny.tokenizer,
        peft_config=lora or LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"), callbacks=[monitor],
    )  # fmt: skip


@pytest.fixture(scope="module")
def trainer(tiny, tmp_path_factory):
    return trainer_of(tiny, tmp_path_factory.mktemp("trainer"))


def levels(findings):
    return {finding.check: finding.level for finding in findings}


def test_a_sound_training_passes_every_check_in_five_seconds(trainer, capsys):
    start = time.monotonic()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    found = check.before_training(trainer, ROWS, ["返品の期限は？"])
    assert time.monotonic() - start < 5
    assert set(levels(found).values()) == {"ok"}, found
    assert len(found) == 11
    require(found)
    assert len(capsys.readouterr().out.splitlines()) == len(found)
    # 調べても、学習は何も変わらない
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(p.grad is None for p in trainer.model.parameters()) and not trainer._metrics["train"]


def test_a_preference_training_is_read_the_same_way(tiny, tmp_path):
    rows = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": ROWS[0]["completion"]} for r in ROWS[1:]]
    config = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=256,
                       activation_checkpointing=False)  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    dpo = DPOTrainer(model=str(tiny.folder), args=config, train_dataset=Dataset.from_list(rows),
                     processing_class=tiny.tokenizer, peft_config=lora)  # fmt: skip
    found = levels(check.before_training(dpo, rows))
    assert found.pop("損失の見張り") == "warning" and set(found.values()) == {"ok"}, found


def test_a_fatal_finding_stops_in_one_sentence_and_a_warning_does_not(capsys):
    require([Finding("長さ", "warning", "長い", "短くする")])
    with pytest.raises(WorkshopError, match="EOS: 0 個.*足してください"):
        require([Finding("語彙", "ok", "合う"), Finding("EOS", "fatal", "0 個", "足してください")])
    out = capsys.readouterr().out
    assert "⚠ 長さ: 長い → 短くする" in out and "✓ 語彙: 合う" in out


# 一つずつ: (名前, 問題のある例, 問題の無い例)。どちらも (tiny, 作業フォルダ, 良い Trainer) から Finding を作る。
def adapter(tiny, folder, change=None):
    model = base(tiny, target_modules="all-linear")
    model.save_pretrained(folder)
    if change:
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    return check.adapter_shape(folder, base(tiny))


def more_words(tensors):
    """資料の失敗: 学習のときだけ語彙を 4 つ足した埋め込みが、アダプタに入っている。"""
    return {**tensors, "base_model.model.model.embed_tokens.weight": torch.zeros(49156, 64)}


def deeper(tensors):
    """もっと層の多いベースから作ったアダプタ。PEFT は 9 層目を黙って捨てる。"""
    first = next(iter(tensors))
    return {**tensors, first.replace("layers.0", "layers.9"): tensors[first].clone()}


def saved(tiny, folder, vocab_size):
    shutil.copytree(tiny.folder, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": vocab_size}))
    return check.before_conversion(folder, tiny.tokenizer)[1]


def supervised(trainer, name, dropped=0):
    return next(
        f for f in supervision(trainer.processing_class, list(collated(trainer, ROWS)), dropped) if f.check == name
    )


def masking_collator(tiny):
    """pad と eos が同じとき、詰め物と一緒に EOS まで損失から外す古い collator と同じふるまい。"""
    plain = DataCollatorForLanguageModeling(tiny.tokenizer, mlm=False)

    def collate(rows):
        batch = plain([{"input_ids": row["input_ids"]} for row in rows])
        labels = torch.full_like(batch["input_ids"], -100)
        for number, row in enumerate(rows):
            labels[number, : len(row["labels"])] = torch.tensor(row["labels"])
        batch["labels"] = labels.masked_fill(batch["input_ids"] == tiny.tokenizer.eos_token_id, -100)
        return batch

    return collate


def changed(trainer, name, **values):
    """Trainer の部品を一つだけ替えて、その検査をする。"""
    fake = SimpleNamespace(
        train_dataset=trainer.train_dataset, data_collator=trainer.data_collator,
        processing_class=trainer.processing_class,
    )  # fmt: skip
    return supervised(SimpleNamespace(**{**vars(fake), **values}), name)


def mapped(trainer, change):
    return trainer.train_dataset.map(lambda row: dict(zip(("input_ids", "labels"), change(row), strict=True)))


def extra_bos(trainer):
    bos = trainer.processing_class.bos_token_id
    return mapped(trainer, lambda row: ([bos, *row["input_ids"]], [-100, *row["labels"]]))


def short(trainer):
    """どの例も、答えの終わりだけが落ちる長さ。"""
    return min(len(row["input_ids"]) for row in trainer.train_dataset) - 3


def nothing_counted(trainer):
    return mapped(trainer, lambda row: (row["input_ids"], [-100] * len(row["labels"])))


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
    return SimpleNamespace(
        model=trainer.model, train_dataset=trainer.train_dataset, data_collator=trainer.data_collator,
        _prepare_inputs=trainer._prepare_inputs,
        compute_loss=lambda model, batch: value(trainer.compute_loss(model, batch)),
    )  # fmt: skip


def half(model):
    for p in model.parameters():
        p.data = p.data.half() if p.requires_grad else p.data
    return check.precision(model)


def kept(tiny, folder, change=False):
    with open_run("smoke", "m", outputs=folder).making(folder / "merged") as work:
        shutil.copytree(tiny.folder, work, dirs_exist_ok=True)
    if change:
        (folder / "merged" / "tokenizer_config.json").write_text("{}")
    return check.before_conversion(folder / "merged", tiny.tokenizer)[0]


def callbacks(*found):
    return check.watched(SimpleNamespace(callback_handler=SimpleNamespace(callbacks=list(found))))


HELLO = [SYSTEM, {"role": "user", "content": "はい？"}]
LOGITS = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
CASES = [
    ("vocabulary-of-adapter", lambda t, f, g: adapter(t, f, more_words), lambda t, f, g: adapter(t, f)),
    ("deeper-base", lambda t, f, g: adapter(t, f, deeper), lambda t, f, g: adapter(t, f)),
    ("too-few-rows", lambda t, f, g: check.vocabulary(49148, 49148, t.tokenizer),
     lambda t, f, g: check.vocabulary(49152, 49152, t.tokenizer)),
    ("config-differs", lambda t, f, g: saved(t, f, 49156), lambda t, f, g: saved(t, f, 49152)),
    ("truncated", lambda t, f, g: supervised(trainer_of(t, f, max_length=short(g)), "切り詰め"),
     lambda t, f, g: supervised(g, "切り詰め")),
    ("dropped", lambda t, f, g: supervision(t.tokenizer, [], 5)[0], lambda t, f, g: supervised(g, "切り詰め")),
    ("eos-lost", lambda t, f, g: changed(g, "EOS", data_collator=masking_collator(t)),
     lambda t, f, g: changed(g, "EOS")),
    ("bos-twice", lambda t, f, g: changed(g, "先頭の BOS（学習と生成）", train_dataset=extra_bos(g)),
     lambda t, f, g: changed(g, "先頭の BOS（学習と生成）")),
    ("template-differs", lambda t, f, g: changed(g, "テンプレート（学習と生成）", processing_class=other_template(t)),
     lambda t, f, g: changed(g, "テンプレート（学習と生成）")),
    ("loss-on-prompt", lambda t, f, g: supervised(trainer_of(t, f, completion_only_loss=False), "損失の範囲"),
     lambda t, f, g: supervised(g, "損失の範囲")),
    ("nothing-counted",
     lambda t, f, g: changed(g, "損失の範囲", train_dataset=nothing_counted(g)),
     lambda t, f, g: changed(g, "損失の範囲")),
    ("tied-embedding", lambda t, f, g: check.tied_embeddings(base(t, target_modules=["q_proj", "embed_tokens"])),
     lambda t, f, g: check.tied_embeddings(base(t, target_modules=["q_proj"]))),
    ("tied-head",
     lambda t, f, g: check.tied_embeddings(base(t, target_modules=["q_proj"], modules_to_save=["lm_head"])),
     lambda t, f, g: check.tied_embeddings(base(t, target_modules="all-linear"))),
    ("quantized-base", lambda t, f, g: quantized_base(t), lambda t, f, g: check.quantized(base(t))),
    ("merge-changes", lambda t, f, g: check.same_logits("マージ", LOGITS, LOGITS.flip(1)),
     lambda t, f, g: check.same_logits("マージ", LOGITS, LOGITS + 1e-5)),
    ("no-gradient", lambda t, f, g: check.first_step(broken_loss(g, lambda loss: loss.detach())),
     lambda t, f, g: check.first_step(g)),
    ("nan-loss", lambda t, f, g: check.first_step(broken_loss(g, lambda loss: loss * float("nan"))),
     lambda t, f, g: check.first_step(g)),
    ("unwatched", lambda t, f, g: callbacks(TrainerCallback()), lambda t, f, g: check.watched(g)),
    ("leak", lambda t, f, g: check.leaks(["送料は？"], ["送料は?"]),
     lambda t, f, g: check.leaks(["送料は？"], ["返品の期限は？"])),
    ("fp16", lambda t, f, g: half(base(t, target_modules="all-linear")),
     lambda t, f, g: check.precision(base(t, target_modules="all-linear"))),
    ("edited-artefact", lambda t, f, g: kept(t, f, True), lambda t, f, g: kept(t, f)),
    ("bos-gguf", lambda t, f, g: same_bos("BOS", 1, [[1, 5]], [[1, 1, 5]]),
     lambda t, f, g: same_bos("BOS", 1, [[1, 5]], [[1, 7]])),
    ("template-gguf", lambda t, f, g: same_tokens("テンプレート", [[1, 2]], [[1, 3]]),
     lambda t, f, g: same_tokens("テンプレート", [[1, 2]], [[1, 2]])),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "good"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_check_trips_on_the_bad_case_and_not_on_the_good_one(tiny, trainer, tmp_path, bad, good):
    (tmp_path / "bad").mkdir()
    (tmp_path / "good").mkdir()
    wrong, right = bad(tiny, tmp_path / "bad", trainer), good(tiny, tmp_path / "good", trainer)
    assert wrong.level in ("fatal", "warning") and wrong.remedy and wrong.found, wrong
    assert right.level == "ok" and not right.remedy, right
    assert wrong.check == right.check


def test_bf16_on_a_card_without_it_is_fatal(monkeypatch):
    card = SimpleNamespace(dtype=torch.bfloat16, device=SimpleNamespace(type="cuda"), requires_grad=False)
    model = SimpleNamespace(parameters=lambda: [card])
    for has, level in ((False, "fatal"), (True, "ok")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert check.precision(model).level == level


def test_a_whole_dataset_that_vanished_is_fatal(tiny, tmp_path):
    """質問だけで max_length を使い切ると、TRL はその例を黙って捨てる。"""
    long = [{**ROWS[0], "prompt": [SYSTEM, {"role": "user", "content": "長い話。" * 80}]}, *ROWS[1:]]
    found = levels(check.before_training(trainer_of(tiny, tmp_path, long, max_length=64), long))
    assert found["切り詰め"] == "fatal"


def test_the_three_readers_of_a_conversation_agree_or_are_told_apart(tiny, tmp_path):
    from lib.export.gguf import convert_to_f16
    from lib.export.serve import serve

    gguf = convert_to_f16(tiny.folder, tmp_path / "tiny.gguf", "tiny")
    good = modelfile(gguf.name, CHATML, "店の窓口です。", ["<|im_end|>"], 512)
    bad = good.replace("<|im_start|>assistant", "<|im_start|>bot")
    strange = good.replace("{{ range .Messages }}", "{{ range $i, $m := .Messages }}")
    with serve(gguf) as chat:
        found = {
            text: levels(check.after_conversion(chat, tiny.tokenizer, [HELLO], text)) for text in (good, bad, strange)
        }
        other = levels(check.after_conversion(chat, other_template(tiny), [HELLO]))
    assert set(found[good].values()) == {"ok"} and len(found[good]) == 3
    assert (
        found[bad]["テンプレート（Modelfile）"] == "fatal" and found[strange]["テンプレート（Modelfile）"] == "warning"
    )
    assert other["テンプレート（GGUF）"] == "fatal"


def test_a_modelfile_without_a_template_cannot_be_read():
    assert ollama_prompt("FROM ./a.gguf\n", HELLO) is None


def test_an_adapter_never_loads_on_another_base(tiny, tmp_path, monkeypatch):
    """同じ形でも中身の違うベース、書き換えられたアダプタ、層の合わないアダプタを、読み込みが断る。"""
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tiny.folder))
    local = get_profile("cuda").__class__(**{**vars(get_profile("embedded")), "sources": ("local",)})
    with open_run("smoke", "a", outputs=tmp_path).making(tmp_path / "adapter") as work:
        base(tiny, target_modules="all-linear").save_pretrained(work)
    load_model(tmp_path / "adapter", local)
    record = json.loads((tmp_path / "adapter" / "manifest.json").read_text())
    assert record["base"] and record["versions"]["torch"] and record["sha256"]["adapter_model.safetensors"]

    shutil.copytree(tiny.folder, tmp_path / "twin")
    weights = tmp_path / "twin" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tmp_path / "twin"))
    with pytest.raises(WorkshopError, match="別の重み"):
        load_model(tmp_path / "adapter", local)

    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tiny.folder))
    (tmp_path / "adapter" / "adapter_config.json").open("a").write(" ")
    with pytest.raises(WorkshopError, match="壊れて"):
        load_model(tmp_path / "adapter", local)
    (tmp_path / "adapter" / "manifest.json").write_text("[]")
    with pytest.raises(WorkshopError, match="manifest.json"):
        load_model(tmp_path / "adapter", local)

    adapter(tiny, tmp_path / "deep", deeper)
    assert len(mismatches(tmp_path / "deep", base(tiny))) == 1
    with pytest.raises(WorkshopError, match="layers.9"):
        load_model(tmp_path / "deep", local)


def test_checking_first_does_not_change_the_training(tiny, tmp_path):
    losses = []
    for checked in (False, True):
        (tmp_path / str(checked)).mkdir()
        settings = {"max_steps": 3, "logging_steps": 1, "seed": 0, "save_strategy": "no", "disable_tqdm": True}
        torch.manual_seed(0)
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.1, target_modules="all-linear")
        trainer = trainer_of(tiny, tmp_path / str(checked), lora=lora, learning_rate=1e-2, **settings)
        if checked:
            check.before_training(trainer, ROWS)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == losses[1] and len(set(losses[0])) > 1
