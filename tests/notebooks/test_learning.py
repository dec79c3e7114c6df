"""本物のモデルが、本当に覚えるか。発表用の talk プロファイルで 04 だけを開き、見せていない言い回しで測る。"""

from conftest import ran

from lib.files import read_json
from lib.run import OUTPUTS

RUN = OUTPUTS / "pytest-talk"


def test_lora_opened_alone_makes_what_it_needs_and_teaches_facts_that_answer_unseen_phrasings():
    code, output = ran("--profile", "talk", "--run", RUN.name, "--no-index", "04_lora_sft", timeout=900)
    assert code == 0, output
    assert list(read_json(RUN / "stages.json")) == ["02_dataset", "03_baseline", "04_lora_sft"]
    metrics = [read_json(RUN / stage / "metrics.json") for stage in ("03_baseline", "04_lora_sft")]
    before, after = (found["near_accuracy"] for found in metrics)
    assert before <= 0.05 and after >= 0.5  # 4 問（2 事実 × 2）。試走では全問
