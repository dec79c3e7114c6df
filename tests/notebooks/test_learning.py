"""本物のモデルが、本当に覚えるか。発表用の talk プロファイルで 02〜04 を通し、見せていない言い回しで測る。"""

from conftest import ran

from lib.files import read_json
from lib.run import OUTPUTS

RUN = ("--run", "pytest-talk", "--no-index")


def test_lora_teaches_facts_that_answer_unseen_phrasings():
    code, output = ran("--profile", "talk", *RUN, "02_dataset", "03_baseline", "04_lora_sft", timeout=900)
    assert code == 0, output
    metrics = [read_json(OUTPUTS / RUN[1] / stage / "metrics.json") for stage in ("03_baseline", "04_lora_sft")]
    before, after = (found["near_accuracy"] for found in metrics)
    assert before <= 0.05 and after >= 0.5  # 4 問（2 事実 × 2）。試走では全問
