"""練習の答え合わせ。問いはノートブックに、正解・ヒント・解答例は `data/exercises/` にある。"""

import math
import tomllib
from collections import Counter
from copy import deepcopy
from numbers import Real
from typing import Any
from unicodedata import normalize

import torch

from lib.errors import WorkshopError
from lib.files import REPOSITORY

FILES = sorted((REPOSITORY / "data" / "exercises").glob("*.toml"))
EXERCISES = {number: row for path in FILES for number, row in tomllib.loads(path.read_text("utf-8")).items()}
MISSED: Counter[str] = Counter()  # 続けて間違えた回数。次に出すヒントを決める


def check(number: str, answer: Any = None) -> None:
    """答え（値か関数）を確かめ、正解か、次のヒントを出す。関数が何をしても、トレースバックは出さない。"""
    if number not in EXERCISES:
        raise WorkshopError(f"練習 {number} はありません", "問いのセルにある番号を、引用符で囲んで書いてください")
    exercise = EXERCISES[number]
    try:
        wrong = _what_is_wrong(exercise, answer)
    except (Exception, SystemExit) as error:  # 表示できない値もありうる
        wrong = f"確かめる途中で {type(error).__name__} が起きました。"
    if wrong is None:
        print(f"… 練習 {number}: まだ答えがありません。上を書き換えて、もう一度実行してください。")
    elif wrong:
        MISSED[number] += 1
        hints = [*exercise["hints"], "問いの「解答例」を開き、自分の答えとの違いを見てください。"]
        at = min(MISSED[number], len(hints))
        print(f"✗ 練習 {number}: {wrong}\n  ヒント {at}/{len(hints)}: {hints[at - 1]}")
    else:
        MISSED.pop(number, None)
        print(f"✓ 練習 {number}: 正解です。{exercise['why']}")


def _what_is_wrong(exercise: dict[str, Any], answer: Any) -> str | None:
    """違う所を一文で。合っていれば空の文、まだ答えていなければ None。関数には、問いに無い入力も渡す。"""
    if answer is None or answer is ...:
        return None
    if "expected" in exercise:
        quoted = isinstance(answer, str) and not isinstance(exercise["expected"], str)
        wrong = "数で答えてください（引用符は不要です）。" if quoted else "違います。"
        return "" if _same(answer, exercise["expected"], exercise) else wrong
    if not callable(answer):
        return "関数そのものを渡してください（かっこは付けません）。"
    for case in deepcopy(exercise["cases"]):  # 関数が引数を書き換えても、正解は変わらない
        call, tensors = f"引数 {str(case['args'])[1:-1]:.80} で呼ぶと、", exercise.get("tensors")
        try:
            given = answer(*[torch.tensor(v) if tensors and isinstance(v, list) else v for v in case["args"]])
        except (Exception, SystemExit) as error:
            return f"{call}{type(error).__name__} で止まりました（{error!s:.80}）。"
        if given is None or given is ...:
            return None
        if not _same(given, case["gives"], exercise):
            return f"{call}{given!r:.80} になりました。これは違います。"
    return ""


def _same(given: Any, expected: Any, exercise: dict[str, Any]) -> bool:
    """配列・組・集合はリストとして、文字は NFKC で、数は許す誤差で比べる。"""
    given = given.tolist() if hasattr(given, "tolist") else sorted(given) if isinstance(given, set) else given
    if isinstance(expected, list):
        matched = isinstance(given, (list, tuple)) and len(given) == len(expected)
        return matched and all(_same(*both, exercise) for both in zip(given, expected, strict=True))
    if isinstance(expected, str):
        return isinstance(given, str) and normalize("NFKC", given).strip() == normalize("NFKC", expected)
    tolerance = exercise.get("tolerance", 1e-6)
    return isinstance(given, Real) and math.isclose(given, expected, rel_tol=tolerance, abs_tol=1e-9)
