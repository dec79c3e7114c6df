"""省いた計算で、損失も勾配も変わらないこと。"""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from lib.sft import AnswerOnlyTrainer, pack

SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, vocab_size=97, pad_token_id=0)  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=64),
    "gemma3、窓が例より短い": Gemma3TextConfig(**SMALL, sliding_window=4),
}
BATCHES = {  # 行ごとに (先頭からのトークン数, 共通する先頭, 答えのトークン数)
    "共通の先頭がある": [(20, 9, 4), (17, 9, 6), (12, 9, 1)],
    "先頭から違う": [(15, 0, 3), (14, 0, 2)],
    "一行だけ": [(16, 16, 5)],
    "同じ質問": [(18, 14, 4), (18, 14, 4)],
}


def batch_of(rows):
    generator = torch.Generator().manual_seed(0)
    width = max(length for length, _, _ in rows)
    ids, mask = torch.zeros((len(rows), width), dtype=torch.long), torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    common = torch.randint(5, 97, (width,), generator=generator)
    for row, (length, same, answer) in enumerate(rows):
        ids[row, :length] = torch.randint(5, 97, (length,), generator=generator)
        ids[row, :same] = common[:same]
        ids[row, same : same + 1] = 1 + row  # 行ごとに必ず違う
        mask[row, :length] = 1
        labels[row, length - answer : length] = ids[row, length - answer : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_loss_and_its_gradients_are_those_of_transformers(config, rows):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    trainer = AnswerOnlyTrainer.__new__(AnswerOnlyTrainer)
    trainer.accelerator = SimpleNamespace(unwrap_model=lambda wrapped: wrapped, num_processes=1)
    batch = batch_of(rows)
    losses, gradients = [], []
    for compute in (lambda: model(**batch).loss, lambda: trainer.compute_loss(model, batch)):
        model.zero_grad()
        loss = compute()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert abs(losses[0] - losses[1]) < 1e-5
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_the_row_holds_every_token_once_and_the_shared_part_once():
    lengths = {}
    for name, rows in BATCHES.items():
        row = pack(*batch_of(rows).values())
        lengths[name] = (len(row.tokens), int((row.owner == -1).sum()))
        assert int((row.targets != -100).sum()) == sum(answer for _, _, answer in rows)
    # (全部の長さ, 共通の先頭)。先頭は、最初の答えを当てる位置の手前まで
    assert lengths == {
        "共通の先頭がある": (9 + 11 + 8 + 3, 9),
        "先頭から違う": (15 + 14, 0),
        "一行だけ": (16, 10),
        "同じ質問": (13 + 5 + 5, 13),
    }


def test_no_example_sees_another():
    row = pack(*batch_of(BATCHES["共通の先頭がある"]).values())
    seen = row.mask(torch.float32) == 0
    for query, keys in enumerate(seen):
        assert set(row.owner[keys].tolist()) <= {-1, int(row.owner[query])}
        assert int(keys.sum()) == int(row.positions[query]) + 1
