"""QLoRA のプロファイル: 学習のときだけベースを 4 bit に縮め、差分は fp32 のまま、縮めないベースにマージする。"""

from dataclasses import replace
from math import log

import pytest
import torch
from conftest import from_notebook, one_sentence
from peft import IA3Config, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny import lora, losses_of, make_trainer
from transformers import BitsAndBytesConfig

from lib import profiles
from lib.data.facts import make_split
from lib.errors import WorkshopError
from lib.files import REPOSITORY, read_json, write_json
from lib.model import load as models
from lib.model.load import load_model
from lib.profiles import get_profile
from lib.run import OUTPUTS
from lib.train.preflight import before_merge, require
from lib.train.trainers import keep_float32

pytest.importorskip("bitsandbytes")


@pytest.fixture
def profile(tiny_llama, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tiny_llama))
    return replace(get_profile("smoke"), sources=("local",), four_bit=True)


def test_only_training_uses_the_small_base(profile, tiny_llama):
    small, plain = load_model(tiny_llama, profile, trainable=True), load_model(tiny_llama, profile)
    assert small.is_loaded_in_4bit and not getattr(plain, "is_loaded_in_4bit", False)
    assert small.get_memory_footprint() < plain.get_memory_footprint()
    shown = from_notebook("A1_methods", "NF4", torch=torch, profile=profile).NF4  # A1 が一行ずつ説明するもの
    assert small.config.quantization_config.to_dict() == BitsAndBytesConfig(**shown).to_dict()


def test_the_difference_stays_float32_and_merges_onto_the_full_base(profile, tiny_llama, tmp_path):
    rows = [example.sft_row() for example in make_split(profile).train[:6]]
    settings = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 5e-3, "save_strategy": "no"}
    model = load_model(tiny_llama, profile, trainable=True)
    trainer = make_trainer(model, tmp_path, rows, adapter=lora(), **settings)
    keep_float32(trainer.model)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    trainer.train()
    first, *_, last = losses_of(trainer).values()
    assert last < first
    adapter = tmp_path / "adapter"
    trainer.model.save_pretrained(adapter)
    put_back = load_model(adapter, profile, trainable=True)  # 05 が、ここから続ける
    assert before_merge(put_back, adapter)[0].level == "ok"
    with one_sentence("マージ先の量子化"):  # 形は合うが、4 bit のベースにはマージできない
        require(before_merge(put_back, adapter))
    require(before_merge(load_model(adapter, profile), adapter))
    base, merged = load_model(tiny_llama, profile), load_model(adapter, profile, merge=True)
    moved = [not torch.equal(a, b) for a, b in zip(base.parameters(), merged.parameters(), strict=True)]
    assert any(moved) and not any(hasattr(module, "quant_state") for module in merged.modules())


@pytest.mark.parametrize("config", [lora(), lora(use_dora=True), IA3Config(task_type="CAUSAL_LM")])
def test_an_adapter_made_on_the_small_base_goes_back_on_it(profile, tiny_llama, tmp_path, config):
    get_peft_model(load_model(tiny_llama, profile, trainable=True), config).save_pretrained(tmp_path)
    before = get_peft_model_state_dict(load_model(tmp_path, profile, trainable=True), save_embedding_layers=False)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert before.keys() == saved.keys() and all(torch.equal(before[name], saved[name]) for name in saved)


def test_a_missing_library_is_one_sentence(profile, tiny_llama, monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(WorkshopError, match="bitsandbytes がありません"):
        load_model(tiny_llama, profile, trainable=True)


def run_cells(stage, **parameters):
    """ノートブックのセルを、`run.finish` まで、このプロセスで上から順に実行する。"""
    space = {"__name__": "__main__"}
    for cell in read_json(REPOSITORY / "notebooks" / f"{stage}.ipynb")["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), stage, "exec"), space)
            space |= parameters if "parameters" in cell["metadata"].get("tags", []) else {}
            if "run.finish(" in "".join(cell["source"]):
                return space
    return space


def test_the_notebooks_train_on_a_four_bit_base(tiny_llama, monkeypatch):
    """PROFILE=colab-qlora の 02・04・05 のセルを、乱数の小さなモデルと CPU で。違うのは、量とデバイスだけ。"""
    small = {"train_facts": 4, "train_forms": 2, "heldout_facts": 2, "sft_epochs": 1, "preference_steps": 2}
    small |= {"device": "cpu", "sources": ("local",), "preference_pairs": 8, "answer_tokens": 4}
    monkeypatch.setitem(profiles.PROFILES, "colab-qlora", replace(profiles.PROFILES["colab-qlora"], **small))
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tiny_llama))
    monkeypatch.setenv("WORKSHOP_HEADLESS", "1")
    monkeypatch.setattr(models, "prepare_cpu", lambda profile, folder: profile)
    monkeypatch.chdir(REPOSITORY / "notebooks")
    given = {"PROFILE": "colab-qlora", "RUN": "pytest-qlora", "SEED": 0, "DATA": ""}
    run_cells("02_dataset", **given)
    write_json(OUTPUTS / "pytest-qlora" / "03_baseline" / "baseline_evaluation.json", [])  # 学習前の答えは、比べない
    write_json(OUTPUTS / "pytest-qlora" / "03_baseline" / "metrics.json", {})
    space = run_cells("04_lora_sft", **given)
    trainer, profile = space["trainer"], space["profile"]
    assert trainer.model.is_loaded_in_4bit and trainer.args.learning_rate == profile.sft_learning_rate != 7e-4
    assert trainer.model.peft_config["default"].r == profile.lora_rank == space["changed"][0]["value"] != 64
    tried = space["compute"]({**space["BASE"], "facts": 1, "epochs": 2, "batch": 4})  # EXPERIMENTS = True のとき
    assert len([row for row in tried["history"] if "eval_loss" in row]) == 4 and 0 <= tried["near"] <= 1
    run_cells("05_preference", **given)
    measured = read_json(OUTPUTS / "pytest-qlora" / "05_preference" / "metrics.json")
    assert abs(measured["dpo_first_loss"] - log(2)) < 0.01 and measured["dpo_loss_difference"] < 1e-3
