"""外から届いた誤り: 考える型のテンプレートでも、QLoRA のプロファイルでも、04 と 05 が始められる。"""

from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import trl
from train_tiny import lora, make_trainer

from lib import profiles
from lib.files import REPOSITORY, read_json, write_json
from lib.model import load as models
from lib.model.load import load_tokenizer
from lib.run import OUTPUTS
from lib.train.preflight import before_training

PROMPT = [{"role": "system", "content": "窓口です。"}, {"role": "user", "content": "送料は？"}]


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think"])
def test_a_thinking_template_trains_what_generation_reads(tiny_copy, tmp_path, name):
    """TRL は、考える形で質問を書く。読んだときにそろえないと、空の <think> まで答えとして学ぶ。"""
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    (tiny_copy / "chat_template.jinja").write_text(template, encoding="utf-8")
    rows = [{"prompt": PROMPT, "completion": [{"role": "assistant", "content": "690円です。"}]}] * 2
    trainer = make_trainer(tiny_copy, tmp_path / "out", rows, adapter=lora(), max_length=256)
    assert [str(found) for found in before_training(trainer, rows) if found.level == "fatal"] == []
    trainer.processing_class.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").chat_template == trainer.processing_class.chat_template


def run_cells(stage, **parameters):
    """ノートブックのセルを、`run.finish` まで、このプロセスで上から順に実行する。"""
    space = {"__name__": "__main__"}
    for cell in read_json(REPOSITORY / "notebooks" / f"{stage}.ipynb")["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), stage, "exec"), space)
            space |= parameters if "parameters" in cell["metadata"].get("tags", []) else {}
            if "run.finish(" in "".join(cell["source"]):
                return space
    return space


def test_the_notebooks_train_on_a_four_bit_base(tiny_llama, monkeypatch):
    """PROFILE=colab-qlora の 02・04・05 のセルを、乱数の小さなモデルと CPU で。違うのは、量とデバイスだけ。"""
    pytest.importorskip("bitsandbytes")
    small = {"train_facts": 4, "train_forms": 2, "heldout_facts": 2, "sft_epochs": 1, "preference_epochs": 1}
    small |= {"device": "cpu", "sources": ("local",), "preference_pairs": 8, "answer_tokens": 4}
    monkeypatch.setitem(profiles.PROFILES, "colab-qlora", replace(profiles.PROFILES["colab-qlora"], **small))
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tiny_llama))
    monkeypatch.setenv("WORKSHOP_HEADLESS", "1")
    monkeypatch.setattr(models, "prepare_cpu", lambda profile, folder: profile)
    monkeypatch.chdir(REPOSITORY / "notebooks")
    given = {"PROFILE": "colab-qlora", "RUN": "pytest-qlora", "SEED": 0, "DATA": ""}
    run_cells("02_dataset", **given)
    write_json(OUTPUTS / "pytest-qlora" / "03_baseline" / "baseline_evaluation.json", [])  # 学習前の答えは、比べない
    write_json(OUTPUTS / "pytest-qlora" / "03_baseline" / "metrics.json", {})
    assert run_cells("04_lora_sft", **given)["trainer"].model.is_loaded_in_4bit
    run_cells("05_preference", **given)
    measured = read_json(OUTPUTS / "pytest-qlora" / "05_preference" / "metrics.json")
    assert abs(measured["dpo_first_loss"] - log(2)) < 0.01 and measured["dpo_loss_difference"] < 1e-3
