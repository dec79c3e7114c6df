"""`make bench`: 同じ機械・同じ実行の中で、この教材の学習と、広く書かれている素の書き方を比べる。

素の書き方は、TRL の SFTTrainer、バッチ 4 × 累積 4、学習率 2e-4、最長に合わせたパディング、全位置のロジット。
速さは機械しだいなのでテストにはせず、比だけを見る。ほかの重い処理を止めてから実行すること。
"""

import multiprocessing
import resource
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from lib.data.facts import make_split
from lib.files import REPOSITORY
from lib.model.generate import answer, answer_prompts, render
from lib.model.load import load_model, load_tokenizer, prepare_cpu, race, resolve
from lib.profiles import get_profile
from lib.run import OUTPUTS, reopen
from lib.score.answers import accuracy
from lib.train.trainers import AnswerOnlyTrainer

PROFILE = get_profile("embedded")
FOLDER = OUTPUTS / "bench"
CAP = 3.3  # 素の書き方は、この教材の何倍の時間まで待つか。届かなければ「○倍以上」とだけ言う


class FullLogitsTrainer(SFTTrainer):
    """全位置のロジットを作る、ふつうの損失（TRL 1.16 の融合した出力層は CPU では遅いので、速いほうを相手にする）。"""

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        return Trainer.compute_loss(self, *given, **named)


def build(trainer_class: type[SFTTrainer], **settings: Any) -> SFTTrainer:
    """埋め込みモデルと 112 例で Trainer を作る。"""
    set_seed(0)
    folder, rows = resolve(PROFILE), [example.sft_row() for example in make_split(PROFILE).train]
    settings |= {"output_dir": str(FOLDER / "trainer"), "max_length": PROFILE.max_length, "seed": 0}
    settings |= {"save_strategy": "no", "activation_checkpointing": False, **PROFILE.trainer_arguments()}
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    given = {"train_dataset": Dataset.from_list(rows), "processing_class": load_tokenizer(folder), "peft_config": lora}
    trainer = trainer_class(load_model(folder, PROFILE), SFTConfig(**settings), **given)
    trainer.remove_callback(PrinterCallback)
    return trainer


def step(batches: int = 10) -> tuple[str, dict[str, float], float]:
    """CPU の準備、同じバッチの順伝播・逆伝播・更新だけの速さ（tokens/s）、損失の差の最大。速さは交互に測る。"""
    said = f"{prepare_cpu(PROFILE).precision}、行列積 {race()[1]:.0f} GFLOP/s"
    kinds = {"全位置のロジット": FullLogitsTrainer, "この教材の損失": AnswerOnlyTrainer}
    given = {"per_device_train_batch_size": PROFILE.sft_batch, "learning_rate": 0.0}  # どのバッチでも損失が比べられる
    trainers = {name: build(kind, **given) for name, kind in kinds.items()}
    rates, losses = ({name: list[float]() for name in trainers} for _ in range(2))
    for trainer in trainers.values():
        trainer.create_optimizer()
        trainer.model.train()
    for batch in islice(trainers["この教材の損失"].get_train_dataloader(), batches):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            loss = trainer.compute_loss(trainer.model, dict(batch))
            loss.backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            rates[name].append(int(batch["attention_mask"].sum()) / (time.perf_counter() - start))
            losses[name].append(loss.item())
    gap = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    return said, {name: statistics.median(values[1:]) for name, values in rates.items()}, gap  # 初めは準備が混じる


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


class UntilAccurate(TrainerCallback):
    """1 エポックごとに正答率を測り（その時間は数えない）、目標か時間切れで止める。"""

    def __init__(self, cap: float, target: float) -> None:
        self.target, self.cap, self.spent, self.score = target, cap, 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= self.spent + time.perf_counter() - self.start > self.cap

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.spent += time.perf_counter() - self.start
        model, near = given["model"].eval(), make_split(PROFILE).near
        self.score = accuracy(near, answer(model, given["processing_class"], near, PROFILE))
        model.train()
        print(f"{state.epoch:.0f} エポック、{self.spent:.0f} 秒で {self.score:.1%}", flush=True)
        control.should_training_stop |= self.score >= self.target
        self.start = time.perf_counter()


def stock(seconds: float, target: float) -> tuple[float, float, float]:
    """素の書き方で、この教材と同じ正答率に着くまで（または CAP 倍の時間まで）学習した秒、正答率、エポック。"""
    watch, batch = UntilAccurate(CAP * seconds, target), {"per_device_train_batch_size": 4}
    batch |= {"gradient_accumulation_steps": 4, "num_train_epochs": 30}
    trainer = build(FullLogitsTrainer, learning_rate=2e-4, **batch)
    trainer.add_callback(watch)
    trainer.train()
    return watch.spent, watch.score, trainer.state.epoch


def measured(work: Any, *given: Any) -> tuple[Any, float]:
    """測った値と、その間のメモリの最大（GiB。子のプロセスも）。"""
    result = work(*given)
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return result, max(usage) * (1 if sys.platform == "darwin" else 1024) / 2**30


def main() -> None:
    """四つを、それぞれ新しいプロセスで測り、比を出す。"""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as fresh:
        first = [fresh.submit(measured, work).result() for work in (ours, answer_speed, step)]
        ((seconds, target), memory), ((count, together, alone), _), ((said, speed, gap), _) = first
        (spent, score, epochs), needed = fresh.submit(measured, stock, seconds, target).result()
    plain, packed = speed.values()
    rates = "、".join(f"{name} {rate:.0f} tokens/s" for name, rate in speed.items())
    print(f"\n{said}\n同じバッチの 1 ステップ: {packed / plain:.2f} 倍（{rates}、損失の差 {gap:.1e}）")
    print(f"まとめて答える / 1 問ずつ: {alone / together:.1f} 倍（{count} 問）")
    print(f"この教材: {seconds:.0f} 秒で {target:.1%}（最大メモリ {memory:.1f} GiB）")
    print(f"素の書き方: {spent:.0f} 秒（最大メモリ {needed:.1f} GiB）")
    word = "" if score >= target else f"以上（{epochs:.0f} エポックで {score:.1%}、時間切れ）"
    print(f"同じ正答率までの時間: {spent / seconds:.1f} 倍{word}")


if __name__ == "__main__":
    main()
