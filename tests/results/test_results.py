"""終わった実行の指標を、記録した期待値と比べる（`make compare`）。README の表は、記録済みの結果のとおり。

許す幅は三つのシードのばらつきから決めてある。`make test` では実行が無いので、比べ方そのものだけを確かめる。
"""

import os
import warnings

import pytest
from conftest import python
from maintain.readme_table import LABELS, README, SEEDS, filled
from maintain.record import EXPECTED, allowed, collect, expected_from, precision

from lib.files import read_json, write_json
from lib.run import STAGES, open_run, reopen

EVERYTHING = read_json(EXPECTED)


def compared(run):
    """終わった実行の（指標の値, 期待値, 幅の倍率）。期待値に無い精度なら、幅を広げると警告する。"""
    missing = f"プロファイル {run.profile.name} の期待値はまだありません。tests/README.md の手順で作ってください。"
    assert run.profile.name in EVERYTHING, missing
    expected, ours, times = EVERYTHING[run.profile.name], precision(run), 1
    if ours not in expected["precision"].split("・"):
        times, kinds = 3, f"精度 {ours} の期待値は記録していないので、{expected['precision']} の期待値"
        warnings.warn(f"{kinds}と、{times} 倍の幅で比べます（別の精度の学習は、別のシードほどに動く）", stacklevel=1)
    return collect(run), expected["metrics"], times


FOUND, RULES, TIMES = compared(reopen(os.environ["RUN"])) if os.environ.get("RUN") else ({}, {}, 1)


@pytest.mark.parametrize(("name", "rule"), RULES.items(), ids=str)
def test_the_metric_stays_in_its_range(name, rule, record_property):
    record_property("value", FOUND.get(name))
    limit = f"≤ {rule['at_most']:g}" if "at_most" in rule else f"{rule['value']:.4g} ± {TIMES * rule['tolerance']:.2g}"
    assert allowed(FOUND.get(name), rule, TIMES), f"{name}: 実測 {FOUND.get(name)}、許す範囲 {limit}（{rule['why']}）"


def test_a_drifted_or_missing_metric_turns_red():
    runs = [{"a.x_accuracy": value, "01_concepts.lora_max_difference": 1e-7} for value in (0.95, 0.97, 0.96)]
    for rule, good, wrong in zip(expected_from(runs).values(), (0.95, 1e-7), (0.5, 1.0), strict=True):
        assert allowed(good, rule) and not any(allowed(value, rule, 3) for value in (wrong, None, float("nan")))


def test_expected_values_cover_the_promises_of_the_readme():
    expected = EVERYTHING["embedded"]
    assert len(set(expected["seeds"])) >= 3 and all(rule["why"] for rule in expected["metrics"].values())
    value = {name: rule.get("value") for name, rule in expected["metrics"].items()}
    assert value["03_baseline.near_accuracy"] <= 0.05 and value["07_evaluation.sft_near_accuracy"] >= 0.90
    assert value["07_evaluation.sft_unseen_accuracy"] <= 0.05 and value["06_merge_to_gguf.f16_token_agreement"] >= 0.99


def test_make_compare_turns_red_when_far_or_general_falls_to_zero(tmp_path):
    """記録どおりの、終わった実行の、ほかは一つも赤くならない。期待値に無い精度なら、幅を広げたと一行で言い、それでも赤い。"""
    found = read_json(SEEDS)["embedded"]["0"]
    zero = {f"sft_{part}_accuracy": 0.0 for part in ("far", "general", "ordinary")}
    run = open_run("embedded", "done", outputs=tmp_path)
    write_json(run.folder / "precision.json", {"precision": "float32"})
    for stage in STAGES:
        run.finish(stage, found[stage] | (zero if stage == "07_evaluation" else {}))
    command = ("-m", "pytest", "tests/results", "-k", "stays_in_its_range")
    done = python(*command, RUN="done", WORKSHOP_OUTPUTS=str(tmp_path))
    assert done.returncode == 1 and "3 failed" in done.stdout, done.stdout[-2000:]
    assert all(f"{name}: 実測 0.0、" in done.stdout for name in zero)
    write_json(run.folder / "precision.json", {"precision": "bfloat16"})
    done = python(*command, RUN="done", WORKSHOP_OUTPUTS=str(tmp_path))
    assert done.returncode == 1 and "精度 bfloat16 の期待値は記録していない" in done.stdout


def test_the_readme_is_short_and_shows_the_recorded_numbers():
    text, seeds = README.read_text(encoding="utf-8"), read_json(SEEDS)
    assert len(text.encode()) <= 13_000 and len(text.splitlines()) <= 160
    assert text.count("<!-- 結果の表 -->") == 1
    assert filled(text, seeds) == text, "python tests/maintain/readme_table.py で書き直してください"
    first = seeds["embedded"]["0"]
    first["right"] = {part: {f"f{n}": ["00", "11", "11"] for n in range(9)} for part in LABELS}
    assert "| 学習前 → SFT、言い換え（近い） | p = 0.0039、上がった |" in filled(text, seeds)
    first["07_evaluation"]["sft_near_accuracy"] = 0.51  # 別の記録なら、表が変わる
    assert "| 51 / " in filled(text, seeds) != text
