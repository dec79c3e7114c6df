"""学習の計算の精度: 速いほうを機械が決め、実行が覚える。混合精度で bf16 なのは、各層の凍結した線形層だけ。"""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import one_sentence
from peft import LoraConfig, get_peft_model

from lib.files import read_json
from lib.model import load
from lib.model.load import load_model, prepare_cpu
from lib.profiles import get_profile

PROFILE = get_profile("smoke")


@pytest.mark.parametrize(("speedup", "chosen"), [(4.5, "mixed"), (0.3, "float32")])  # 0.3 は、bf16 を真似るだけの CPU
def test_the_faster_precision_is_chosen_once_a_run_and_can_be_overridden(tmp_path, monkeypatch, speedup, chosen):
    monkeypatch.delenv("WORKSHOP_PRECISION", raising=False)
    monkeypatch.setattr(load, "race", lambda: (1, 100.0, speedup))
    assert prepare_cpu(PROFILE, tmp_path).precision == chosen == read_json(tmp_path / "precision.json")["precision"]
    monkeypatch.setattr(load, "race", lambda: (1, 100.0, 1 / speedup))
    assert prepare_cpu(PROFILE, tmp_path).precision == chosen, "後の段で、精度が変わってはいけない"
    other = {"mixed": "float32", "float32": "mixed"}[chosen]
    monkeypatch.setenv("WORKSHOP_PRECISION", other)
    assert prepare_cpu(PROFILE, tmp_path).precision == other
    assert prepare_cpu(get_profile("cuda")) == get_profile("cuda")
    monkeypatch.setenv("WORKSHOP_PRECISION", "fp8")
    with one_sentence("fp8", "float32"):
        prepare_cpu(PROFILE)


@pytest.mark.parametrize("copied", [False, True])
def test_only_the_frozen_linear_layers_are_bf16_and_the_loss_stays(tiny_llama, copied):
    losses = {}
    for precision in ("float32", "mixed"):
        torch.manual_seed(0)
        model = load_model(tiny_llama, replace(PROFILE, precision=precision), trainable=True)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        model = copy.deepcopy(model) if copied else model
        ids = torch.arange(40).view(2, 20) + 100
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
        losses[precision] = output.loss.item()
        kinds = {name: p.dtype for name, p in model.named_parameters()}
        half = {name for name, kind in kinds.items() if kind == torch.bfloat16}
        linear = {name for name in kinds if "_proj" in name and "lora_" not in name}
        assert half == (linear if precision == "mixed" else set())
        assert output.logits.dtype == torch.float32 and output.loss.dtype == torch.float32
        learned = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all("lora_" in name and grad.dtype == torch.float32 and grad.any() for name, grad in learned.items())
    assert 0 < abs(losses["mixed"] / losses["float32"] - 1) < 0.01
    answering = load_model(tiny_llama, replace(PROFILE, precision="mixed"))
    assert {p.dtype for p in answering.parameters()} == {torch.float32}, "答えるときは fp32"
