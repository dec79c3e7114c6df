"""乱数の小さなモデルの学習（配管の検査用）。test_resume は、これを別のプロセスで動かす。

使い方: python tests/unit/train/train_tiny.py モデル 出力先 1 ステップごとに休む秒
"""

import json
import sys
import time
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import DPOConfig, SFTConfig

from lib.model.load import load_tokenizer
from lib.profiles import get_profile
from lib.train.trainers import AnswerOnlyTrainer
from lib.train.watch import resume_point


def lora(**more):
    return LoraConfig(task_type="CAUSAL_LM", r=4, **{"target_modules": "all-linear", **more})


def make_trainer(model, output, rows, kind=AnswerOnlyTrainer, adapter=None, callbacks=(), tested=None, **settings):
    """小さなモデル（フォルダか、読んだもの）を CPU で学習する Trainer。選好の組を渡すと DPO の設定になる。"""
    settings |= {"output_dir": str(output), "activation_checkpointing": False}
    settings |= get_profile("smoke").trainer_arguments()
    folder = Path(getattr(model, "name_or_path", model))
    return kind(
        str(model) if isinstance(model, Path) else model,
        args=(SFTConfig if "completion" in rows[0] else DPOConfig)(**settings),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=tested and Dataset.from_list(tested),
        processing_class=load_tokenizer(folder),
        peft_config=adapter,
        callbacks=list(callbacks),
    )


def losses_of(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


class Slow(TrainerCallback):
    """kill する間を作る。"""

    def on_step_end(self, args, state, control, **_):
        time.sleep(float(sys.argv[3]))
        print("step", state.global_step, flush=True)


def main():
    model, output = Path(sys.argv[1]), Path(sys.argv[2])
    set_seed(0)
    rows = [{"prompt": f"{i} の二倍は", "completion": f"{2 * i} です。"} for i in range(24)]
    settings = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "max_steps": 12, "seed": 0}
    settings |= {"per_device_train_batch_size": 4, "learning_rate": 5e-3}
    adapter = lora(lora_dropout=0.1)
    trainer = make_trainer(model, output, rows, adapter=adapter, callbacks=[Slow()], **settings)
    trainer.train(resume_from_checkpoint=resume_point(output, trainer.args.to_dict(), adapter.to_dict(), rows))
    (output / "losses.json").write_text(json.dumps(losses_of(trainer)))


if __name__ == "__main__":
    main()
