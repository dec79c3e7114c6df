"""デバイスの用心（04 のセル）: mps の 1 バッチを CPU の写しと比べる（本物の mps は無いので、まねたもので確かめる）。"""

from types import SimpleNamespace

import pytest
import torch
from conftest import from_notebook

from lib.errors import WorkshopError

cells = from_notebook("04_lora_sft", "measure", "agrees_with_cpu", torch=torch, WorkshopError=WorkshopError)
BATCH = {"x": torch.tensor([1.0, 2.0]), "labels": torch.tensor(3.0)}


class Fake(torch.nn.Module):
    """mps のふりをするモデル。損失か勾配を `wrong` 倍にまちがえる。CPU に移すと、正しくなる。"""

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
