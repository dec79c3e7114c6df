"""README の表が、記録済みの結果のとおりであること。README は短いままであること。"""

import copy

from maintain.readme_table import README, SEEDS, filled

from lib.files import read_json

TEXT = README.read_text(encoding="utf-8")


def test_the_readme_shows_the_recorded_numbers():
    seeds = read_json(SEEDS)["embedded"]
    assert TEXT.count("<!-- 結果の表 -->") == 1
    assert filled(TEXT, seeds) == TEXT, "python tests/maintain/readme_table.py で書き直してください"


def test_another_recording_changes_the_table():
    seeds = read_json(SEEDS)["embedded"]
    other = copy.deepcopy(seeds)
    other["0"]["07_evaluation"]["sft_near_accuracy"] = 0.5
    assert filled(TEXT, seeds) != filled(TEXT, other)
    assert "50.0" in filled(TEXT, other)


def test_the_readme_stays_short():
    assert len(TEXT.encode()) <= 13_000 and len(TEXT.splitlines()) <= 160
