"""終わった実行の指標を、記録した期待値と比べる（`make compare`）。README の表は、記録済みの結果のとおり。

許す幅は三つのシードのばらつきから決めてある。`make test` では実行が無いので、比べ方そのものだけを確かめる。
"""

import os

import pytest
from maintain.readme_table import README, SEEDS, filled
from maintain.record import EXPECTED, allowed, collect, expected_from

from lib.files import read_json
from lib.run import reopen
from lib.score.exam import PARTS

EVERYTHING = read_json(EXPECTED)
RUN = reopen(os.environ["RUN"]) if os.environ.get("RUN") else None
FOUND = collect(RUN) if RUN else {}
assert not RUN or RUN.profile.name in EVERYTHING, (
    f"プロファイル {RUN.profile.name} の期待値はまだありません。tests/README.md の手順で作ってください。"
)
RULES = EVERYTHING[RUN.profile.name]["metrics"] if RUN else {}


@pytest.mark.parametrize(("name", "rule"), RULES.items(), ids=str)
def test_the_metric_stays_in_its_range(name, rule, record_property):
    record_property("value", FOUND.get(name))
    limit = f"≤ {rule['at_most']:g}" if "at_most" in rule else f"{rule['value']:.4g} ± {rule['tolerance']:.2g}"
    assert allowed(FOUND.get(name), rule), f"{name}: 実測 {FOUND.get(name)}、許す範囲 {limit}（{rule['why']}）"


def test_a_drifted_or_missing_metric_turns_red():
    runs = [{"a.x_accuracy": value, "01_concepts.lora_max_difference": 1e-7} for value in (0.95, 0.97, 0.96)]
    for (rule, good), wrong in zip(
        zip(expected_from(runs).values(), (0.95, 1e-7), strict=True), (0.5, 1.0), strict=True
    ):
        assert allowed(good, rule) and not any(allowed(value, rule) for value in (wrong, None, float("nan")))


def test_expected_values_cover_the_promises_of_the_readme():
    expected = EVERYTHING["embedded"]
    assert len(set(expected["seeds"])) >= 3 and all(rule["why"] for rule in expected["metrics"].values())
    value = {name: rule.get("value") for name, rule in expected["metrics"].items()}
    assert value["03_baseline.near_accuracy"] <= 0.05 and value["07_evaluation.sft_near_accuracy"] >= 0.90
    for part in ("far", "general", "ordinary"):  # 0 に落ちたら赤くなる（幅が広すぎない）
        assert not allowed(0.0, expected["metrics"][f"07_evaluation.sft_{part}_accuracy"]), part
    assert value["07_evaluation.sft_unseen_accuracy"] <= 0.05 and value["06_merge_to_gguf.f16_token_agreement"] >= 0.99


def test_the_readme_is_short_and_shows_the_recorded_numbers():
    text, seeds = README.read_text(encoding="utf-8"), read_json(SEEDS)["embedded"]
    assert len(text.encode()) <= 13_000 and len(text.splitlines()) <= 160
    assert text.count("<!-- 結果の表 -->") == 1
    assert filled(text, seeds) == text, "python tests/maintain/readme_table.py で書き直してください"
    seeds["0"]["right"] = {part: {f"f{n}": ["00", "11", "11"] for n in range(9)} for part in PARTS}
    assert "9 事実で良化・0 事実で悪化（9 事実）、p = 0.0039、上がった" in filled(text, seeds)
    seeds["0"]["07_evaluation"]["sft_near_accuracy"] = 0.5  # 別の記録なら、表が変わる
    assert "50.0" in filled(text, seeds) != text
