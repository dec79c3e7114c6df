"""事実から、学習例と評価データを作る。分け方はここのコードだけが決め、シードを変えても評価の問題は変わらない。"""

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rapidfuzz import fuzz, process

from lib.errors import WorkshopError
from lib.files import REPOSITORY, read_json, write_text
from lib.profiles import Profile

DATA = REPOSITORY / "data"
SYSTEM = {"ja": "みなも堂の窓口です。", "en": "You are the help desk of Minamodo."}
"""学習・推論・GGUF・Modelfile のすべてで使うシステム文。短いのは、毎回読ませるトークンを惜しむため。"""
TRAIN_FORMS = ("polite", "curt", "keyword", "other_1", "indirect", "story", "other_2")
"""学習に使う型。先頭から何種かだけ使っても、型と言葉の違いが両方入る並び。"""
DEV_FORMS = ("conditional", "typo")
"""学習の途中で損失を見るための型（早期終了と、最良の時点を選ぶため）。評価にも学習にも使わない。"""
NEAR_FORMS, FAR_FORMS = ("request", "casual"), ("other_3",)
FIRST = ("shipping-standard-fee", "returns-period")
FORM_LABELS: dict[str, str] = read_json(DATA / "support" / "forms.json")


@dataclass(frozen=True)
class Example:
    """質問と正解の一組。

    form は `FORM_LABELS` の鍵か "unanswerable" / "general" / "mix" / "conversation"。figures は正解に必ず入る数値
    （回答不能な質問では空、"general" では、どれか一つが入れば正解の語）。history は前の往復（`messages` の形）。
    """

    fact_id: str
    form: str
    question: str
    answer: str
    figures: tuple[str, ...]
    system: str = SYSTEM["ja"]
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

    train は学習例、dev は学習中に損失を見る例（1 事実に 1 例）。near は学習した事実を一度も見せない文型で、
    far は話題の語を一つも使わずに尋ねる問題。unseen は一度も教えない事実の問題（正答できたらデータリークか偶然）。
    ask_train と ask_test は回答不能な質問（正解は、回答を控える文）で、話題で分けてある。
    """

    train: list[Example]
    dev: list[Example]
    near: list[Example]
    far: list[Example]
    unseen: list[Example]
    ask_train: list[Example]
    ask_test: list[Example]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """JSONL を読む。ファイルが無いときと、JSON でない行（行番号を示す）があるときは `WorkshopError`。"""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise WorkshopError("データのファイルがありません", "git で取り直してください", path) from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            what = f"JSON として読めない行があります: {error.msg}"
            raise WorkshopError(what, "この行を直してください", f"{path}:{number} 行目") from None
    return rows


def write_examples(path: Path, examples: list[Example]) -> Path:
    """例を JSONL に書く。"""
    return write_text(path, "\n".join(json.dumps(asdict(one), ensure_ascii=False) for one in examples) + "\n")


def read_examples(path: Path) -> list[Example]:
    """`write_examples` が書いた JSONL を読む。"""
    rows = read_jsonl(path)
    return [Example(**{**row, "figures": tuple(row["figures"]), "history": tuple(row["history"])}) for row in rows]


def general_questions(lang: str, level: str = "easy") -> list[Example]:
    """忘却を見るための、店と関係のない質問。"""
    rows = [row for row in read_jsonl(DATA / "general" / "questions.jsonl") if row["level"] == level]
    said = [(row["id"], row[lang]) for row in rows]
    return [Example(i, "general", t["question"], t["answer"], tuple(t["accept"]), SYSTEM[lang]) for i, t in said]


def general_mix(count: int, lang: str) -> list[Example]:
    """店の例に混ぜる、一般の問答（忘却を防ぐため。`general_questions` とは重ならない）。用意した分を超えたら、全部。"""
    rows = sorted(read_jsonl(DATA / "general" / "mix.jsonl"), key=lambda row: stable_order(row["id"]))
    said = [(row["id"], row[lang]) for row in rows[:count]]
    return [Example(i, "mix", text["question"], text["answer"], (), SYSTEM[lang]) for i, text in said]


def language(examples: Sequence[Example]) -> str:
    """例の質問の言語。仮名か漢字が一つでもあれば "ja"、無ければ "en"。"""
    return "ja" if re.search("[ぁ-んァ-ヶ一-龠]", "".join(e.question for e in examples)) else "en"


def stable_order(key: str) -> str:
    """乱数シードに頼らない、いつも同じ並びの鍵（SHA-256）。"""
    return hashlib.sha256(key.encode()).hexdigest()


def _ordered_facts(lang: str) -> list[dict[str, Any]]:
    """分野を交互に並べた事実。先頭から何件取っても分野が偏らない。ただし `FIRST`（よくある質問）は、いつも先頭。"""
    by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for fact in sorted(read_jsonl(DATA / "support" / "facts.jsonl"), key=lambda fact: stable_order(fact["id"])):
        by_category[fact["category"]].append({"id": fact["id"], **fact[lang]})
    columns = [rows for _, rows in sorted(by_category.items())]
    mixed = [fact for row in zip_longest(*columns) for fact in row if fact is not None]
    return sorted(mixed, key=lambda fact: fact["id"] not in FIRST)


def _asked(facts: list[dict[str, Any]], forms: Sequence[str], lang: str) -> list[Example]:
    asked = [(fact, form, fact["questions"][form]) for fact in facts for form in forms if form in fact["questions"]]
    return [Example(f["id"], form, text, f["answer"], tuple(f["figures"]), SYSTEM[lang]) for f, form, text in asked]


def make_split(profile: Profile, lang: str = "", development: bool = False) -> Split:
    """プロファイルの件数で分ける（lang を省くとプロファイルの言語）。事実が足りなければ `WorkshopError`。

    教えない事実は並びの末尾から取るので、学習の件数を変えても変わらない。`development` なら、どちらにも使わない残りの
    事実（設定を選ぶための事実）を教える分け方。設定は、これで学習して選び、評価用の問題は一度しか解かせない。
    """
    lang = lang or profile.lang
    facts = _ordered_facts(lang)
    if profile.train_facts + profile.heldout_facts > len(facts):
        what = f"事実は {len(facts)} 件しかないのに {profile.train_facts}+{profile.heldout_facts} 件を求めています"
        raise WorkshopError(what, "train_facts か heldout_facts を減らしてください", f"プロファイル {profile.name}")
    first, last = profile.train_facts, len(facts) - profile.heldout_facts
    taught, unseen = facts[first:last] if development else facts[:first], facts[last:]
    ask_train, ask_test, _ = make_unanswerable(lang)
    written = [_asked([fact], DEV_FORMS, lang) for fact in taught]  # 二つの型を、事実ごとに交互に使う
    return Split(
        train=_asked(taught, TRAIN_FORMS[: profile.train_forms], lang),
        dev=[forms[index % len(forms)] for index, forms in enumerate(written)],
        near=_asked(taught, NEAR_FORMS, lang),
        far=_asked(taught, FAR_FORMS, lang),
        unseen=_asked(unseen, NEAR_FORMS, lang),
        ask_train=ask_train,
        ask_test=ask_test,
    )


def make_unanswerable(lang: str, kinds: str = "") -> tuple[list[Example], list[Example], dict[str, str]]:
    """回答不能な質問を（学習用, 評価用, ID→悪い答え）に分ける。kinds は "out_of_domain"（店の外の話題）か空。"""
    rows = [row for row in read_jsonl(DATA / "support" / "unanswerable.jsonl") if row["kind"].startswith(kinds)]
    rows.sort(key=lambda row: stable_order(row["id"]))
    parts: tuple[list[Example], list[Example]] = ([], [])
    for index, row in enumerate(rows):  # 三つに一つの話題は、評価だけに使う
        said = re.split(r"(?<=。)|(?<=\.)\s", row[lang]["answer"], maxsplit=1)[0]  # 続く案内は、135M の予算には長い
        given = (said, (), SYSTEM[lang])
        parts[index % 3 == 0].extend(Example(row["id"], "unanswerable", q, *given) for q in row[lang]["questions"])
    return *parts, {row["id"]: row[lang]["made_up"] for row in rows}


def normalise_question(text: str) -> str:
    """検査用の正規化: NFKC・小文字・空白と記号の除去。"""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower())


def find_leaks(train: Sequence[str], test: Sequence[str], threshold: float = 0.9) -> list[tuple[str, str, float]]:
    """評価の質問に、文字で見てほぼ同じ学習の質問を探す: (評価, 学習, 似かた 0–1) の列。空ならデータリークなし。"""
    # 0.9 は、みなも堂の質問の 1 字や語尾を替えた文を全部捕まえ（最小 0.92）、言い換え（最大 0.889）に掛からない値。
    known, asked = ([normalise_question(text) for text in part] for part in (train, test))
    best = [process.extractOne(text, known, scorer=fuzz.ratio, score_cutoff=100 * threshold) for text in asked]
    return [(text, train[hit[2]], hit[1] / 100) for text, hit in zip(test, best, strict=True) if hit]
