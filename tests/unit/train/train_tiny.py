"""test_resume が別のプロセスで動かす、乱数の小さなモデルの学習（配管の検査用）。

使い方: python tests/unit/train/train_tiny.py モデル 出力先 1 ステップごとに休む秒 1 台あたりのバッチ dropout
"""

import json
import sys
import time
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import SFTConfig

from lib.model.load import load_tokenizer
from lib.profiles import get_profile
from lib.train.trainers import AnswerOnlyTrainer
from lib.train.watch import resume_point


class Slow(TrainerCallback):
    """kill する間を作る。"""

    def on_step_end(self, args, state, control, **_):
        time.sleep(float(sys.argv[3]))
        print("step", state.global_step, flush=True)


def main():
    model, output = Path(sys.argv[1]), Path(sys.argv[2])
    batch, dropout = int(sys.argv[4]), float(sys.argv[5])
    set_seed(0)
    rows = [{"prompt": f"{i} の二倍は", "completion": f"{2 * i} です。"} for i in range(24)]
    saving = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "activation_checkpointing": False}
    saving |= {"output_dir": str(output), "max_steps": 12, **get_profile("smoke").trainer_arguments()}
    config = SFTConfig(per_device_train_batch_size=batch, learning_rate=5e-3, seed=0, **saving)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=dropout, target_modules="all-linear")
    trainer = AnswerOnlyTrainer(
        model=str(model), args=config, train_dataset=Dataset.from_list(rows), processing_class=load_tokenizer(model),
        peft_config=lora, callbacks=[Slow()],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume_point(output, config.to_dict(), lora.to_dict(), rows))
    if trainer.is_world_process_zero():
        losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
        (output / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
