"""乱数の小さなモデルと GGUF、その学習（配管の検査用）。

test_resume は、ゆっくりした学習を別のプロセスで動かす: python tests/tiny.py モデル 出力先
"""

import json
import sys
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from gguf import GGUFWriter
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import DPOConfig, SFTConfig

from lib.model.load import load_tokenizer
from lib.profiles import get_profile
from lib.train.trainers import AnswerOnlyTrainer
from lib.train.watch import resume_point


def make_tiny(folder, model_folder, family="Llama", width=64):
    """本物のトークナイザを持つ、2 層の乱数のモデルを作る。配管の検査にだけ使う。"""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(model_folder)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": width // 4}
    heads["query_pre_attn_scalar"] = width // 4  # Gemma だけが読む。llama.cpp は、頭の幅で割ると決めている
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "bos", "pad")}
    config = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")(
        hidden_size=width, intermediate_size=2 * width, vocab_size=len(tokenizer), tie_word_embeddings=True,
        **heads, **ids,
    )  # fmt: skip
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_gguf(path, tensors, arch="llama", kind=None, **keys):
    """トークナイザの無い GGUF。tensors は行列の名前 → 値、keys は GGUFWriter の add_… → 渡す値。"""
    writer = GGUFWriter(path, arch)
    for name, value in keys.items():
        getattr(writer, f"add_{name}")(value)
    for name, value in tensors.items():
        writer.add_tensor(name, value, raw_dtype=kind if value.ndim > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
        time.sleep(0.2)
        print("step", state.global_step, flush=True)


def train(model, output, *callbacks):
    set_seed(0)
    rows = [{"prompt": f"{i} の二倍は", "completion": f"{2 * i} です。"} for i in range(24)]
    settings = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "max_steps": 12, "seed": 0}
    settings |= {"per_device_train_batch_size": 4, "learning_rate": 5e-3}
    adapter = lora(lora_dropout=0.1)
    trainer = make_trainer(model, output, rows, adapter=adapter, callbacks=callbacks, **settings)
    trainer.train(resume_from_checkpoint=resume_point(output, trainer.args.to_dict(), adapter.to_dict(), rows))
    (output / "losses.json").write_text(json.dumps(losses_of(trainer)))


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), Slow())
