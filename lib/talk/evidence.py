"""録画した結果から、鍵をたどって数字を取り出し、想定問答の文に入れる。数字は手で書かない。"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lib.files import REPOSITORY, read_json
from lib.profiles import MODELS, PROFILES

ANSWERS = REPOSITORY / "data" / "talk" / "answers.json"
NOT_MEASURED = "（まだ測っていない）"
_FILES = {
    "seeds": "data/recorded/seeds.json",
    "embedded-ja": "data/recorded/runs/embedded-ja.json",
    "tokenizers": "data/recorded/tokenizers.json",
    "talk": "data/recorded/talk.json",
    "experiments": "data/recorded/experiments.json",
    "expected": "tests/results/expected.json",
}
_COMPARE = {"<": operator.lt, "<=": operator.le}


def _source(name: str) -> Any:
    """出どころの中身。設定の表は lib から、ほかは JSON から。まだ無いファイルは空。"""
    if name == "profiles":
        return {key: asdict(profile) for key, profile in PROFILES.items()}
    if name == "models":
        return {key: asdict(model) for key, model in MODELS.items()}
    path = REPOSITORY / _FILES[name]
    return read_json(path) if path.exists() else {}


def look_up(path: Sequence[Any]) -> list[Any]:
    """出どころの名前と鍵の列で、値を取り出す。無ければ空。

    鍵が "*" なら中の全部、辞書なら「その値をすべて持つ要素」、ほかはその名前の値。
    """
    found = [_source(path[0])]
    for key in path[1:]:
        found = [value for item in found for value in _inside(item, key)]
    return found


def _inside(item: Any, key: Any) -> list[Any]:
    members = list(item.values()) if isinstance(item, Mapping) else item if isinstance(item, list) else []
    if key == "*":
        return members
    if isinstance(key, Mapping):
        return [m for m in members if _has(m, key)]
    return [item[key]] if isinstance(item, Mapping) and key in item else []


def _has(member: Any, wanted: Mapping[str, Any]) -> bool:
    """`wanted` の値をすべて持つか。辞書の中の辞書も、同じように比べる。"""
    return isinstance(member, Mapping) and all(
        name in member and (_has(member[name], value) if isinstance(value, Mapping) else member[name] == value)
        for name, value in wanted.items()
    )


def written(values: Sequence[Any], form: str = "{}") -> str:
    """値を「96.9 / 90.6 / 96.9%」のように書く。同じ値は一度だけ書く。無ければ「まだ測っていない」。"""
    if not values:
        return NOT_MEASURED
    texts = [form.format(value) for value in values]
    if len(set(texts)) == 1:
        return texts[0]
    return " / ".join(text.removesuffix("%") for text in texts[:-1]) + f" / {texts[-1]}"


def origin(path: Sequence[Any]) -> str:
    """どこから来た数字かを、短く伝える。"""
    name = path[0]
    if name in ("profiles", "models"):
        return "lib/profiles.py"
    if name == "expected":
        return f"録画: {Path(_FILES[name]).name}（三つの種の中央値）"
    found = _source(name)
    if not found:
        return NOT_MEASURED
    if name == "experiments":
        found = next(iter(look_up(path[:2])), {})
    dates = look_up(["seeds", path[1], "*", "date"]) if name == "seeds" else [found.get("date", "")]
    machine = f"、{found['machine']}" if name != "seeds" and "machine" in found else ""
    seeds = f"、種 {'・'.join(found[path[1]])}" if name == "seeds" else ""
    return f"録画: {Path(_FILES[name]).name}（{'〜'.join(sorted(set(dates)))}{machine}{seeds}）"


@dataclass(frozen=True)
class Prepared:
    """想定問答の一つ。

    Attributes:
        question: 質問。
        source: 「資料」か「会場」。
        answer: 数字を入れた答え。
        origins: 数字の出どころ。
        broken: 録画と合わなくなった前提。あれば、答えの文を直す。
    """

    question: str
    source: str
    answer: str
    origins: tuple[str, ...]
    broken: tuple[str, ...]

    def markdown(self) -> str:
        """スライドに載せる形。"""
        warning = f"\n\n⚠ 録画と合いません: {'、'.join(self.broken)}" if self.broken else ""
        small = f"<small>{'　'.join(self.origins)}</small>"
        return f"**{self.question}**（{self.source}）\n\n{self.answer}{warning}\n\n{small}"


def prepared_answers() -> list[Prepared]:
    """想定問答の全部を、いまの録画の数字で。"""
    result = []
    for row in read_json(ANSWERS):
        found = {name: look_up(item["path"]) for name, item in row["evidence"].items()}
        texts = {name: written(values, row["evidence"][name].get("form", "{}")) for name, values in found.items()}
        broken = [" ".join(map(str, claim)) for claim in row.get("holds", []) if not _holds(claim, found)]
        answer = row["answer"].format_map(texts)
        origins = dict.fromkeys(origin(item["path"]) for item in row["evidence"].values())
        result.append(Prepared(row["question"], row["from"], answer, tuple(origins), tuple(broken)))
    return result


def _holds(claim: Sequence[Any], found: Mapping[str, Sequence[float]]) -> bool:
    """「左 < 右」が、種の中央値で成り立つか。測っていない値があれば、成り立たないとは言わない。"""
    left, sign, right = claim
    sides = [found[side] if isinstance(side, str) else [side] for side in (left, right)]
    return not all(sides) or _COMPARE[sign](*map(median, sides))
