"""練習の答え合わせ。問いはノートブックに、正解・ヒント・解答例は `data/exercises/` にある。"""

import copy
import math
import tomllib
import unicodedata
from collections import Counter
from functools import cache
from numbers import Real
from typing import Any

from lib.errors import WorkshopError
from lib.files import REPOSITORY

PLACE = REPOSITORY / "data" / "exercises"
_missed: Counter[str] = Counter()
"""番号 → 続けて間違えた回数。次に出すヒントを決める。"""


@cache
def exercises() -> dict[str, dict[str, Any]]:
    """練習の番号（「4.2」）→ 正解とヒントと解答例。鍵の意味は `data/exercises/README.md`。"""
    return {
        number: row
        for path in sorted(PLACE.glob("*.toml"))
        for number, row in tomllib.loads(path.read_text(encoding="utf-8")).items()
    }


def check(number: str, answer: Any = None) -> None:
    """答えを確かめ、正解か、次のヒントを出す。学ぶ人の関数が何をしても、トレースバックは出さない。

    Args:
        number: 練習の番号（例 "4.2"）。
        answer: 値か関数。None か ... なら、まだ答えていないとみなす。

    Raises:
        WorkshopError: その番号の練習が無いとき。
    """
    if number not in exercises():
        raise WorkshopError(f"練習 {number} はありません", "問いのセルにある番号を、引用符で囲んで書いてください")
    exercise = exercises()[number]
    try:
        wrong = _what_is_wrong(exercise, answer)
    except (Exception, SystemExit) as error:  # 表示も比較もできない値もありうる
        wrong = f"確かめる途中で {type(error).__name__} が起きました。"
    if wrong is None:
        print(f"… 練習 {number}: まだ答えがありません。上を書き換えて、もう一度実行してください。")
    elif wrong:
        print(f"✗ 練習 {number}: {wrong}\n  {_hint(number, exercise['hints'])}")
    else:
        _missed.pop(number, None)
        print(f"✓ 練習 {number}: 正解です。{exercise['why']}")


def _hint(number: str, hints: list[str]) -> str:
    """間違えるたびに一つ先のヒント。尽きたら解答例を勧める。"""
    _missed[number] += 1
    if _missed[number] > len(hints):
        return "ヒントは以上です。問いの「解答例」を開き、自分の答えとの違いを見てください。"
    return f"ヒント {_missed[number]}/{len(hints)}: {hints[_missed[number] - 1]}"


def _what_is_wrong(exercise: dict[str, Any], answer: Any) -> str | None:
    """違う所を一文で。合っていれば空の文、まだ答えていなければ None。"""
    if _blank(answer):
        return None
    if "cases" in exercise:
        return _wrong_case(exercise, answer)
    expected = exercise["expected"]
    if isinstance(expected, Real) and isinstance(answer, str):
        return "数で答えてください（引用符は要りません）。"
    return "" if _same(_plain(answer), _plain(expected), exercise.get("tolerance", 1e-6)) else "違います。"


def _wrong_case(exercise: dict[str, Any], function: Any) -> str | None:
    """関数に問題文に無い入力も渡し、初めて違った所を伝える。"""
    if not callable(function):
        return "関数そのものを渡してください（かっこは付けません）。"
    for index, case in enumerate(exercise["cases"]):
        call = f"引数 {_short(case['args'])[1:-1]} で呼ぶと、"
        arguments = [_argument(value, exercise.get("tensors", False)) for value in case["args"]]
        try:
            given = function(*arguments)
        except (Exception, SystemExit) as error:
            return f"{call}{type(error).__name__} で止まりました（{_short(str(error))}）。"
        if index == 0 and _blank(given):
            return None
        if not _same(_plain(given), _plain(case["gives"]), exercise.get("tolerance", 1e-6)):
            return f"{call}{_short(_plain(given))} になりました。これは違います。"
    return ""


def _argument(value: Any, tensors: bool) -> Any:
    """関数に渡す値。書き換えられても困らないように写す。"""
    if tensors and isinstance(value, list):
        import torch

        return torch.tensor(value)
    return copy.deepcopy(value)


def _blank(value: Any) -> bool:
    return value is None or value is ...


def _plain(value: Any) -> Any:
    """比べるための形: 配列・組・集合はリストに、文字は NFKC にそろえる。"""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return unicodedata.normalize("NFKC", value).strip() if isinstance(value, str) else value


def _same(given: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, list):
        return (
            isinstance(given, list)
            and len(given) == len(expected)
            and all(_same(one, other, tolerance) for one, other in zip(given, expected, strict=True))
        )
    if isinstance(expected, (bool, str)):
        return bool(given == expected)
    return isinstance(given, Real) and math.isclose(given, expected, rel_tol=tolerance, abs_tol=1e-9)


def _short(value: Any) -> str:
    """長い値の先頭だけ。"""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
