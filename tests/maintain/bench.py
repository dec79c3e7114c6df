"""`make bench`: 同じ機械・同じ実行の中で、この教材の学習と、広く書かれている素の書き方を比べる。

素の書き方は、TRL の SFTTrainer、バッチ 4 × 累積 4、学習率 2e-4、最長に合わせたパディング、全位置のロジット。
速さは機械しだいなのでテストにはせず、比だけを見る。ほかの重い処理を止めてから実行すること。

部分だけなら: python tests/maintain/bench.py step | answer | ours | stock
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from lib.data.facts import make_split
from lib.files import REPOSITORY, read_json, write_json
from lib.model.generate import answer, answer_prompts, render
from lib.model.load import fastest_threads, load_model, load_tokenizer, prepare_cpu, resolve
from lib.profiles import get_profile
from lib.run import OUTPUTS, open_run
from lib.score.answers import accuracy
from lib.train.trainers import AnswerOnlyTrainer

PROFILE = get_profile("embedded")
FOLDER = OUTPUTS / "bench"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CAP = 3.3  # 素の書き方は、この教材の何倍の時間まで待つか。届かなければ「○倍以上」とだけ言う


class FullLogitsTrainer(SFTTrainer):
    """全位置のロジットを作る、ふつうの損失（TRL 1.16 の融合した出力層は CPU では遅いので、速いほうを相手にする）。"""

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        return Trainer.compute_loss(self, *given, **named)


def build(trainer_class: type[SFTTrainer], lora_from: int = 0, **settings: Any) -> SFTTrainer:
    """埋め込みモデルと 112 例で Trainer を作る。"""
    set_seed(0)
    folder = resolve(PROFILE)
    model = load_model(folder, PROFILE)
    lora = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": LINEAR}
    lora["layers_to_transform"] = list(range(lora_from, model.config.num_hidden_layers))
    trainer = trainer_class(
        model=model, train_dataset=Dataset.from_list([e.sft_row() for e in make_split(PROFILE).train]),
        processing_class=load_tokenizer(folder), peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
        args=SFTConfig(
            output_dir=str(FOLDER / "trainer"), max_length=PROFILE.max_length, activation_checkpointing=False,
            save_strategy="no", seed=0, **PROFILE.trainer_arguments(), **settings,
        ),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def step() -> dict[str, Any]:
    """同じバッチで、順伝播・逆伝播・更新だけの速さ（tokens/s）を交互に測る。"""
    said = prepare_cpu()
    makers = {"TRL そのまま": (SFTTrainer, 0), "全位置のロジット": (FullLogitsTrainer, 0)}
    makers |= {"この教材の損失": (AnswerOnlyTrainer, 0), "同じく、下の 10 層を外す": (AnswerOnlyTrainer, 10)}
    trainers = {name: build(*how, per_device_train_batch_size=PROFILE.sft_batch) for name, how in makers.items()}
    weights = {name: [p for p in t.model.parameters() if p.requires_grad] for name, t in trainers.items()}
    # 学習率 0: 重みを動かさず、どのバッチでも損失が比べられる
    optimizers = {name: torch.optim.AdamW(trained, lr=0.0) for name, trained in weights.items()}
    rates: dict[str, list[float]] = {name: [] for name in trainers}
    losses: dict[str, list[float]] = {name: [] for name in trainers}
    first = trainers["TRL そのまま"]
    for number, batch in enumerate(islice(first.get_train_dataloader(), 10)):
        for name, trainer in trainers.items():
            trainer.model.train()
            start = time.perf_counter()
            loss = trainer.compute_loss(trainer.model, dict(batch))
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            seconds = time.perf_counter() - start
            losses[name].append(loss.item())
            if number:  # 1 つ目のバッチは準備が混じる
                rates[name].append(int(batch["attention_mask"].sum()) / seconds)
    speed = {name: statistics.median(values) for name, values in rates.items()}
    base, (_, gflops) = sum(p.numel() for p in first.model.parameters() if not p.requires_grad), fastest_threads()
    share = {name: 4 * base * rate / 1e9 / gflops for name, rate in speed.items()}
    plain = losses["全位置のロジット"]
    gaps = {name: max(abs(a - b) for a, b in zip(values, plain, strict=True)) for name, values in losses.items()}
    found = {"threads": said, "matmul_gflops": gflops, "tokens_per_second": speed}
    return {**found, "share_of_matmul": share, "loss_difference": gaps}


def answer_speed() -> dict[str, Any]:
    """まとめて答えるのと、1 問ずつ答えるのの比。学習したアダプタがあればそれで測る（止まり方が本番と同じになる）。"""
    prepare_cpu()
    adapter, folder = FOLDER / "04_lora_sft" / "adapter", resolve(PROFILE)
    model, tokenizer = load_model(adapter if adapter.exists() else folder, PROFILE), load_tokenizer(folder)
    prompts = [render(tokenizer, e.prompt()) for e in make_split(PROFILE).near]
    answer_prompts(model, tokenizer, prompts[:2], PROFILE)
    start = time.perf_counter()
    together = answer_prompts(model, tokenizer, prompts, PROFILE)
    half = time.perf_counter()
    alone = [answer_prompts(model, tokenizer, [prompt], PROFILE)[0] for prompt in prompts]
    seconds = {"batched_seconds": half - start, "one_by_one_seconds": time.perf_counter() - half}
    same = sum(a == b for a, b in zip(together, alone, strict=True))
    return {"questions": len(prompts), **seconds, "same_answers": same}


def ours() -> dict[str, Any]:
    """この教材の 02〜04 をそのまま実行し、学習の秒数と、言い換え（近い）の正答率を読む。"""
    shutil.rmtree(FOLDER, ignore_errors=True)
    command = [sys.executable, "-m", "lib.execute", "--run", FOLDER.name, "--no-index", "02_dataset", "03_baseline"]
    subprocess.run([*command, "04_lora_sft"], cwd=REPOSITORY, check=True)
    metrics = open_run("embedded", FOLDER.name).metrics("04_lora_sft")
    return {"seconds": metrics["train_seconds"], "accuracy": metrics["near_accuracy"]}


class UntilAccurate(TrainerCallback):
    """1 エポックごとに正答率を測り（その時間は数えない）、目標か時間切れで止める。"""

    def __init__(self, target: float, cap: float) -> None:
        self.target, self.cap, self.spent, self.reached = target, cap, 0.0, False
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= self.spent + time.perf_counter() - self.start > self.cap

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.spent += time.perf_counter() - self.start
        model, near = given["model"].eval(), make_split(PROFILE).near
        score = accuracy(near, answer(model, given["processing_class"], near, PROFILE))
        model.train()
        self.history.append({"epoch": state.epoch, "seconds": round(self.spent, 1), "accuracy": score})
        print(self.history[-1], flush=True)
        self.reached = score >= self.target
        control.should_training_stop |= self.reached
        self.start = time.perf_counter()


def stock() -> dict[str, Any]:
    """素の書き方で、この教材と同じ正答率に着くまで（または CAP 倍の時間まで）学習する。"""
    goal = read_json(FOLDER / "ours.json")
    watch = UntilAccurate(goal["accuracy"], CAP * goal["seconds"])
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    trainer = build(FullLogitsTrainer, learning_rate=2e-4, num_train_epochs=30, **batch)
    trainer.add_callback(watch)
    trainer.train()
    return {"seconds": watch.spent, "reached": watch.reached, "history": watch.history}


PARTS = {"ours": ours, "answer": answer_speed, "step": step, "stock": stock}


def child(part: str) -> None:
    """一つの部分を測り、最大メモリとともに書く。"""
    result = PARTS[part]()
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 1 if sys.platform == "darwin" else 1024
    write_json(FOLDER / f"{part}.json", {**result, "peak_gib": max(usage) * unit / 2**30})


def report() -> None:
    """測ったものを一枚の表にする。"""
    a, b, s, k = (read_json(FOLDER / f"{part}.json") for part in PARTS)
    speed, last = s["tokens_per_second"], k["history"][-1]
    print(f"\n{s['threads']}、行列積 {s['matmul_gflops']:.0f} GFLOP/s")
    for name, rate in speed.items():
        share, gap = s["share_of_matmul"][name], s["loss_difference"][name]
        print(f"  {name:<16} {rate:6.0f} tokens/s   行列積の {share:.0%}   損失の差 {gap:.1e}")
    step_ratio = speed["この教材の損失"] / speed["全位置のロジット"]
    print(f"同じバッチの 1 ステップ（同じ LoRA、全位置のロジット比）: {step_ratio:.2f} 倍")
    print(f"まとめて答える / 1 問ずつ: {b['one_by_one_seconds'] / b['batched_seconds']:.1f} 倍（{b['questions']} 問）")
    print(f"この教材: {a['seconds']:.0f} 秒で {a['accuracy']:.1%}（最大メモリ {a['peak_gib']:.1f} GiB）")
    print(f"素の書き方: {k['seconds']:.0f} 秒（最大メモリ {k['peak_gib']:.1f} GiB）")
    word = "" if k["reached"] else f"以上（{last['epoch']:.0f} エポックで {last['accuracy']:.1%}、時間切れ）"
    print(f"同じ正答率までの時間: {k['seconds'] / a['seconds']:.1f} 倍{word}")


if __name__ == "__main__":
    if sys.argv[1:]:
        child(sys.argv[1])
    else:
        for part in PARTS:
            print(f"■ {part}", flush=True)
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            subprocess.run([sys.executable, __file__, part], cwd=REPOSITORY, check=True, env=environment)
        report()
