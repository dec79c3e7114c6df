"""教材の裏方。import は下へだけ: talk→execute→show→score・train・export→model→data→run→text・profiles・files。"""

import logging
import os
import warnings

# 利用状況を送らない。読込みの進み具合をノートブックに何十本も残さない。fork した子で tokenizers が警告を出さない。
_QUIET = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
for _name in (*_QUIET, "PYDEVD_DISABLE_FILE_VALIDATION", "TRL_EXPERIMENTAL_SILENCE"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# PEFT が呼ぶ transformers の旧名への警告。利用者にできることは無い。
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
# bitsandbytes は、速い NF4 の計算をハブから取れないと知らせる。遅いだけで値は同じ。
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
