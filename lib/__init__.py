"""ファインチューニング実践ワークショップの裏方。

学習者が理解すべきもの（LoRA 層、学習設定、DPO の損失）はノートブックに書き、
ここには気を散らすもの（モデル探し、採点、図、llama.cpp との会話）だけを置く。
依存は一方向: notebooks → plots → 各段の部品 → models / profiles / workspace → errors。
"""

import logging
import os
import warnings

# TRL と huggingface_hub は既定で利用状況を送る。教材は何も送らない。
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
# fork した子で tokenizers が警告を出すのを防ぐ。
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# 進み具合は教材が自分で見せる。読込みの棒が実行済みのノートブックに何十本も残らないように。
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
# PEFT が呼ぶ transformers の旧名への警告。利用者にできることは無い。
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
# bitsandbytes は、速い NF4 の計算をハブから取れないと知らせる。遅いだけで値は同じ。教材の CPU の学習は NF4 を使わない。
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
