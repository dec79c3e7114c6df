"""README の表が、記録済みの結果のとおりであること。README は短いままであること。"""

from maintain.readme_table import README, SEEDS, filled

from lib.files import read_json


def test_the_readme_is_short_and_shows_the_recorded_numbers():
    text, seeds = README.read_text(encoding="utf-8"), read_json(SEEDS)["embedded"]
    assert len(text.encode()) <= 13_000 and len(text.splitlines()) <= 160
    assert text.count("<!-- 結果の表 -->") == 1
    assert filled(text, seeds) == text, "python tests/maintain/readme_table.py で書き直してください"
    seeds["0"]["07_evaluation"]["sft_near_accuracy"] = 0.5  # 別の記録なら、表が変わる
    assert "50.0" in filled(text, seeds) != text
