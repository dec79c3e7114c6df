"""省いた計算で、損失も勾配も変わらないこと。GPU の起動設定を、accelerate が読み、その値の通りに組み立てること。"""

from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import from_notebook
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from lib.files import REPOSITORY
from lib.profiles import PROFILES, get_profile
from lib.train import trainers
from lib.train.trainers import AnswerOnlyTrainer, pack

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
    generator, width = torch.Generator().manual_seed(0), max(length for length, _, _ in rows)
    ids = torch.randint(5, 97, (len(rows), width), generator=generator)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (length, same, answer) in enumerate(rows):
        ids[row, :same] = ids[0, :same]
        ids[row, same : same + 1] = 1 + row  # 行ごとに必ず違う
        ids[row, length:] = 0
        mask[row, :length] = 1
        labels[row, length - answer : length] = ids[row, length - answer : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("longest", [0, 512])
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_loss_and_its_gradients_are_those_of_transformers(monkeypatch, config, rows, longest):
    monkeypatch.setattr(trainers, "LONGEST_LINE", longest)  # 0 なら、どのバッチも「長い」
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


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_every_distinct_beginning_is_held_once_and_a_token_sees_its_own_beginning_only(rows):
    batch = batch_of(rows)
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    tokens, positions, seen, place = pack(ids, batch["attention_mask"])
    lengths = zip(ids.tolist(), real.sum(1).tolist(), strict=True)
    assert len(tokens) == len({tuple(row[: end + 1]) for row, length in lengths for end in range(length)})
    assert torch.equal(place >= 0, real) and torch.equal(tokens[place][real], ids[real])
    for row in place:
        chain = row[row >= 0].tolist()
        for end, query in enumerate(chain):
            assert set(seen[query].nonzero().flatten().tolist()) == set(chain[: end + 1])
            assert int(positions[query]) == end


def test_the_shared_arguments_are_about_the_device_and_the_log_only():
    log = {"logging_steps": 1, "report_to": "tensorboard", "disable_tqdm": True}
    for name, cpu, bf16, pinned in (("embedded", True, False, False), ("cuda", False, True, True)):
        device = {"use_cpu": cpu, "bf16": bf16, "dataloader_pin_memory": pinned}
        assert get_profile(name).trainer_arguments("tensorboard") == {**device, **log}


WRITTEN = ("BF16", "around", "lora_config", "config", "early", "layers", "first", "VALUES")


@pytest.mark.parametrize("name", ["embedded", "cuda", "mac", "talk", "smoke", "embedded-ja"])
def test_the_values_written_in_04_are_those_of_embedded_and_fit_every_device(name, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    profile, run = PROFILES[name], SimpleNamespace(stage=lambda stage: tmp_path, folder=tmp_path)
    model = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=30))
    here = from_notebook("04_lora_sft", *WRITTEN, profile=profile, run=run, SEED=0, model=model)
    assert (here.config.use_cpu, here.config.bf16) == (profile.device == "cpu", profile.dtype == "bfloat16")
    assert here.early.early_stopping_patience == profile.patience and here.config.load_best_model_at_end
    places = {key: here.lora_config if hasattr(here.lora_config, key) else here.config for key in here.VALUES}
    other = [key for key, (value, _) in here.VALUES.items() if getattr(places[key], key) != value]
    assert bool(other) == (name != "embedded") and "max_length" not in other


LAUNCH = REPOSITORY / "data" / "launch"


@pytest.mark.parametrize("name, kind", [("ddp.yaml", DistributedType.MULTI_GPU), ("fsdp.yaml", DistributedType.FSDP)])
def test_accelerate_reads_the_configuration_and_builds_what_it_describes(monkeypatch, name, kind):
    config = load_config_from_file(str(LAUNCH / name))
    assert config.distributed_type == kind and config.num_processes == 2 and not config.use_cpu
    arguments = launch_command_parser().parse_args(["--config_file", str(LAUNCH / name), "train.py"])
    environment = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])  # 子のプロセスに渡す環境変数
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    if kind != DistributedType.FSDP:
        return
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading and str(plugin.state_dict_type).endswith("SHARDED_STATE_DICT")
