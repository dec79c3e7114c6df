"""終わった実行の指標を、記録した期待値と比べる（`make compare`）。許す幅は三つのシードのばらつきから決めてある。

`make test` では実行が無いので、比べ方そのものだけを確かめる。
"""

import os

import pytest
from maintain.record import EXPECTED, allowed, collect, expected_from

from lib.files import read_json
from lib.run import reopen

RUN = os.environ.get("RUN", "")
EVERYTHING = read_json(EXPECTED)


@pytest.fixture(scope="session")
def found():
    """比べる実行の「段.名前」→ 値。"""
    return collect(reopen(RUN))


def rules():
    """比べる実行のプロファイルの期待値。実行が決まっていなければ空。"""
    if not RUN:
        return {}
    profile = reopen(RUN).profile.name
    assert profile in EVERYTHING, (
        f"プロファイル {profile} の期待値はまだありません。tests/README.md の手順で作ってください。"
    )
    return EVERYTHING[profile]["metrics"]


@pytest.mark.parametrize(("name", "rule"), rules().items(), ids=str)
def test_the_metric_stays_in_its_range(name, rule, found, record_property):
    record_property("value", found.get(name))
    limit = f"≤ {rule['at_most']:g}" if "at_most" in rule else f"{rule['value']:.4g} ± {rule['tolerance']:.2g}"
    assert allowed(found.get(name), rule), f"{name}: 実測 {found.get(name)}、許す範囲 {limit}（{rule['why']}）"


def test_a_drifted_or_missing_metric_turns_red():
    runs = [{"a.x_accuracy": value, "01_concepts.lora_max_difference": 1e-7} for value in (0.95, 0.97, 0.96)]
    expected = expected_from(runs)
    x, rounding = expected["a.x_accuracy"], expected["01_concepts.lora_max_difference"]
    assert allowed(0.95, x) and allowed(1e-7, rounding)
    assert not any(allowed(value, x) for value in (0.5, None, float("nan")))
    assert not any(allowed(value, rounding) for value in (1.0, None, float("nan")))


def test_expected_values_cover_the_promises_of_the_readme():
    expected = EVERYTHING["embedded"]
    assert len(set(expected["seeds"])) >= 3
    metrics = expected["metrics"]
    assert metrics["03_baseline.near_accuracy"]["value"] <= 0.05
    assert metrics["07_evaluation.sft_near_accuracy"]["value"] >= 0.90
    assert metrics["07_evaluation.sft_unseen_accuracy"]["value"] <= 0.05
    assert metrics["06_merge_to_gguf.f16_token_agreement"]["value"] >= 0.99
    assert all(rule["why"] for rule in metrics.values())
