"""練習: 空のままでも、間違えても、例外でも、静かに案内する。解答例は全部正解で、ヒントは答えを言わない。"""

import re
import sys
from functools import cache

import nbformat
import numpy
import pytest
import torch
from conftest import one_sentence

from lib.files import REPOSITORY
from lib.show.exercises import EXERCISES, MISSED, check

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("0[1-8]_*.ipynb"))
NUMBERS = sorted(EXERCISES)


@cache
def section(path):
    """「練習」から後ろのセル。"""
    cells = nbformat.read(path, as_version=4).cells
    return cells[next(i for i, cell in enumerate(cells) if cell.source.startswith("## 練習")) :]


def cells_of(number):
    """(問いの文, 答えのセルのコード)。"""
    cells = section(next(path for path in NOTEBOOKS if path.name.startswith(f"0{number[0]}")))
    at = next(i for i, cell in enumerate(cells) if cell.source.startswith(f"### 練習 {number} "))
    assert [cell.cell_type for cell in cells[at : at + 2]] == ["markdown", "code"]
    return cells[at].source, cells[at + 1].source


def filled(number, answer):
    """答えのセルの、確かめる行の手前に答えを書いたもの。最初の練習の import は、どのセルの前にも実行されている。"""
    code, call = cells_of(number)[1].rsplit("\n", 1)
    return f"from lib.show.exercises import check\n{code}\n{answer}\n{call}"


def run(code, capsys):
    capsys.readouterr()
    exec(code, {})
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_ends_with_four_exercises_friendly_when_empty_and_right_when_solved(path, capsys):
    """「練習」は段を終えた後にあるので、書きかけの答えは指標に触れない。ほかのセルなしで、上から実行できる。"""
    cells = nbformat.read(path, as_version=4).cells
    finished = next(i for i, cell in enumerate(cells) if "run.finish(" in cell.source)
    exercise = section(path)
    assert cells[finished + 1].source == exercise[0].source
    found = [re.match(r"### 練習 (\S+) \S", cell.source)[1] for cell in exercise[1::2]]
    assert found == [f"{int(path.name[:2])}.{i}" for i in range(1, len(found) + 1)] and len(found) >= 4
    assert found == [number for number in NUMBERS if number[0] == path.name[1]]
    assert exercise[2].source.startswith("from lib.show.exercises import check\n")
    for number, cell in zip(found, exercise[2::2], strict=True):
        assert cell.source.endswith(f'\ncheck("{number}", answer_{number.replace(".", "_")})')
    code = [cell.source for cell in exercise if cell.cell_type == "code"]
    said = run("\n".join(code), capsys).splitlines()  # 配ったままの「練習」と、解答例を書き込んだ「練習」
    assert len(said) == len(code) and all("まだ答えがありません" in line for line in said)
    said = run("\n".join(filled(number, EXERCISES[number]["solution"]) for number in found), capsys)
    assert [line.split(":")[0] for line in said.splitlines()] == [f"✓ 練習 {number}" for number in found]


@pytest.mark.parametrize("number", NUMBERS)
def test_hints_and_solution_hold_together(number, capsys):
    row = EXERCISES[number]
    assert len(row["hints"]) >= 2 and row["why"] and ("expected" in row) != ("cases" in row)
    shown = f"<summary>解答例</summary>\n\n```python\n{row['solution'].strip()}\n```\n\n{row['why']}\n\n</details>"
    assert f"<details>{shown}" in cells_of(number)[0], f"問いの解答例を、次に替えてください:\n<details>{shown}"
    for right in re.findall(r"^ *(?:return |answer_\S+ = )(.*\S)", row["solution"], re.M):
        assert not any(right in hint for hint in row["hints"] if len(right) > 4), right
    if "expected" in row:
        right = re.escape(str(row["expected"]))
        spelled = rf"(?<![\d.,ァ-ヶー]){right}(?![\d.,ァ-ヶー])"
        assert not any(re.search(spelled, hint.replace(",", "")) for hint in row["hints"])


@pytest.mark.parametrize("number", NUMBERS)
def test_plausible_mistakes_get_the_hints_in_order(number, capsys):
    row = EXERCISES[number]
    assert row["wrong"]
    for wrong in row["wrong"]:
        MISSED.clear()
        for hint in row["hints"]:
            said = run(filled(number, wrong), capsys)
            assert said.startswith(f"✗ 練習 {number}: ") and hint in said
        assert "解答例" in run(filled(number, wrong), capsys)
    assert "正解です" in run(filled(number, row["solution"]), capsys)
    assert row["hints"][0] in run(filled(number, row["wrong"][0]), capsys)  # 正解の後は、初めから


def fails(*_):
    raise ValueError("わざと")


class Strange:
    """表示も比較もできない値。"""

    __repr__ = __eq__ = fails
    __hash__ = None


@pytest.mark.parametrize("number", NUMBERS)
def test_no_answer_makes_a_traceback(number, capsys):
    functions = [fails, lambda *_: sys.exit(3), lambda: 0, lambda *a: a.append, lambda *_: Strange()]
    for answer in [*functions, Strange(), Strange, "", [], {}, -1j, float("nan")]:
        MISSED.clear()
        check(number, answer)
        said = capsys.readouterr().out
        assert said.startswith(f"✗ 練習 {number}") and "ヒント 1/" in said and said.count("\n") == 2


def test_what_happened_is_said_in_japanese(capsys):
    told = {"ValueError で止まりました（わざと）": ("5.1", fails), "関数そのもの": ("5.1", 3)}
    for said, given in {**told, "数で答えてください": ("1.1", "16896")}.items():
        check(*given)
        assert said in capsys.readouterr().out
    for number in ("9.9", "4.20", 4.2):
        with one_sentence("ありません"):
            check(number, 1)


def test_differences_of_array_and_spelling_are_forgiven_and_an_answer_cannot_change_what_is_expected(capsys):
    check("2.2", lambda ids, n_prompt: ids.clear() or ids)
    check("2.2", lambda ids, n_prompt: [-100] * n_prompt + ids[n_prompt:])
    check("1.1", torch.tensor(16896))
    check("2.2", lambda ids, n_prompt: numpy.array([-100] * n_prompt + ids[n_prompt:]))
    check("3.2", lambda said, expected: numpy.bool_(set(said) == {expected}))
    check("1.3", "ｴ")
    assert capsys.readouterr().out.count("正解です") == 5
