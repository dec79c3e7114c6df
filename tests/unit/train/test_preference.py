"""速い DPO が TRL と同じ損失・勾配・記録になること。回答の対数確率が正しいこと。生成が学習と同じトークンを読むこと。"""

import pytest
import torch
from conftest import from_notebook
from peft import PeftModel, get_peft_model
from tiny import lora, make_trainer
from transformers import AutoModelForCausalLM, set_seed
from trl import DPOTrainer

from lib.data.facts import make_split
from lib.model import generate as answering
from lib.model.load import load_model, load_tokenizer
from lib.profiles import get_profile
from lib.train.trainers import PairTrainer, answer_kl, answer_logprobs, encode_pair


@pytest.fixture(scope="module")
def pairs():
    """答えと、よその答えの組。"""
    rows = [example.sft_row() for example in make_split(get_profile("smoke")).train[:8]]
    others = rows[4:] + rows[:4]
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
        for row, other in zip(rows, others, strict=True)
    ]


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    """0 でない、乱数の LoRA。"""
    set_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), lora())
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_logprobs_margins_and_kl_agree_with_the_plain_computation(tiny_llama, adapter, pairs):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama).eval(), load_tokenizer(tiny_llama)
    with torch.inference_mode():
        together = answer_logprobs(model, tokenizer, pairs, "chosen", "rejected")
        for side, sums in zip(("chosen", "rejected"), together, strict=True):
            assert torch.allclose(sums, answer_logprobs(model, tokenizer, pairs, side), atol=1e-4)
            for row, total in zip(pairs, sums.tolist(), strict=True):
                prompt, reply = encode_pair(tokenizer, row, side)
                logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
                assert total == pytest.approx(logits.log_softmax(-1)[range(len(reply)), reply].sum().item(), abs=1e-3)
    names = {"chosen": "良い答え", "rejected": "悪い答え"}
    found = from_notebook("05_preference", "by_hand", "logps", "NAMES", tokenizer=tokenizer)
    assert names == found.NAMES and torch.allclose(found.logps(model, pairs, 3), together, atol=1e-3)
    for side, sums in zip(names, together, strict=True):
        by_hand = torch.stack([found.by_hand(model, pair, side)[1].sum() for pair in pairs])
        assert torch.allclose(by_hand, sums, atol=1e-3)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), adapter).eval()
    assert answer_kl(model, model, tokenizer, pairs, "chosen") == 0
    assert answer_kl(tuned, model, tokenizer, pairs, "chosen") > 0.01


def test_generation_reads_the_tokens_training_wrote(tiny_llama, pairs, monkeypatch):
    """生成に渡すトークンが、学習の例の、答えの手前までと同じ。"""
    profile, tokenizer, seen, original = get_profile("smoke"), load_tokenizer(tiny_llama), [], answering._pad_after
    monkeypatch.setattr(answering, "_pad_after", lambda *given: seen.extend(given[1]) or original(*given))
    prompts = [answering.render(tokenizer, pair["prompt"]) for pair in pairs]
    answering.answer_prompts(load_model(tiny_llama, profile), tokenizer, prompts, profile)
    assert sorted(seen) == sorted(encode_pair(tokenizer, pair, "chosen")[0] for pair in pairs)


def test_the_packed_dpo_is_trl_s(tiny_llama, adapter, pairs, tmp_path):
    losses, gradients, records = [], [], []
    settings = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.1, "max_length": 256}
    settings["per_device_train_batch_size"] = 4
    for kind, precompute in [(DPOTrainer, False), (PairTrainer, True), (PairTrainer, False)]:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), adapter, is_trainable=True)
        trainer = make_trainer(model, tmp_path, pairs, kind, precompute_ref_log_probs=precompute, **settings)
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))]))
        weights = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter in weights:
                parameter.mul_(1.5)  # 参照から離れた所で比べる
        found = trainer.compute_loss(trainer.model, batch)
        found.backward()
        losses.append(found.item())
        gradients.append(torch.cat([p.grad.flatten() for p in weights]))
        records.append({key: values[-1] for key, values in trainer._metrics["train"].items() if key != "num_tokens"})
    for found, gradient, record in zip(losses[1:], gradients[1:], records[1:], strict=True):
        assert found == pytest.approx(losses[0], abs=1e-5)
        assert (gradient - gradients[0]).norm() < 1e-4 * gradients[0].norm()
        assert record == pytest.approx(records[0], rel=1e-3, abs=1e-5)
    assert abs(losses[0] - 0.693) > 0.01  # 参照と同じ所で比べたのではない
