"""README の表が、録画のとおりであること。"""

import copy

import pytest

from lib.errors import WorkshopError
from lib.files import read_json
from lib.scoreboard import README, SEEDS, filled


@pytest.fixture(scope="module")
def seeds():
    return read_json(SEEDS)["embedded"]


def test_the_readme_shows_the_recorded_numbers(seeds):
    text = README.read_text(encoding="utf-8")
    assert text.count("<!-- 表: ") == 6
    assert filled(text, seeds) == text, "python -m lib.scoreboard で書き直してください"


def test_another_recording_changes_the_table(seeds):
    other = copy.deepcopy(seeds)
    other["0"]["07_evaluation"]["sft_near_accuracy"] = 0.5
    text = "<!-- 表: 結果 -->\n<!-- 表の終わり -->"
    assert filled(text, seeds) != filled(text, other)
    assert "50.0" in filled(text, other)


def test_an_unknown_table_is_one_sentence(seeds):
    with pytest.raises(WorkshopError, match="作れません"):
        filled("<!-- 表: 無い -->\n<!-- 表の終わり -->", seeds)
