"""事実から学習例・取り置き・選好ペアを作り、漏れを調べる。

分け方はここのコードだけが決める。乱数の種には依存しないので、種を変えても試験の問題は変わらない。
"""

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.profiles import Profile
from lib.workspace import write_text

DATA = Path(__file__).resolve().parent.parent / "data"

SYSTEM = "みなも堂の窓口です。"
"""学習・推論・GGUF・Modelfile のすべてで使うシステム文。短いのは、毎回読ませるトークンを惜しむため。"""

TRAIN_FORMS = ("polite", "curt", "keyword", "indirect", "conditional", "typo", "story", "other_1", "other_2")
NEAR_FORMS = ("request", "casual")
FAR_FORMS = ("other_3",)
FORM_LABELS = {
    "polite": "丁寧",
    "curt": "ぶっきらぼう",
    "keyword": "検索語",
    "indirect": "遠回し",
    "conditional": "仮定",
    "typo": "誤字",
    "story": "長い前置き",
    "request": "依頼（取り置き）",
    "casual": "友だち口調（取り置き）",
    "other_1": "別の言葉 1",
    "other_2": "別の言葉 2",
    "other_3": "別の言葉 3（取り置き）",
}


@dataclass(frozen=True)
class Example:
    """質問と正解の一組。

    Attributes:
        fact_id: もとの事実の ID（答えの無い質問では質問の ID）。
        form: 言い回しの型（`FORM_LABELS` の鍵、または "unanswerable" / "general"）。
        question: 質問文。
        answer: 正解の文。
        figures: 正解に必ず入る数値。答えの無い質問では空。"general" では、どれか一つが入れば正解の語。
    """

    fact_id: str
    form: str
    question: str
    answer: str
    figures: tuple[str, ...]

    def prompt(self) -> list[dict[str, str]]:
        """チャットの形の入力（システム文と質問）。"""
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self.question}]

    def sft_row(self) -> dict[str, Any]:
        """TRL の会話型 prompt–completion。損失は completion だけに掛かる。"""
        return {"prompt": self.prompt(), "completion": [{"role": "assistant", "content": self.answer}]}


@dataclass(frozen=True)
class Split:
    """一つのプロファイルで使う分割。

    Attributes:
        train: 学習例（学習用の事実 × 学習用の言い回し）。
        near: 学習した事実を、一度も見せない文型で尋ねる問題（話題の語は同じ）。
        far: 学習した事実を、話題の語を一つも使わない、見せていない言い方で尋ねる問題。
        unseen: 一度も教えない事実の問題。正答できたら漏れか偶然。
    """

    train: list[Example]
    near: list[Example]
    far: list[Example]
    unseen: list[Example]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """JSONL を読む。

    Raises:
        WorkshopError: ファイルが無い、または JSON でない行があるとき（行番号を示す）。
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise WorkshopError("データのファイルがありません", "git で取り直してください", path) from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise WorkshopError(
                    f"JSON として読めない行があります: {error.msg}", "この行を直してください", f"{path}:{number} 行目"
                ) from None
    return rows


def write_examples(path: Path, examples: list[Example]) -> Path:
    """例を JSONL に書く。"""
    rows = [json.dumps(asdict(example), ensure_ascii=False) for example in examples]
    return write_text(path, "\n".join(rows) + "\n")


def read_examples(path: Path) -> list[Example]:
    """`write_examples` が書いた JSONL を読む。"""
    return [Example(**{**row, "figures": tuple(row["figures"])}) for row in read_jsonl(path)]


def general_questions(lang: str = "en", level: str = "easy") -> list[Example]:
    """忘却を見るための、店と関係のない質問。"""
    return [
        Example(row["id"], "general", row[lang]["question"], row[lang]["answer"], tuple(row[lang]["accept"]))
        for row in read_jsonl(DATA / "general" / "questions.jsonl")
        if row["level"] == level
    ]


def _stable_order(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _ordered_facts() -> list[dict[str, Any]]:
    """分野を交互に並べた事実。先頭から何件取っても分野が偏らない。"""
    by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for fact in sorted(read_jsonl(DATA / "support" / "facts.jsonl"), key=lambda f: _stable_order(f["id"])):
        by_category[fact["category"]].append(fact)
    columns = [by_category[name] for name in sorted(by_category)]
    return [fact for row in zip_longest(*columns) for fact in row if fact is not None]


def _examples(facts: list[dict[str, Any]], forms: tuple[str, ...], lang: str) -> list[Example]:
    return [
        Example(fact["id"], form, fact[lang]["questions"][form], fact[lang]["answer"], tuple(fact[lang]["figures"]))
        for fact in facts
        for form in forms
        if form in fact[lang]["questions"]
    ]


def make_split(profile: Profile, lang: str = "ja") -> Split:
    """プロファイルの件数で分ける。

    取り置きの事実は並びの末尾から取るので、学習の件数を変えても変わらない。

    Args:
        profile: 事実の数を決めるプロファイル。
        lang: "ja" か "en"。

    Raises:
        WorkshopError: 事実が足りないとき。
    """
    facts = _ordered_facts()
    if profile.train_facts + profile.heldout_facts > len(facts):
        raise WorkshopError(
            f"事実は {len(facts)} 件しかないのに {profile.train_facts}+{profile.heldout_facts} 件を求めています",
            "train_facts か heldout_facts を減らしてください",
            f"プロファイル {profile.name}",
        )
    taught, unseen = facts[: profile.train_facts], facts[-profile.heldout_facts :]
    return Split(
        train=_examples(taught, TRAIN_FORMS, lang),
        near=_examples(taught, NEAR_FORMS, lang),
        far=_examples(taught, FAR_FORMS, lang),
        unseen=_examples(unseen, NEAR_FORMS, lang),
    )


def make_unanswerable(lang: str = "ja") -> tuple[list[Example], list[Example], dict[str, str]]:
    """答えの無い質問を（学習用, 取り置き, ID→でたらめな答え）に分ける。三つに一つの話題を取り置く。"""
    rows = sorted(read_jsonl(DATA / "support" / "unanswerable.jsonl"), key=lambda r: _stable_order(r["id"]))
    made_up = {row["id"]: row[lang]["made_up"] for row in rows}
    parts: tuple[list[Example], list[Example]] = ([], [])
    for index, row in enumerate(rows):
        answer = refusal_only(row[lang]["answer"])
        parts[index % 3 == 0].extend(
            Example(row["id"], "unanswerable", question, answer, ()) for question in row[lang]["questions"]
        )
    return parts[0], parts[1], made_up


def refusal_only(answer: str) -> str:
    """断りの一文だけを残す（続く案内は、135M の予算では長すぎる）。"""
    return re.split(r"(?<=。)|(?<=\.)\s", answer, maxsplit=1)[0]


def make_pairs(split: Split, count: int, lang: str = "ja") -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """選好ペアを（学習用, 取り置き）で返す。

    半分は「数字が違う」（正しい答え 対 別の事実の答えの数字）、半分は「でたらめ」（断り 対 作り話）。
    取り置きは、学習に出ない文型と話題で作る。

    Returns:
        TRL の会話型の選好データ。各行に `reason`（なぜ悪いか）を添える。
    """
    ask_train, ask_test, made_up = make_unanswerable(lang)

    def wrong(examples: list[Example]) -> list[dict[str, Any]]:
        figures = sorted({e.figures[0] for e in examples}, key=_stable_order)
        return [_pair(e, e.answer, _swap_figure(e, figures), "数字が違う") for e in examples]

    def invented(examples: list[Example]) -> list[dict[str, Any]]:
        return [_pair(e, e.answer, made_up[e.fact_id], "でたらめ") for e in examples]

    def spread(rows: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda r: _stable_order(r["prompt"][-1]["content"] + r["reason"]))[:number]

    train = spread(wrong(split.train), count // 2) + spread(invented(ask_train), count - count // 2)
    test = spread(wrong(split.near), 24) + spread(invented(ask_test), 24)
    return sorted(train, key=lambda r: _stable_order(r["prompt"][-1]["content"])), test


def _swap_figure(example: Example, figures: list[str]) -> str:
    """正解の数値を、同じ単位の別の事実の数値（無ければ 1 桁目を変えたもの）に替えた、もっともらしい誤答。"""
    mine = example.figures[0]
    unit = re.sub(r"[\d.]", "", mine)
    others = [figure for figure in figures if figure != mine and re.sub(r"[\d.]", "", figure) == unit]
    start = int(_stable_order(example.question), 16)
    other = others[start % len(others)] if others else str((int(mine[0]) % 9) + 1) + mine[1:]
    return example.answer.replace(mine, other)


def _pair(example: Example, chosen: str, rejected: str, reason: str) -> dict[str, Any]:
    return {
        "prompt": example.prompt(),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "reason": reason,
    }


def normalise_question(text: str) -> str:
    """漏れの検査用の正規化: NFKC・小文字・空白と記号の除去。"""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower())


def _trigrams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}


def find_leaks(train: list[str], test: list[str], threshold: float = 0.65) -> list[tuple[str, str, float]]:
    """試験の質問と同じ、またはほぼ同じ学習の質問を探す。

    Args:
        train: 学習の質問。
        test: 試験の質問。
        threshold: 文字 3-gram の Jaccard 係数がこれ以上なら「ほぼ同じ」。0.65 は、丁寧な 64 問の 1 字を替えた文の
            8 割を捕まえ、意図して作った別の言い回し（最大 0.615）には掛からない値。

    Returns:
        (試験の質問, 学習の質問, 似かた 0–1) の列。空なら漏れなし。
    """
    seen = [(text, _trigrams(normalise_question(text))) for text in train]
    leaks = []
    for question in test:
        grams = _trigrams(normalise_question(question))
        best = max(((len(grams & other) / len(grams | other), text) for text, other in seen), default=(0.0, ""))
        if best[0] >= threshold:
            leaks.append((question, best[1], best[0]))
    return leaks
