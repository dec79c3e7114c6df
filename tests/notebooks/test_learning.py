"""本物のモデルが、本当に覚えるか。発表用の talk プロファイルで 02〜04 を通し、見せていない言い回しで測る。"""

import subprocess
import sys

from lib.files import REPOSITORY, read_json
from lib.run import OUTPUTS

RUN = "pytest-talk"


def test_lora_teaches_facts_that_answer_unseen_phrasings():
    command = [sys.executable, "-m", "lib.execute", "--profile", "talk", "--run", RUN, "--no-index"]
    result = subprocess.run([*command, "02_dataset", "03_baseline", "04_lora_sft"], cwd=REPOSITORY, timeout=900)
    assert result.returncode == 0
    folder = OUTPUTS / RUN
    before = read_json(folder / "03_baseline" / "metrics.json")
    after = read_json(folder / "04_lora_sft" / "metrics.json")
    assert before["near_accuracy"] <= 0.05
    assert after["near_accuracy"] >= 0.5  # 4 問（2 事実 × 2）。試走では全問
