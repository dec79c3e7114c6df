"""省いた計算で、損失も勾配も変わらないこと。長さの近い束が、全部の例を一度ずつ並べること。"""

import random
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from lib.sft import AnswerOnlyTrainer, SimilarLengths, shared_prefix

SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, vocab_size=97, pad_token_id=0)  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=4),  # 窓が先頭より短い
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


def test_the_shared_part_stops_before_the_first_answer():
    expected = {"共通の先頭がある": 9, "先頭から違う": 0, "一行だけ": 10, "同じ質問": 13}
    found = {}
    for name, rows in BATCHES.items():
        batch = batch_of(rows)
        found[name] = shared_prefix(batch["input_ids"], batch["labels"])
    assert found == expected


def padded(order, lengths, batch):
    """束ごとに最長へそろえたときのトークン数。"""
    parts = [order[i : i + batch] for i in range(0, len(order), batch)]
    return sum(max(lengths[k] for k in part) * len(part) for part in parts)


@pytest.mark.parametrize("count", [1, 7, 8, 64, 112, 113, 500])
def test_every_example_comes_once_and_the_order_depends_on_seed_and_epoch(count):
    lengths = [random.Random(k).randrange(40, 160) for k in range(count)]
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = SimilarLengths(lengths, 8, seed)
            sampler.set_epoch(epoch)
            orders[seed, epoch] = list(sampler)
            assert sorted(orders[seed, epoch]) == list(range(count)) and len(sampler) == count
            assert list(sampler) == orders[seed, epoch]
    if count > 8:
        assert len({tuple(order) for order in orders.values()}) == 4


def test_it_pads_less_than_the_grouping_of_transformers():
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = [random.Random(k).randrange(40, 160) for k in range(112)]
    ours = padded(list(SimilarLengths(lengths, 8)), lengths, 8)
    theirs = padded(get_length_grouped_indices(lengths, 8), lengths, 8)
    assert ours < theirs and ours < 1.12 * sum(lengths)
