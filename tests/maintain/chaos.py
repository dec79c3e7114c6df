"""段の途中で、kill -9・Ctrl-C・書込みの失敗を起こし、もう一度走らせて、何も失われないことを見る。`make chaos` の中身。

使い方: PYTHONPATH=.:tests/unit/train python tests/maintain/chaos.py [止める回数（既定 120）] [乱数シード]

重みは乱数の小さなモデルで、配管だけを見る。import に時間が掛かるので、用意の済んだ親を fork して殺す。
ディスクがいっぱいになる代わりに、書けるファイルの大きさを RLIMIT_FSIZE で絞る（write(2) が失敗する点は同じ）。
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load
from tiny import Slow, lora, make_tiny, make_trainer, write_gguf
from tqdm import tqdm

from lib.data.facts import make_split, read_examples, write_examples
from lib.export.gguf import quantize
from lib.export.serve import modelfile
from lib.files import write_json, write_text
from lib.model.load import load_model, load_tokenizer, resolve
from lib.model.weights import wheel_model
from lib.profiles import get_profile
from lib.run import Run, open_run
from lib.score.answers import score_rows
from lib.score.exam import PARTS, save_rows
from lib.show.page import write_report
from lib.train.trainers import AnswerOnlyTrainer, PairTrainer
from lib.train.watch import LossMonitor, resume_point

# tqdm の錠は fork した子と共有されるので、持ったまま殺された子がいると、次の子が永久に待つ。
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0
PROFILE = replace(get_profile("smoke"), sources=("local",))
WAYS = ("kill -9", "Ctrl-C", "書込みの失敗")


def make_data(run):
    split = make_split(PROFILE)
    for part in ("train", "near"):
        write_examples(run.stage("02_dataset") / f"{part}.jsonl", getattr(split, part)[:8])
    run.finish("02_dataset", {"train": 8.0})


def examples(run, part="train"):
    return read_examples(run.folder / "02_dataset" / f"{part}.jsonl")


def learn(run, path, label, model, rows, kind=AnswerOnlyTrainer, adapter=None, **settings):
    """学習し（adapter を渡せば、続きから）、アダプタを `path` に置く。損失の記録を返す。"""
    torch.manual_seed(0)
    monitor, output = LossMonitor(label), path.parent / "trainer"
    settings |= {"per_device_train_batch_size": 2, "seed": 0}
    trainer = make_trainer(model, output, rows, kind, adapter, [monitor, Slow()], **settings)
    resume = adapter and resume_point(output, trainer.args.to_dict(), adapter.to_dict(), rows)
    trainer.train(resume_from_checkpoint=resume)
    with run.making(path) as target:
        trainer.model.save_pretrained(target, selected_adapters=["default"])
        trainer.processing_class.save_pretrained(target)
    return [{"step": row["step"], "loss": round(row["loss"], 3)} for row in monitor.history if "loss" in row]


def make_adapter(run):
    stage, rows = run.stage("04_lora_sft"), [example.sft_row() for example in examples(run)]
    often = {"max_steps": 6, "save_steps": 2, "save_total_limit": 2, "learning_rate": 5e-3}
    history = learn(run, stage / "adapter", "SFT", resolve(PROFILE), rows, adapter=lora(), **often)
    write_json(stage / "training_results.json", {"history": history, "seconds": 0})
    shutil.rmtree(stage / "trainer")
    run.finish("04_lora_sft", {"final_loss": history[-1]["loss"]})


def make_preference(run):
    stage, rows = run.stage("05_preference"), [example.sft_row() for example in examples(run)]
    sides = zip(rows, reversed(rows), strict=True)
    pairs = [{"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]} for a, b in sides]
    loss = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0], "precompute_ref_log_probs": True}
    few = {"max_steps": 4, "save_strategy": "no", "learning_rate": 1e-3}
    model = load_model(run.folder / "04_lora_sft" / "adapter", PROFILE, trainable=True)
    learn(run, stage / "dpo_adapter", "DPO", model, pairs, PairTrainer, **few, **loss)
    run.finish("05_preference", {"pair_accuracy": 1.0})


def make_gguf(run):
    stage = run.stage("06_merge_to_gguf")
    merged = load_model(run.folder / "04_lora_sft" / "adapter", PROFILE, merge=True)
    with run.making(stage / "merged") as target:
        merged.save_pretrained(target)
        load_tokenizer(resolve(PROFILE)).save_pretrained(target)
    quantize(run.folder / "f16.gguf", stage / "model-q8_0.gguf", "Q8_0", lambda *_: GGMLQuantizationType.Q8_0)
    write_text(stage / "Modelfile", modelfile("model-q8_0.gguf", "{{ .Prompt }}", "窓口", ["<|im_end|>"], 512))
    run.finish("06_merge_to_gguf", {"q8_0_mb": 1.0})


def make_evaluation(run):
    near, stage = examples(run, "near"), run.stage("07_evaluation")
    said = {"base": ["わかりません。"] * len(near), "SFT": [example.answer for example in near]}
    rows = [row for model, answers in said.items() for part in PARTS for row in score_rows(near, answers, model, part)]
    save_rows(stage, "comparison_evaluation", rows)
    write_json(stage / "missing.json", {})
    write_report(run)
    run.finish("07_evaluation", {"near_gain": 1.0})


STAGES = {"02_dataset": make_data, "04_lora_sft": make_adapter}
STAGES |= {"05_preference": make_preference, "06_merge_to_gguf": make_gguf, "07_evaluation": make_evaluation}
RESUMED = ("続きから", "最初から")
OFTEN = (3, 4, 3, 3, 3)  # どの段を多く選ぶか（STAGES の順）


def artefacts(run, stage):
    """最後の名前で置かれた成果物 → 中身。途中のチェックポイント（trainer）と、時刻の入る記録は除く。"""
    folder, found = run.folder / stage, {}
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        parts = path.relative_to(folder).parts
        left_out = parts[0] == "trainer" or path.name in ("manifest.json", "README.md")
        if not left_out and not any(part.startswith(".") for part in parts):
            found["/".join(parts)] = path.read_bytes()
    return found


def same(name, ours, reference):
    """同じ中身か。続きから学習した重みは、丸めの分だけ違ってよい。"""
    trained = ("adapter/adapter_model", "dpo_adapter/adapter_model", "merged/model", "model-q8_0")
    if ours == reference or not name.startswith(trained):
        return ours == reference
    if not name.endswith(".safetensors"):
        return len(ours) == len(reference)
    a, b = load(ours), load(reference)
    return set(a) == set(b) and all(torch.allclose(a[key], b[key], atol=1e-3) for key in a)


def started(run, stage, limit=None, stop=None):
    """段を、fork した子で走らせる。(終了コード, 画面に出したもの)。stop は、(秒, 合図) で止めるとき。"""
    with tempfile.TemporaryFile("w+", errors="replace", dir=run.folder) as said:
        if not (child := os.fork()):
            code = 1
            with contextlib.suppress(BaseException):
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                if limit:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                STAGES[stage](run)
                sys.stdout.flush()
                code = 0
            os._exit(code)
        if stop:
            time.sleep(stop[0])
            os.kill(child, stop[1])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return code, said.read()


def prepare(root):
    """小さなモデルと、止めずに通した見本の実行を作る。"""
    os.environ["WORKSHOP_MODEL_DIR"] = str(make_tiny(root / "model", wheel_model("smollm2-135m")))
    run = Run(open_run("smoke", "run", outputs=root / "reference").folder, PROFILE, 0)
    # 量子化には、語彙を持たない GGUF を渡す（本物の語彙 5 万語を読むのに、一回 5 秒ほど掛かるため）
    rows = {f"blk.{number}.attn_q.weight": np.ones((2048, 256), dtype=np.float16) for number in range(2)}
    write_gguf(run.folder / "f16.gguf", rows, block_count=2, head_count=4, head_count_kv=2)
    seconds = {}
    for stage in STAGES:
        begun = time.monotonic()
        code, text = started(run, stage)
        assert code == 0, text
        seconds[stage] = time.monotonic() - begun
    return run, seconds


def trial(root, reference, stage, way, seconds, dice):
    """一度壊し、もう一度走らせる。問題があれば、その文を返す。無ければ、再開のしかた。"""
    run = Run(root / "trial" / reference.folder.name, PROFILE, 0)  # 名前は報告に入るので、そろえる
    shutil.rmtree(run.folder, ignore_errors=True)
    shutil.copytree(reference.folder, run.folder, ignore=lambda folder, names: {stage} & set(names))
    before = artefacts(reference, stage)
    limit = int(max(len(content) for content in before.values()) * dice.random() ** 3) + 1 if way == WAYS[2] else None
    sign = signal.SIGKILL if way == WAYS[0] else signal.SIGINT
    code, _ = started(run, stage, limit, None if limit else (seconds * dice.random(), sign))
    if not code and not run.is_done(stage):
        return "終了コード 0 なのに終わっていない", code
    for name, content in artefacts(run, stage).items():
        if name not in before or not same(name, content, before[name]):
            return f"{name} が半端", code
    if run.is_done(stage) and set(artefacts(run, stage)) != set(before):
        return "終わった印があるのに、成果物が足りない", code
    again, text = started(run, stage)
    after = artefacts(run, stage)
    if again or set(after) != set(before) or not all(same(name, after[name], before[name]) for name in before):
        return f"もう一度走らせても、見本と同じにならない: {text[-300:]}", code
    if [path for path in (run.folder / stage).glob(".*") if path.is_dir()]:
        return "書きかけのフォルダが残った", code
    return RESUMED["続けます" not in text], code


def main() -> None:
    """その回数だけ途中で止まるまで壊す（終わった後に届いた合図は数えない）。一つでも失われれば終了コード 1。"""
    count, seed = [int(value) for value in sys.argv[1:3]] + [120, 0][len(sys.argv) - 1 :]
    dice, results, stopped = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, contextlib.redirect_stderr(io.StringIO()):
        reference, seconds = prepare(Path(name))
        print("一度の秒:", json.dumps({stage: round(value, 2) for stage, value in seconds.items()}), flush=True)
        while (number := len(results)) < 3 * count and stopped < count:
            stage, way = dice.choices(list(STAGES), OFTEN)[0], WAYS[number % 3]
            outcome, code = trial(Path(name), reference, stage, way, seconds[stage], dice)
            stopped += code != 0
            if outcome not in RESUMED:
                print(f"✋ {number}: {stage} {way}: {outcome}", flush=True)
            results.append((stage, way, outcome if outcome in RESUMED else "失われた"))
    table = pandas.DataFrame(results, columns=["ステージ", "止め方", "その後"])
    print(pandas.crosstab([table["ステージ"], table["止め方"]], table["その後"]).reset_index().to_markdown(index=False))
    lost = int((table["その後"] == "失われた").sum())
    print(f"{len(results)} 回のうち {stopped} 回は途中で止まり、失われたもの {lost} 件")
    sys.exit(1 if lost or stopped < count else 0)


if __name__ == "__main__":
    main()
