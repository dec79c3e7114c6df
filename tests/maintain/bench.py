"""`make bench`: 同じ機械で、この教材の学習と、広く書かれている素の書き方（TRL の SFTTrainer）を比べる。

1 ステップの速さは、同じ例・バッチ・学習率・LoRA で測る。`--quick`（`make bench QUICK=1`）なら、これだけを 20 回ずつ。
目標の正答率までの時間だけは、素の書き方を、広く書かれている値（バッチ 4 × 累積 4、学習率 2e-4、ランク 16）にする。
速さは機械しだいなのでテストにはせず、比だけを見る。ほかの重い処理を止めてから実行すること。
`--machine "機械の説明"`（`make bench MACHINE=…`）なら、測った値を data/recorded/bench.json に残す。
"""

import argparse
import math
import multiprocessing
import resource
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import cycle
from typing import Any

import pandas as pd
from datasets import Dataset
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from lib.data.facts import general_mix, make_split
from lib.files import REPOSITORY, write_json
from lib.model.generate import answer, answer_prompts, render
from lib.model.load import load_model, load_tokenizer, prepare_cpu, race, resolve
from lib.profiles import get_profile
from lib.run import OUTPUTS, reopen, versions
from lib.score.answers import accuracy
from lib.show.plots import curve
from lib.train.trainers import AnswerOnlyTrainer

PROFILE = get_profile("embedded")
FOLDER = OUTPUTS / "bench"
CAP = 3.3  # 素の書き方は、この教材の何倍の時間まで待つか。届かなければ「○倍以上」とだけ言う
SIZES = (100, 1_000, 10_000)


STOCK, OURS = "TRL の SFTTrainer（fp32）", "この教材（混合精度）"
KINDS = {  # 見出し → Trainer、凍結した線形層の精度、TRL の bf16（autocast）
    STOCK: (SFTTrainer, "float32", False),
    "TRL の SFTTrainer（bf16=True）": (SFTTrainer, "float32", True),
    "この教材（fp32）": (AnswerOnlyTrainer, "float32", False),
    OURS: (AnswerOnlyTrainer, "mixed", False),
}


class Watch(TrainerCallback):
    """一歩ごとの秒を控える。target があれば、1 エポックごとに正答率を測り（秒に数えない）、目標か cap 秒で止める。"""

    def __init__(self, target: float = 0.0, cap: float = math.inf) -> None:
        self.seconds, self.score, self.target, self.cap = list[float](), 0.0, target, cap

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)
        control.should_training_stop |= sum(self.seconds) > self.cap

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.target:
            model, near = given["model"].eval(), make_split(PROFILE).near
            self.score = accuracy(near, answer(model, given["processing_class"], near, PROFILE))
            model.train()
            print(f"{state.epoch:.0f} エポック、{sum(self.seconds):.0f} 秒で {self.score:.1%}", flush=True)
            control.should_training_stop |= self.score >= self.target


def build(kind: str, count: int = 0, rank: int = PROFILE.lora_rank, **settings: Any) -> tuple[SFTTrainer, float]:
    """04 と同じ学習例（count があれば、番号を付けてその数まで繰り返したもの）の Trainer と、例の準備に掛かった秒。"""
    trainer_class, precision, bf16 = KINDS[kind]
    prepare_cpu(PROFILE)
    set_seed(0)
    folder, train = resolve(PROFILE), make_split(PROFILE).train
    mix = general_mix(round(len(train) * PROFILE.mix / (1 - PROFILE.mix)), PROFILE.lang)
    examples = train + [replace(example, system=train[0].system) for example in mix]
    if count:
        numbered = zip(range(count), cycle(examples), strict=False)
        examples = [replace(example, question=f"{number}. {example.question}") for number, example in numbered]
    shared = {"per_device_train_batch_size": PROFILE.sft_batch, "learning_rate": PROFILE.sft_learning_rate}
    shared |= {"output_dir": str(FOLDER / "trainer"), "max_length": PROFILE.max_length, "seed": 0}
    shared |= {"save_strategy": "no", "activation_checkpointing": False, **PROFILE.trainer_arguments(), "bf16": bf16}
    lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    given = {"train_dataset": Dataset.from_list([example.sft_row() for example in examples]), "peft_config": lora}
    model = load_model(folder, replace(PROFILE, precision=precision), trainable=True)
    start, given["processing_class"] = time.perf_counter(), load_tokenizer(folder)
    trainer = trainer_class(model, SFTConfig(**shared | settings), **given)
    trainer.remove_callback(PrinterCallback)
    return trainer, time.perf_counter() - start


def steps(kind: str, limit: int, count: int = 0) -> dict[str, Any]:
    """limit 歩の、一歩の秒（中央値）と損失。一つのバッチの計算が、その精度の行列積の速さの何割に当たるか。"""
    trainer, ready = build(kind, count, max_steps=limit + 1, lr_scheduler_type="constant")
    trainer.add_callback(watch := Watch())
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    with FlopCounterMode(display=False) as counter:
        trainer.training_step(trainer.model, dict(batch))
    start = time.perf_counter()
    trainer.training_step(trainer.model, dict(batch))
    done = counter.get_total_flops() / (time.perf_counter() - start) / 1e9
    _, rate, speedup = race()
    share = done / (rate * (speedup if KINDS[kind][1:] != ("float32", False) else 1))
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"step": statistics.median(watch.seconds[1:]), "ready": ready, "share": share, "losses": losses[:limit]}


def compared(found: dict[str, tuple[dict[str, Any], float]]) -> pd.DataFrame:
    """一歩の速さの表。"""
    table, base = {}, found[STOCK][0]
    for kind, (row, memory) in found.items():
        gap = max(abs(a - b) for a, b in zip(row["losses"], base["losses"], strict=True))
        cells = [f"{row['step']:.2f}", f"{base['step'] / row['step']:.2f}", f"{row['share']:.0%}", f"{memory:.1f}"]
        table[kind] = [*cells, *(f"{row['losses'][place]:.4f}" for place in (0, 9, -1)), f"{gap:.1e}"]
    names = "1ステップの秒 速さの比 行列積の速さの メモリ(GiB) 損失(1) 損失(10) 損失(20) 損失の差の最大"
    return pd.DataFrame(table, index=names.split()).T


def grown(found: dict[str, dict[int, dict[str, Any]]]) -> pd.DataFrame:
    """例の数 → 1 エポックの秒（準備 + 1 ステップの秒 × ステップ数。5 回だけ測る）。図を FOLDER に書く。"""
    rows = [{"step": size} for size in SIZES]
    for kind, sizes in found.items():
        for row, (size, made) in zip(rows, sizes.items(), strict=True):
            row |= {kind: made["ready"] + made["step"] * size / PROFILE.sft_batch, f"{kind}: 準備": made["ready"]}
    figure = curve(rows, list(found), "1 エポックの秒（準備と、5 ステップから見積もった学習）", "例の数")
    figure.axes[0].set(xscale="log", yscale="log")
    figure.savefig(FOLDER / "growth.png")
    return pd.DataFrame(rows).rename(columns={"step": "例の数"}).set_index("例の数").round(1)


def answer_speed() -> tuple[int, float, float]:
    """問題の数、まとめて答えた秒、1 問ずつ答えた秒。学習したアダプタで測る（止まり方が本番と同じになる）。"""
    prepare_cpu(PROFILE)
    model, tokenizer = load_model(FOLDER / "04_lora_sft" / "adapter", PROFILE), load_tokenizer(resolve(PROFILE))
    prompts, seconds = [render(tokenizer, example.prompt()) for example in make_split(PROFILE).near], []
    answer_prompts(model, tokenizer, prompts[:2], PROFILE)
    for groups in ([prompts], [[prompt] for prompt in prompts]):
        start = time.perf_counter()
        for group in groups:
            answer_prompts(model, tokenizer, group, PROFILE)
        seconds.append(time.perf_counter() - start)
    return len(prompts), *seconds


def ours() -> tuple[float, float]:
    """この教材の 02〜04 をそのまま実行した、学習の秒数と、言い換え（近い）の正答率。"""
    shutil.rmtree(FOLDER, ignore_errors=True)
    command = [sys.executable, "-m", "lib.execute", "--run", FOLDER.name, "--no-index", "02_dataset", "03_baseline"]
    subprocess.run([*command, "04_lora_sft"], cwd=REPOSITORY, check=True)
    metrics = reopen(FOLDER.name).metrics("04_lora_sft")
    return metrics["train_seconds"], metrics["near_accuracy"]


def stock(seconds: float, target: float) -> tuple[float, float, float]:
    """素の書き方で、目標の正答率に着くまで（または CAP 倍の時間まで）学習した秒、正答率、エポック。"""
    watch, batch = Watch(target, CAP * seconds), {"per_device_train_batch_size": 4}
    batch |= {"gradient_accumulation_steps": 4, "num_train_epochs": 30}
    trainer, _ = build(STOCK, rank=16, learning_rate=2e-4, **batch)
    trainer.add_callback(watch)
    trainer.train()
    return sum(watch.seconds), watch.score, trainer.state.epoch


def measured(work: Any, *given: Any) -> tuple[Any, float]:
    """測った値と、その間のメモリの最大（GiB。子のプロセスも）。"""
    result = work(*given)
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return result, max(usage) * (1 if sys.platform == "darwin" else 1024) / 2**30


def main() -> None:
    """どれも、それぞれ新しいプロセスで測り（精度の設定はプロセスに一つ）、Markdown の表で出す。"""
    parser = argparse.ArgumentParser(description="学習の速さを、広く書かれている素の書き方と比べる")
    parser.add_argument("--quick", action="store_true", help="一歩の速さの比だけ（6 分ほど）")
    parser.add_argument("--machine", default="", help="機械の説明。付けると data/recorded/bench.json に残す")
    options = parser.parse_args()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as fresh:

        def run(work: Any, *given: Any) -> Any:
            return fresh.submit(measured, work, *given).result()

        speed = {kind: run(steps, kind, 20) for kind in KINDS}
        print(f"\n{compared(speed).to_markdown()}\n", flush=True)
        if options.quick:
            return
        (seconds, near), memory = run(ours)
        (count, together, alone), _ = run(answer_speed)
        (spent, score, epochs), needed = run(stock, seconds, target := min(near, 0.95))
        growth = {kind: {size: run(steps, kind, 5, size)[0] for size in SIZES} for kind in (STOCK, OURS)}
    print(f"{grown(growth).to_markdown()}\n\nまとめて答える / 1 問ずつ: {alone / together:.1f} 倍（{count} 問）")
    print(f"この教材: {seconds:.0f} 秒で {near:.1%}（最大メモリ {memory:.1f} GiB）")
    word = "" if score >= target else "（時間切れ。比は、これ以上）"
    print(f"素の書き方: {spent:.0f} 秒、{epochs:.0f} エポックで {score:.1%}{word}（最大メモリ {needed:.1f} GiB）")
    print(f"{target:.1%} までの時間: {spent / seconds:.1f} 倍")
    if options.machine:
        record = {"date": time.strftime("%Y-%m-%d"), "machine": options.machine, "versions": versions()}
        record |= {"step": speed, "growth": growth, "near": [seconds, near], "stock": [spent, score, epochs]}
        print(write_json(REPOSITORY / "data" / "recorded" / "bench.json", record))


if __name__ == "__main__":
    main()
