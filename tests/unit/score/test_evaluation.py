"""段の比べ方: 偶然に出る割合と、重みを付けた差。"""

import pytest
from conftest import exam_sheet

from lib.score.exam import chance, gain, weighted_gain

BEFORE, AFTER = exam_sheet("base", {"general": 3}), exam_sheet("SFT", {"near": 1, "far": 12})


def test_a_gain_by_chance_is_rare():
    assert chance(BEFORE, AFTER, "near") < 0.01 < chance(BEFORE, AFTER, "far")


def test_weights_combine_the_parts():
    near = weighted_gain(BEFORE, AFTER, {"near": 1.0, "far": 0.0})
    assert near == gain(BEFORE, AFTER, "near")
    both = weighted_gain(BEFORE, AFTER, {"near": 0.5, "general": 0.5})
    assert both.value == pytest.approx(0.5 * 1.0 - 0.5 / 3) and both.low < both.value < both.high
