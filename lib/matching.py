"""照合: 正解の数値と語を言ったか。この教材の評価の主役。

書き方の違い（`lib.figures`）は消すが、単位や日付の部分が違えば別の数値とみなす。
"""

import re
from collections.abc import Sequence

from lib.figures import Figure, figures, figures_and_codes, readable

BLIND_SPOT = (
    "数値と語を言ったかだけを見る。「690円ではない」の打ち消し、何の数か、以上か未満か、文の良し悪しは見えない。"
)

_FILLER = re.compile(r"約|およそ|ごろ|頃|ほど|くらい|から|まで|[~、・,\s]")


def states(answer: str, expected: str) -> bool:
    """答えが、その数値または語を言っているか。

    単位のある数値は読み取って比べる（「16日」は「6日」ではなく、「7月9日」は「9日」ではない）。
    数値の前後の語（「2015年春夏」の「春夏」）は、答えのどこかに同じ字があればよい。
    単位の無い番号（8011）と語（三井物産）は、同じ字の並びがあるかを見る。数字の途中では切らない。
    """
    wanted = [figure for figure in figures(expected) if figure.unit]
    if not wanted:
        return _contains(_compact(answer), _compact(expected))
    said = figures(answer)
    rest = readable(expected)
    for figure in wanted:
        rest = rest.replace(figure.text, " ", 1)
    words = _FILLER.sub(" ", rest).split()
    return all(any(one.covers(other) for other in said) for one in wanted) and all(
        _compact(word) in _compact(answer) for word in words
    )


def unexpected(answer: str, expected: Sequence[str]) -> list[Figure]:
    """答えが言った数値と番号のうち、正解に無いもの。正解が「1943年」なら、「1943年5月」の 5 月も正解に無い。"""
    known = [figure for text in expected for figure in figures_and_codes(text)]
    return [
        said
        for said in figures_and_codes(answer)
        if not any(said.covers(one) or (not one.unit and one.covers(said)) for one in known)
    ]


def matches(answer: str, expected: Sequence[str]) -> bool:
    """正解の数値と語をすべて言い、ほかの数値を言っていないか。"""
    return all(states(answer, one) for one in expected) and not unexpected(answer, expected)


def _contains(text: str, words: str) -> bool:
    """同じ字の並びがあるか。英数字の途中（18011 の 8011、nice の ice）では合わせない。"""
    left = r"(?<![a-z0-9])(?<!\d\.)" if re.match("[a-z0-9]", words) else ""
    right = r"(?![a-z0-9]|\.\d)" if re.search("[a-z0-9]$", words) else ""
    between = re.sub(r"\\? |(?<=\d)(?=[a-z])", " ?", re.escape(words))
    return re.search(left + between + right, text) is not None


def _compact(text: str) -> str:
    """空白を除く。英語の語の切れ目だけは残す（costs 690 yen の s と 6 をつなげないため）。"""
    return re.sub(r"(?<![a-z0-9])\s+|\s+(?![a-z0-9])", "", re.sub(r"\s+", " ", readable(text).lower()))
