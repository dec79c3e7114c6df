"""一度 Q4_K_M だった Gemma の重みに LoRA を足し、いろいろな型に量子化し直して、何が残るかを測る（06 の第 8 節の記録）。

Gemma の規約に同意し、`PYTHONPATH=.:tests python tests/maintain/requantize.py --machine "機械の説明"` を実行する。
学習から行い、1 コアで 15 分ほど。`--run 実行のフォルダ` なら、その実行の 04 のアダプタと 02 の near の質問を使う。
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from conftest import TYPE_RULE, from_notebook
from datasets import Dataset
from gguf import GGMLQuantizationType as Q
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import PrinterCallback, set_seed
from trl import SFTConfig

from lib.data.facts import Example, general_mix, make_split, read_jsonl
from lib.files import REPOSITORY, read_json, write_json
from lib.model.generate import answer, render
from lib.model.load import load_model, load_tokenizer, prepare_cpu, resolve
from lib.profiles import get_profile
from lib.run import versions
from lib.score.answers import is_correct
from lib.train.trainers import AnswerOnlyTrainer

NB = from_notebook("06_merge_to_gguf", *TYPE_RULE, "rounded", "bits_of", "shaken", SEED=0)
RECORDED = REPOSITORY / "data" / "recorded" / "requantize.json"
RECIPE = {"facts": 16, "forms": 7, "epochs": 4, "batch": 16, "rate": 1e-3, "rank": 16, "seed": 0}
STEPS = {Q.Q4_K: 15, Q.Q5_0: 31, Q.Q6_K: 63, Q.Q8_0: 255}  # 型ごとの、段の数
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
NAMES |= {"attn_output": "self_attn.o_proj", **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}}
CASES = {  # 見出し → 配合と、変えること（only は、量子化する行列の幅）
    "F16": {"kind": "F16"},
    "Q8_0": {"kind": "Q8_0"},
    "Q6_K": {"kind": "Q6_K"},
    "Q5_K_M": {"kind": "Q5_K_M"},
    "Q4_K_M": {"kind": "Q4_K_M"},
    "Q4_K_M、imatrix つき": {"kind": "Q4_K_M", "imatrix": True},
    "Q4_K_M、幅 640 の行列だけ": {"kind": "Q4_K_M", "only": lambda width: width % 256},
    "Q4_K_M、ほかの行列だけ": {"kind": "Q4_K_M", "only": lambda width: width % 256 == 0},
    "全部 Q4_1": {"kind": "Q4_1"},
    "段からずらした重みの F16": {"kind": "F16", "off_grid": True},
    "段からずらした重みの Q4_K_M": {"kind": "Q4_K_M", "off_grid": True},
}


def modules(model):
    """GGUF での名前 → 線形層。"""
    layers = enumerate(model.get_decoder().layers)
    return {f"blk.{n}.{name}.weight": m.get_submodule(place) for n, m in layers for name, place in NAMES.items()}


def type_of(kind, name, width, config):
    """行列の型。06 の配合のほか、Q5_K_M と、全部を一つの型にするもの（Q4_1 など）。"""
    if kind in NB.BASE:
        return NB.tensor_type(name, width, kind, config)
    if kind != "Q5_K_M":
        return Q[kind]
    chosen = {Q.Q4_K: Q.Q5_K}.get(found := NB.mixed(name, "Q4_K_M", config), found)
    return NB.FALLS_TO.get(chosen, chosen) if width % 256 else chosen


def taught(profile, folder):
    """設定どおりに学習し、行列ごとの LoRA の差分を返す。"""
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=RECIPE["rank"], lora_alpha=2 * RECIPE["rank"], target_modules="all-linear"
    )
    with tempfile.TemporaryDirectory() as place:
        arguments = SFTConfig(
            place, num_train_epochs=RECIPE["epochs"], per_device_train_batch_size=RECIPE["batch"],
            learning_rate=RECIPE["rate"], warmup_steps=0.1, lr_scheduler_type="cosine", max_length=256,
            seed=RECIPE["seed"], save_strategy="no", activation_checkpointing=False, **profile.trainer_arguments(),
        )  # fmt: skip
        set_seed(RECIPE["seed"])
        rows = Dataset.from_list([e.sft_row() for e in make_split(profile).train])
        given = {"train_dataset": rows, "processing_class": load_tokenizer(folder), "peft_config": lora}
        trainer = AnswerOnlyTrainer(load_model(folder, profile, trainable=True), arguments, **given)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    pairs = {
        name: (m.scaling["default"], m.lora_A.default, m.lora_B.default) for name, m in modules(trainer.model).items()
    }
    return {name: (scale * b.weight @ a.weight).detach().float() for name, (scale, a, b) in pairs.items()}


def learned(folder):
    """保存したアダプタの、行列ごとの差分。"""
    config, found = read_json(folder / "adapter_config.json"), load_file(folder / "adapter_model.safetensors")
    scale, deltas = config["lora_alpha"] / config["r"], {}
    for n in range(1 + max(int(key.split(".layers.")[1].split(".")[0]) for key in found)):
        for name, place in NAMES.items():
            key = f"base_model.model.model.layers.{n}.{place}.lora_"
            deltas[f"blk.{n}.{name}.weight"] = scale * found[f"{key}B.weight"] @ found[f"{key}A.weight"]
    return deltas


@torch.inference_mode()
def importances(model, ids):
    """行列ごとの、列の重要度（入力の 2 乗の平均）。"""
    seen, hooks = {}, []
    for name, module in modules(model).items():

        def keep(_, given, __, name=name):
            seen[name] = given[0][0].pow(2).mean(0).numpy()

        hooks.append(module.register_forward_hook(keep))
    model(torch.tensor([ids]))
    [hook.remove() for hook in hooks]
    return seen


def requantize(first, deltas, kind, config, only=None, weights=None):
    """(量子化して戻した重み, 残った差分の割合, 層の重み 1 個あたりの bit)。"""
    made, left, whole, bits, count = {}, 0.0, 0.0, 0.0, 0
    for name, start in first.items():
        made[name], chosen = (start + deltas[name]).half().float(), Q.F16
        if kind != "F16" and (only is None or only(start.shape[1])):
            chosen = type_of(kind, name, start.shape[1], config)
            made[name] = NB.rounded(made[name], chosen, weights and weights[name])
        left += ((made[name] - start) * deltas[name]).sum().item()
        whole += deltas[name].pow(2).sum().item()
        bits, count = bits + NB.bits_of(chosen) * start.numel(), count + start.numel()
    return made, left / whole, bits / count


def put_in(model, weights):
    """線形層の重みを替える。"""
    with torch.no_grad():
        for name, module in modules(model).items():
            module.weight.copy_(weights[name])


def main():
    """学習し、場合ごとに測り、記録を書く。"""
    parser = argparse.ArgumentParser()
    parser.add_argument("--machine", required=True)
    parser.add_argument("--run", type=Path)
    given = parser.parse_args()
    small = {"train_facts": RECIPE["facts"], "train_forms": RECIPE["forms"]}
    profile = prepare_cpu(replace(get_profile("embedded-ja"), **small))
    folder = resolve(profile)
    tokenizer, near, model = load_tokenizer(folder), make_split(profile).near, load_model(folder, profile)
    if given.run:
        rows = read_jsonl(given.run / "02_dataset" / "near.jsonl")
        near = [Example(**{**row, "figures": tuple(row["figures"])}) for row in rows]
    deltas = learned(given.run / "04_lora_sft" / "adapter") if given.run else taught(profile, folder)
    first = {name: module.weight.detach().clone() for name, module in modules(model).items()}
    kinds = {name: type_of("Q4_K_M", name, start.shape[1], model.config) for name, start in first.items()}
    moved = {name: NB.shaken(w, seed, STEPS[kinds[name]]) for seed, (name, w) in enumerate(first.items())}
    put_in(model, requantize(first, deltas, "F16", model.config)[0])
    text = " ".join(render(tokenizer, e.prompt()) + e.answer for e in general_mix(48, "ja"))
    weights, rows = importances(model, tokenizer(text, add_special_tokens=False)["input_ids"]), {}
    for label, case in CASES.items():
        start, chosen = moved if case.get("off_grid") else first, weights if case.get("imatrix") else None
        made, left, bits = requantize(start, deltas, case["kind"], model.config, case.get("only"), chosen)
        put_in(model, made)
        correct = sum(map(is_correct, near, answer(model, tokenizer, near, profile)))
        rows[label] = {"correct": correct, "questions": len(near), "left": round(left, 4), "bits": round(bits, 3)}
        print(label, rows[label], flush=True)
    found = {"date": time.strftime("%Y-%m-%d"), "machine": given.machine, "model": "gemma3-270m", "recipe": RECIPE}
    size = {
        name: change.pow(2).mean().sqrt().item() / first[name].pow(2).mean().sqrt().item()
        for name, change in deltas.items()
    }
    found |= {"change": round(sum(size.values()) / len(size), 4), "versions": versions(), "rows": rows}
    write_json(RECORDED, found)


if __name__ == "__main__":
    main()
