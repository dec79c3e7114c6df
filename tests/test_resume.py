"""止めても続く: kill -9 の後に同じコマンドで、止めなかった学習と同じ損失に着く。"""

import json
import os
import signal
import subprocess
import sys

import pytest

from lib.errors import WorkshopError
from lib.monitor import LossMonitor, last_checkpoint
from lib.workspace import REPOSITORY, open_run


def train(model, output, rest="0"):
    command = [sys.executable, "tests/train_tiny.py", str(model), str(output), rest]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=environment)


def test_kill_nine_then_the_same_command_reaches_the_same_loss(tiny_llama, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(tiny_llama, whole).wait(300) == 0
    process = train(tiny_llama, cut, "0.2")
    for line in process.stdout:
        if line.strip() == "step 8":
            process.send_signal(signal.SIGKILL)
            break
    process.wait(60)
    assert not (cut / "losses.json").exists() and last_checkpoint(cut).endswith("checkpoint-6")
    (cut / "checkpoint-9").mkdir(exist_ok=True)  # 書きかけで殺された形
    (cut / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"half")
    assert train(tiny_llama, cut).wait(300) == 0
    losses = [json.loads((folder / "losses.json").read_text()) for folder in (whole, cut)]
    assert set(losses[0]) == set(losses[1]) == {str(step) for step in range(1, 13)}
    assert all(abs(losses[0][step] - losses[1][step]) <= 1e-4 for step in losses[0])
    assert losses[0]["12"] < losses[0]["1"]


def test_only_finished_checkpoints_count(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for number, text in ((3, '{"global_step": 3}'), (9, '{"global_step": 9}'), (12, "{"), (15, None)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if text:
            (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path).endswith("checkpoint-9")


def test_a_broken_loss_stops_and_names_what_was_kept(tmp_path):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    monitor = LossMonitor(open_run("smoke", outputs=tmp_path), "SFT")
    arguments = TrainingArguments(output_dir=str(tmp_path / "trainer"), use_cpu=True, report_to="none")
    (tmp_path / "trainer" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "trainer" / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4}')
    with pytest.raises(WorkshopError, match="学習率が高すぎる") as error:
        monitor.on_log(arguments, TrainerState(), TrainerControl(), logs={"loss": float("nan")})
    assert "checkpoint-4" in str(error.value)
