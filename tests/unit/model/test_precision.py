"""学習の計算の精度とデバイス: 速い精度を機械が決め、実行が覚える。mps は、使う前に CPU の写しと比べる（04）。"""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import from_notebook, one_sentence
from peft import LoraConfig, get_peft_model

from lib.errors import WorkshopError
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


cells = from_notebook("04_lora_sft", "loss_and_gradient", "agrees_with_cpu", torch=torch, WorkshopError=WorkshopError)
BATCH = {"x": torch.tensor([1.0, 2.0]), "labels": torch.tensor(3.0)}


class Fake(torch.nn.Module):
    """mps のふりをするモデル（本物は無いので）。損失か勾配を `wrong` 倍にまちがえる。CPU に移すと、正しくなる。"""

    def __init__(self, wrong=1.0, only_gradient=False, device="mps"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.5, -0.25]))
        self.wrong, self.only_gradient, self.device = wrong, only_gradient, SimpleNamespace(type=device)

    def cpu(self):
        self.wrong = 1.0
        return self

    def forward(self, x, labels):
        loss = ((self.weight * x).sum() - labels) ** 2
        bent = loss * self.wrong
        return SimpleNamespace(loss=bent + (loss - bent).detach() if self.only_gradient else bent)


def test_a_right_device_is_trusted_and_nothing_moves():
    model = Fake(wrong=1 + 1e-6)
    before = model.weight.detach().clone()
    assert "CPU と同じ" in cells.agrees_with_cpu(model, BATCH)
    assert torch.equal(model.weight, before) and model.weight.grad is None
    assert "cpu で学習します" in cells.agrees_with_cpu(Fake(float("nan"), device="cpu"), BATCH)  # mps のほかは測らない


@pytest.mark.parametrize("wrong", [1.01, 0.5, 0.0, float("nan")])
@pytest.mark.parametrize("only_gradient", [False, True])
def test_a_wrong_device_is_refused_in_one_sentence(wrong, only_gradient):
    with pytest.raises(WorkshopError, match="CPU と相対で .* 違います.*embedded"):
        cells.agrees_with_cpu(Fake(wrong, only_gradient), BATCH)
