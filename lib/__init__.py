"""ファインチューニング実践ワークショップの裏方。

学習者が理解すべきもの（LoRA 層、学習設定、DPO の損失）はノートブックに書き、気を散らすものだけをここに置く。
"""

import logging
import os
import warnings

# 利用状況を送らない。fork した子で tokenizers が警告を出さない。読込みの進み具合をノートブックに何十本も残さない。
_QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
_QUIET |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
# PEFT が呼ぶ transformers の旧名への警告。利用者にできることは無い。
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
# bitsandbytes は、速い NF4 の計算をハブから取れないと知らせる。遅いだけで値は同じ。
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
