"""止めても続く: kill -9 の後に同じコマンドで、止めなかった学習と同じ損失に着く。"""

import json
import os
import signal
import subprocess
import sys

import pytest
import tiny
import torch
from tiny import lora, make_trainer, train
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from lib.errors import WorkshopError
from lib.files import REPOSITORY
from lib.model.load import peak_memory, prepare_cpu
from lib.profiles import get_profile
from lib.train.watch import LossMonitor, last_checkpoint, resume_point


def stop_at(folder, step, text=None):
    """`step` で止まった形のチェックポイント。text は、その中の trainer_state.json。"""
    (folder / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(text or json.dumps({"global_step": step}))


def test_kill_nine_then_the_same_command_reaches_the_same_loss(tiny_llama, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(tiny_llama, whole)
    command, paths = [sys.executable, tiny.__file__, tiny_llama, cut], {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | paths)
    assert any(line.strip() == "step 8" for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not (cut / "losses.json").exists() and last_checkpoint(cut).endswith("checkpoint-6")
    (cut / "checkpoint-9").mkdir(exist_ok=True)  # 書きかけで殺された形
    (cut / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"half")
    train(tiny_llama, cut)
    one, two = (json.loads((folder / "losses.json").read_text()) for folder in (whole, cut))
    assert set(one) == set(two) == {str(step) for step in range(1, 13)} and one["12"] < one["1"]
    assert all(abs(one[step] - two[step]) <= 1e-4 for step in one)


def test_only_finished_checkpoints_count(tmp_path):
    assert last_checkpoint(tmp_path) is None
    stop_at(tmp_path, 3)
    stop_at(tmp_path, 9)
    stop_at(tmp_path, 12, "{")
    (tmp_path / "checkpoint-15").mkdir()
    assert last_checkpoint(tmp_path).endswith("checkpoint-9")
    stop_at(tmp_path, 9, '{"global_step": 9, "max_steps": 9}')
    assert last_checkpoint(tmp_path).endswith("checkpoint-3"), "終わりから続けると、余分に 1 ステップ学習する"


def test_a_broken_loss_stops_and_names_what_was_kept(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    stop_at(tmp_path, 4)
    with pytest.raises(WorkshopError, match="checkpoint-4.*学習率が高すぎる"):
        LossMonitor("SFT").on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": float("nan")})


def test_changed_settings_or_data_never_continue_the_old_training(tmp_path, capsys):
    settings = {"lr": 1e-3, "modules": {"q", "v", "k"}}
    assert resume_point(tmp_path, settings, ["a"]) is None
    stop_at(tmp_path, 4)
    assert resume_point(tmp_path, {"modules": {"v", "k", "q"}, "lr": 1e-3}, ["a"]).endswith("checkpoint-4")
    assert "続けます" in capsys.readouterr().out
    assert resume_point(tmp_path, {**settings, "lr": 2e-3}, ["a"]) is None and last_checkpoint(tmp_path) is None
    assert "変わった" in capsys.readouterr().out
    stop_at(tmp_path, 4)
    (tmp_path / "inputs.txt").unlink()  # いつの設定か分からないチェックポイントは使わない
    assert resume_point(tmp_path, settings, ["a"]) is None and last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_early_stopping_counts_rises_in_a_row_and_restores_the_best(tiny_llama, tmp_path, patience):
    """検証損失を台本どおりに返す Trainer で、n 回続いた所で止まり、最良の重みに戻ることを見る。"""
    rows = [{"prompt": f"{i} は", "completion": f"{i} です。"} for i in range(8)]
    settings = {"max_steps": len(SCRIPT), "per_device_train_batch_size": 4, "learning_rate": 5e-3, "seed": 0}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings |= {"save_total_limit": 2, "load_best_model_at_end": True, "tested": rows, "adapter": lora()}
    stop = EarlyStoppingCallback(early_stopping_patience=patience)
    trainer = make_trainer(tiny_llama, tmp_path, rows, Scripted, callbacks=[stop], **settings)
    trainer.train()
    stopped = {1: 3, 2: 6, 3: 7}[patience]  # 上がった回数は、最良を更新するたびに数え直す
    best = min(SCRIPT[:stopped])
    assert trainer.state.global_step == stopped and trainer.state.best_metric == best
    assert last_checkpoint(tmp_path).endswith(f"-{SCRIPT.index(best) + 1}"), "早期終了した所からは、続けない"
    kept = trainer.weights_at[SCRIPT.index(best) + 1]
    assert torch.equal(adapter_weights(trainer.model), kept)
    assert not torch.equal(trainer.weights_at[stopped], kept)


SCRIPT = [3.0, 2.0, 2.5, 1.5, 1.6, 1.7, 1.8, 1.9]


def adapter_weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


class Scripted(SFTTrainer):
    def evaluate(self, *args, **kwargs):
        step, self.weights_at = self.state.global_step, getattr(self, "weights_at", {})
        self.weights_at[step] = adapter_weights(self.model)
        self.log(metrics := {"eval_loss": SCRIPT[step - 1]})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def test_the_thread_probe_leaves_a_usable_number(capsys):
    before = torch.get_num_threads()
    prepare_cpu(get_profile("smoke"))
    assert 1 <= torch.get_num_threads() <= before and f"{torch.get_num_threads()} 本" in capsys.readouterr().out
    torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="最大の印を戻せるのは Linux だけ")
def test_peak_memory_sees_a_large_block_and_forgets_the_last_one():
    with peak_memory() as large:
        block = bytearray(b"x") * (300 << 20)
        del block
    with peak_memory() as small:
        pass
    assert large["gib"] - small["gib"] > 0.25
