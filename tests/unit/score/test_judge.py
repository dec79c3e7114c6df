"""審判の偏りは数字に出る。鍵はどこにも出ない。"""

import pytest

from lib.errors import WorkshopError
from lib.score.judge import compare, judge_from_environment
from lib.score.pairs import read_choice

WRONG = [{"question": f"問い{n}", "reference": "690円", "answer": f"{n}円", "correct": False} for n in range(10)]
RIGHT = [{**row, "answer": "690円です", "correct": True} for row in WRONG]


def fair(question, a, b):
    assert "正解: 690円" in question
    return "A" if a == "690円です" else "B" if b == "690円です" else ""


def test_a_fair_judge_is_consistent_and_agrees_with_the_rule():
    found = compare(fair, WRONG, RIGHT)
    assert found.win == 1.0 and found.consistency.value == 1.0 and found.agreement.value == 1.0
    assert compare(fair, RIGHT, WRONG).win == 0.0


def test_a_judge_that_always_takes_the_first_is_exposed():
    found = compare(lambda question, a, b: "A", WRONG, RIGHT)
    assert found.win == 0.5 and found.consistency.value == 0.0 and found.agreement.value == 0.0
    assert compare(lambda question, a, b: "A", WRONG, WRONG).agreement is None


@pytest.mark.parametrize(
    "said, read",
    [
        ("A", "A"),
        ("答えは B です。", "B"),
        ("Ｂ", "B"),
        ("引き分け", ""),
        ("A と B は同じ", ""),
        ("Apple", ""),
        ("", ""),
        (" b です", "B"),
        ("I see a tie", ""),
    ],
)
def test_only_a_clear_choice_counts(said, read):
    assert read_choice(said) == read


def test_a_judge_that_does_not_answer_is_one_sentence_without_the_key(monkeypatch):
    monkeypatch.setenv("WORKSHOP_JUDGE_URL", "http://127.0.0.1:9/v1")  # 誰も待っていない口
    monkeypatch.setenv("WORKSHOP_JUDGE_KEY", "secret-key")
    with pytest.raises(WorkshopError, match="審判が答えません") as told:
        judge_from_environment()("送料は？", "一", "二")
    assert "secret-key" not in str(told.value)


def test_no_judge_is_needed(monkeypatch):
    monkeypatch.delenv("WORKSHOP_JUDGE_URL", raising=False)
    assert judge_from_environment() is None
