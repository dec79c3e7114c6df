"""一度 Q4_K_M だった Gemma の重みに LoRA を足し、いろいろな型に量子化し直して、何が残るかを測る（06 の第 8 節の記録）。

使うのは、終わった実行の 04 のアダプタと、02 の near の質問。Gemma の規約に同意し、こう実行する（1 コアで 5 分ほど）。
`PYTHONPATH=.:tests python tests/maintain/requantize.py 実行のフォルダ --recipe "学習の設定" --machine "機械の説明"`
"""

import argparse
import time
from pathlib import Path

import torch
from conftest import TYPE_RULE, from_notebook
from gguf import GGMLQuantizationType as Q

from lib.data.facts import general_mix, read_examples
from lib.files import REPOSITORY, write_json
from lib.model.generate import answer, render
from lib.model.load import load_model, load_tokenizer, prepare_cpu, resolve
from lib.profiles import get_profile
from lib.run import versions
from lib.score.answers import is_correct

NB = from_notebook("06_merge_to_gguf", *TYPE_RULE, "rounded", "bits_of", "shaken", SEED=0)
RECORDED = REPOSITORY / "data" / "recorded" / "requantize.json"
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
    """場合ごとに測り、記録を書く。"""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="02 と 04 の終わった実行のフォルダ")
    parser.add_argument("--recipe", required=True, help="アダプタをどう学習したか。記録に残す")
    parser.add_argument("--machine", required=True, help="機械の説明。記録に残す")
    given = parser.parse_args()
    profile = prepare_cpu(get_profile("embedded-ja"))
    tokenizer, near = load_tokenizer(resolve(profile)), read_examples(given.run / "02_dataset" / "near.jsonl")
    adapted = load_model(given.run / "04_lora_sft" / "adapter", profile)
    layers = modules(adapted).items()
    first = {name: layer.base_layer.weight.detach().clone() for name, layer in layers}
    pairs = {name: (m.scaling["default"], m.lora_A.default.weight, m.lora_B.default.weight) for name, m in layers}
    deltas = {name: (scale * b @ a).detach() for name, (scale, a, b) in pairs.items()}
    model = adapted.unload()
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
    found = {"date": time.strftime("%Y-%m-%d"), "machine": given.machine, "model": profile.model}
    size = {
        name: change.pow(2).mean().sqrt().item() / first[name].pow(2).mean().sqrt().item()
        for name, change in deltas.items()
    }
    found |= {"recipe": given.recipe, "change": round(sum(size.values()) / len(size), 4), "versions": versions()}
    write_json(RECORDED, found | {"rows": rows})


if __name__ == "__main__":
    main()
