"""練習の答え合わせ。問いはノートブックに、正解・ヒント・解答例は `data/exercises/` にある。"""

import math
import tomllib
from collections import Counter
from copy import deepcopy
from numbers import Real
from typing import Any
from unicodedata import normalize

import torch

from lib.data.facts import DATA
from lib.errors import WorkshopError

EXERCISES = tomllib.loads("\n".join(p.read_text("utf-8") for p in sorted((DATA / "exercises").glob("*.toml"))))
MISSED: Counter[str] = Counter()  # 続けて間違えた回数。次に出すヒントを決める


def check(number: str, answer: Any = None) -> None:
    """答え（値か関数）を確かめ、正解か、次のヒントを出す。関数が何をしても、トレースバックは出さない。"""
    if number not in EXERCISES:
        raise WorkshopError(f"練習 {number} はありません", "問いのセルにある番号を、引用符で囲んで書いてください")
    wrong = _what_is_wrong(EXERCISES[number], answer)
    hints = [*EXERCISES[number]["hints"], "問いの「解答例」を開き、自分の答えとの違いを見てください。"]
    if wrong is None:
        print(f"… 練習 {number}: まだ答えがありません。上を書き換えて、もう一度実行してください。")
    elif wrong:
        MISSED[number] = at = min(MISSED[number] + 1, len(hints))
        print(f"✗ 練習 {number}: {wrong}\n  ヒント {at}/{len(hints)}: {hints[at - 1]}")
    else:
        MISSED[number] = 0
        print(f"✓ 練習 {number}: 正解です。{EXERCISES[number]['why']}")


def _what_is_wrong(exercise: dict[str, Any], answer: Any) -> str | None:
    """違う所を一文で。合っていれば空の文、まだ答えていなければ None。関数には、問いに無い入力も渡す。"""
    for case in deepcopy(exercise.get("cases", [exercise])):  # 関数が引数を書き換えても、正解は変わらない
        args, told, given = case.get("args"), "", answer
        try:
            if args and callable(answer):
                told = f"引数 {str(args)[1:-1]:.80} で呼ぶと、"
                given = answer(*map(torch.tensor, args) if "tensors" in exercise else args)
            if given is None or given is ...:
                return None
            if not _same(given, case["expected"], exercise.get("tolerance", 1e-6)):
                quoted = isinstance(given, str) and isinstance(case["expected"], Real)
                form = "引用符の無い数で答えてください。" if quoted else ""
                form = "関数そのものを渡してください（かっこは付けません）。" if args and not told else form
                return f"{told}{given!r:.80} になりました。これは違います。{form}"
        except (Exception, SystemExit) as error:  # 比べられない値、表示できない値もありうる
            return f"{told}{type(error).__name__} で止まりました（{error!s:.80}）。"
    return ""


def _same(given: Any, expected: Any, tolerance: float) -> bool:
    """配列・組・集合はリストとして、文字は NFKC で、数は許す誤差で比べる。"""
    given = given.tolist() if hasattr(given, "tolist") else sorted(given) if isinstance(given, set) else given
    if isinstance(expected, list):
        matched = isinstance(given, (list, tuple)) and len(given) == len(expected)
        return matched and all(_same(*both, tolerance) for both in zip(given, expected, strict=True))
    if isinstance(expected, str):
        return isinstance(given, str) and normalize("NFKC", given).strip() == normalize("NFKC", expected)
    return isinstance(given, Real) and math.isclose(given, expected, rel_tol=tolerance, abs_tol=1e-9)
