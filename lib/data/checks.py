"""学習データの検査の一つずつ。全体の入口は `lib.data.validate`。"""

import re
import statistics
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.data.formats import detect_format, turns
from lib.data.textcheck import CHARACTERS, foreign_scripts, is_mojibake, is_suspect, personal_data
from lib.data.textfile import Problem, Row, show

_UNKNOWN = "不明"
ROLES = ("system", "user", "assistant")
_BATCH = 1000  # 一度にトークナイザへ渡す件数
_LICENCES = re.compile("(?:cc0|cc-?by|apache|mit|bsd|odc|odbl|public-domain|pddl|gpl|lgpl|isc)(?![a-z])")
# 種類 → (程度, 何が, どうする)。{0} などに場所や行が入る。値そのものは入れない。
RULES = {
    "format": ("error", "形を見分けられません（列: {0}）", "列名を question と answer などにしてください"),
    "mixed-format": (
        "error",
        "多くの行は {0} なのに、ここから {1} の行が {2} 件あります",
        "一つの形にそろえてください",
    ),
    "no-turns": ("error", "{0} の会話が空です", "user と assistant の発言を書くか、この行を消してください"),
    "not-list": ("error", "messages が発言の並びではありません", "role と content の組を [ ] に並べてください"),
    "role": ("error", "{0} の role「{1}」は使えません", "system・user・assistant のどれかにしてください"),
    "not-text": ("error", "{0} が文字列ではありません", "引用符で囲んだ文にしてください"),
    "empty": ("error", "{0} が空です", "文を書くか、この行を消してください"),
    "system-order": ("error", "system が先頭ではありません", "system は最初に一つだけ置いてください"),
    "same-role": ("error", "同じ役の発言が続いています", "一つにまとめるか、間の発言を補ってください"),
    "no-answer": ("error", "最後が assistant の発言ではありません", "覚えさせる答えを最後に置いてください"),
    "repeated-turn": ("warning", "同じ発言が二度あります", "写し間違いでなければそのままで構いません"),
    "same-choice": ("error", "chosen と rejected が同じです", "違う答えにするか、この行を消してください"),
    "too-long": (
        "warning",
        "{0} トークンあり、上限の {1} を超えます",
        "短くするか分けてください（超えた分は学習されません）",
    ),
    "duplicate": ("warning", "{0} 行目と同じです", "一方を消してください（--fix でも消せます）"),
    "conflict": ("warning", "{0} 行目と同じ質問なのに答えが違います", "どちらが正しいか、人が決めて一つにしてください"),
    "mojibake": ("error", "{0} が文字化けしています", "もとのファイルから正しい文字コードで作り直してください"),
    "control-token": (
        "error",
        "{0} に、会話の区切りの印（<|im_end|> など）と同じ並びがあります",
        "印として読まれないように、全角の＜＞に替えるか、この行を消してください",
    ),
    "invisible": (
        "warning",
        "{0} に見えない文字（制御文字や幅の無い文字）があります",
        "除いてください（--fix で除けます）",
    ),
    "half-width-kana": ("note", "{0} に半角カナがあります", "全角にそろえてください（--fix で直せます）"),
    "full-width-alnum": ("note", "{0} に全角の英数字があります", "半角にそろえてください（--fix で直せます）"),
    "foreign-script": ("warning", "{0} に{1}が混じっています", "翻訳や写しの間違いでないか確かめてください"),
    "mail": (
        "warning",
        "{0} にメールアドレスらしい並び {1} があります",
        "個人のものなら消すか、架空の値に替えてください",
    ),
    "phone": ("warning", "{0} に電話番号らしい並び {1} があります", "個人のものなら消すか、架空の値に替えてください"),
    "freephone": ("note", "{0} にフリーダイヤルなどの番号 {1} があります", "公開の番号か確かめてください"),
    "card": ("error", "{0} にカード番号らしい並び {1} があります", "消してください（検査数字まで合っています）"),
    "my-number": ("error", "{0} に個人番号らしい並び {1} があります", "消してください（検査数字まで合っています）"),
    "no-licence": (
        "note",
        "ライセンスの列も、隣の README.md や LICENSE もありません",
        "出どころと使ってよい条件を書いてください",
    ),
    "licence": ("warning", "知らないライセンス「{0}」です", "学習に使ってよい条件か確かめてください"),
}


@dataclass(frozen=True)
class Sample:
    """形の正しい一件。

    Attributes:
        line: 始まりの行。
        said: (役, 文) の列。最後が答え。
        chosen: 選好データで、`said` の終わりの何個が良い答えか。ほかの形では 0。
        worse: 選好データの悪い答え。ほかの形では空。
    """

    line: int
    said: list[tuple[str, str]]
    chosen: int
    worse: list[tuple[str, str]]


class Checker:
    """一つのファイルの検査。問題を `problems` に足していく。"""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file, self.problems = file, list(problems)
        self.forms: list[tuple[int, str]] = []

    def add(self, line: int, code: str, *values: Any) -> None:
        """`RULES` の問題を一つ足す。"""
        level, message, remedy = RULES[code]
        self.problems.append(Problem(self.file, line, level, code, message.format(*values), remedy))

    def row(self, row: Row) -> Sample | None:
        """一件を調べる。形と役が正しければ、重複と長さを調べるための `Sample` を返す。"""
        form = detect_format(row.data)
        self.forms.append((row.line, form or _UNKNOWN))
        if form is None:
            self.add(row.line, "format", show("、".join(row.data)))
            return None
        before, found = len(self.problems), turns(row.data, form)
        said: list[tuple[str, str]] = []
        worse: list[tuple[str, str]] = []
        for place, role, content in found:
            if self._sound(row.line, place, role, content):
                (worse if place.startswith("rejected") else said).append((role, content))
        if len(self.problems) > before:
            return None
        if form not in ("qa", "instruction"):
            self._order(row.line, said, worse)
        elif form == "instruction":  # convert と同じく、input は空行をはさんで指示につなぐ
            asked = "\n\n".join(text for role, text in said if role == "user")
            said = [*(turn for turn in said if turn[0] == "system"), ("user", asked), said[-1]]
        chosen = sum(place.startswith("chosen") for place, _, _ in found)
        if form == "preference" and plain(worse) == plain(said[-chosen:]):
            self.add(row.line, "same-choice")
        for place, _, content in found:
            if is_suspect(content):
                self._text(row.line, place, content)
        return Sample(row.line, said, chosen, worse)

    def _sound(self, line: int, place: str, role: Any, content: Any) -> bool:
        if content == []:
            self.add(line, "no-turns", place)
        elif place == "messages":
            self.add(line, "not-list")
        elif role not in ROLES:
            self.add(line, "role", place, show(role))
        elif content is None or (isinstance(content, str) and not content.strip()):
            self.add(line, "empty", place)
        elif not isinstance(content, str):
            self.add(line, "not-text", place)
        else:
            return True
        return False

    def _order(self, line: int, said: list[tuple[str, str]], worse: list[tuple[str, str]]) -> None:
        roles = [role for role, _ in said]
        wrong = {
            "system-order": "system" in roles[1:],
            "same-role": any(a == b for a, b in zip(roles, roles[1:], strict=False)),
            "no-answer": roles[-1] != "assistant" or bool(worse and worse[-1][0] != "assistant"),
            "repeated-turn": len(set(said)) < len(said),
        }
        for code in (code for code, is_wrong in wrong.items() if is_wrong):
            self.add(line, code)

    def _text(self, line: int, place: str, text: str) -> None:
        if is_mojibake(text):
            self.add(line, "mojibake", place)
            return
        for code in (code for code, pattern in CHARACTERS.items() if pattern.search(text)):
            self.add(line, code, place)
        if scripts := foreign_scripts(text):
            self.add(line, "foreign-script", place, "・".join(scripts))
        for code, masked in personal_data(text):
            self.add(line, code, place, masked)

    def mixture(self) -> None:
        """形が混じっていれば、少ない方の形の最初の行に報告する。"""
        counts = Counter(form for _, form in self.forms if form != _UNKNOWN)
        (main, _), *others = counts.most_common() or [("", 0)]
        for form, count in others:
            line = next(line for line, found in self.forms if found == form)
            self.add(line, "mixed-format", main, form, count)

    def repeats(self, samples: list[Sample]) -> None:
        """同じ一件と、同じ質問への違う答えを探す（NFKC と空白の違いは無視する）。"""
        whole: dict[Any, int] = {}
        asked: dict[Any, int] = {}
        for sample in samples:
            said = plain(sample.said)
            key = (said, plain(sample.worse))
            if key in whole:
                self.add(sample.line, "duplicate", whole[key])
                continue
            whole[key] = sample.line
            if not sample.worse and asked.setdefault(said[:-1], sample.line) != sample.line:
                self.add(sample.line, "conflict", asked[said[:-1]])

    def licence(self, rows: list[Row], path: Path | None) -> None:
        """ライセンスの列の値か、ファイルの隣の README.md・LICENSE を確かめる。"""
        first: dict[str, int] = {}
        for row in rows:
            for key in ("licence", "license", "ライセンス"):
                if key in row.data:
                    first.setdefault(str(row.data[key] or ""), row.line)
        for value, line in first.items():
            if not _LICENCES.match(value.strip().lower().replace(" ", "-")):
                self.add(line, "licence", show(value))
        beside = path and [p for p in path.parent.iterdir() if p.name == "README.md" or p.name.startswith("LICEN")]
        if not first and not beside and path:
            self.add(0, "no-licence")

    def tokens(self, samples: list[Sample], tokenizer: Any, limit: int) -> dict[str, int]:
        """一件ずつのトークン数を数え、`limit` を超えるものを報告する。返す鍵は `Report.tokens` と同じ。"""
        render, counts = _Renderer(tokenizer), list[int]()
        for start in range(0, len(samples), _BATCH):
            texts = [render(sample) for sample in samples[start : start + _BATCH]]
            encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            counts += map(len, encoded["input_ids"])
        over = [(sample.line, count) for sample, count in zip(samples, counts, strict=True) if count > limit]
        for line, count in over:
            self.add(line, "too-long", count, limit)
        middle = statistics.median_low(counts)
        edges = {"min": min(counts), "median": middle, "max": max(counts), "total": sum(counts)}
        return {**edges, "over": len(over), "limit": limit}


def plain(said: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """同じ文かを比べるための形（NFKC にし、空白の並びを一つにする）。"""
    return tuple((role, " ".join(unicodedata.normalize("NFKC", text).split())) for role, text in said)


class _Renderer:
    """一件を、学習するときと同じチャットテンプレートの文にする。

    jinja を毎回動かすと遅いので、役の並びごとに一度だけ動かし、文の入る穴を覚えておく。
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.shapes: dict[tuple[str, ...], list[str] | None] = {}

    def __call__(self, sample: Sample) -> str:
        said = sample.said
        if sample.worse:  # 選好データは、良い答えと悪い答えの長い方で数える
            other = said[: -sample.chosen] + sample.worse
            said = max(said, other, key=lambda part: sum(len(text) for _, text in part))
        roles = tuple(role for role, _ in said)
        if roles not in self.shapes:
            self.shapes[roles] = self._shape(roles)
        parts, texts = self.shapes[roles], [text for _, text in said]
        if parts is None:
            return "\n".join(texts)
        return "".join(texts[int(part)] if index % 2 else part for index, part in enumerate(parts))

    def _shape(self, roles: tuple[str, ...]) -> list[str] | None:
        """穴で切ったテンプレート（奇数番目が文の番号）。テンプレートが無いか、この並びを断れば None。"""
        holes = [{"role": role, "content": f"\0{number}\0"} for number, role in enumerate(roles)]
        try:
            parts = self.tokenizer.apply_chat_template(holes, tokenize=False).split("\0")
        except Exception:  # テンプレートの無い ValueError のほか、テンプレートが自分で投げる例外がある
            return None
        return parts if len(parts) == 2 * len(roles) + 1 else None
