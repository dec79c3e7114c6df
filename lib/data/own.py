"""自分のデータで走らせる: 質問と答えの表を、事実ごとにまとめて学習と試験に分ける。

同じ答え（または同じ fact 列）の行を「一つの事実」とみなす。言い回しが二つ以上ある事実は一つを取り置き、
書かれた言い回しが足りない分は、決まった前置きを付けて増やす（機械が作ったものと分かる型の名前が付く）。
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.data.facts import TRAIN_FORMS, Example, Split, make_split, make_unanswerable, refusal_only, stable_order
from lib.data.formats import convert, load
from lib.errors import WorkshopError
from lib.profiles import Profile
from lib.run import Run, data_path

OWN_SYSTEM = "質問に短く答えます。"
"""自分のデータで、システム文が書かれていないときに使う文。"""

# 前置きは、質問の中身を変えずに文字列だけを変える。試験用の前置きは学習に出ない。
_WRAPPERS = {
    "ja": ("質問です。{}", "教えてください。{}", "すみません、{}", "確認です。{}", "{}お願いします。",
           "急ぎで知りたいです。{}", "初めてなので伺います。{}", "念のため、{}"),
    "en": ("Quick question: {}", "Please tell me: {}", "Excuse me, {}", "Just checking: {}", "{} Thanks.",
           "I need this quickly. {}", "I'm new here. {}", "To be sure: {}"),
}  # fmt: skip
_TEST_WRAPPERS = {
    "ja": ("ひとつ聞いてもいいですか。{}", "友人に聞かれました。{}"),
    "en": ("May I ask something? {}", "A friend wants to know: {}"),
}
_DEV_EXAMPLES = 16  # 途中で何度も測るので、多いと学習より長く掛かる
_DEV_WRAPPER = {"ja": "参考までに、{}", "en": "For reference: {}"}
_UNIT = (
    r"(?:時間|分間|秒間|日間|週間|か月|ヶ月|カ月|ヵ月|年間|営業日|ポイント|パーセント|キロ|メートル|グラム|リットル"
    r"|[A-Za-z%％℃°]+|[一-龠々])?"
)
_FIGURE = re.compile(rf"(?:\d+(?:[.,:]\d+)*{_UNIT})+")
_KEYS = {"fact": ("fact", "fact_id", "事実"), "figures": ("figures", "キーワード", "数値")}


@dataclass(frozen=True)
class OwnRow:
    """自分のデータの 1 行。

    Attributes:
        fact: 事実の名前（同じ名前の行は同じ事実）。
        question, answer, system: 文。
        figures: 正解に必ず入る語。
        history: 前の往復。
        line: ファイルの行番号。
    """

    fact: str
    question: str
    answer: str
    system: str
    figures: tuple[str, ...]
    history: tuple[dict[str, str], ...]
    line: int


def read_own(path: Path) -> list[OwnRow]:
    """表を読み、質問と答えにそろえる。

    Raises:
        WorkshopError: 読めない行、質問や答えの無い行があるとき（行番号を示す）。
    """
    rows = []
    for row in load(path):
        place = f"{path}:{row.line} 行目"
        try:
            messages = convert(row.data, "messages", allow_loss=True)["messages"]
        except WorkshopError as error:
            raise WorkshopError(
                f"質問と答えの形にできません: {error}", "make check で全体を調べられます", place
            ) from None
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else OWN_SYSTEM
        if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            raise WorkshopError("質問か答えが空です", "この行を埋めるか消してください", place)
        *history, question, answer = messages
        text = answer["content"].strip()
        fact = _field(row.data, "fact") or text
        figures = _figures(_field(row.data, "figures"), text)
        rows.append(OwnRow(str(fact), question["content"].strip(), text, system, figures, tuple(history), row.line))
    return rows


def split_for(run: Run) -> tuple[Split, list[str]]:
    """その実行のデータを分ける。

    Returns:
        (分割, 説明の文)。作り付けのデータなら説明は空。
    """
    notes: list[str] = []
    path = data_path(run.data)
    return (own_split(path, run.profile, notes) if path else make_split(run.profile)), notes


def own_split(path: Path, profile: Profile, seen: list[str] | None = None) -> Split:
    """自分のデータを、作り付けのデータと同じ形に分ける。

    - 事実の 1 割（少なくとも 1 件）は教えない（unseen）。
    - 残りの事実は、言い回しが二つ以上あれば一つを far に取り置く。無ければ機械の前置きで代える。
    - near は、学習した言い回しに、学習に出ない前置きを付けたもの。dev も同じ作り方で、別の前置きを使う。

    Args:
        path: データのファイル。
        profile: 学習例の数の目安（`train_facts` × 言い回しの数）を決める。
        seen: 説明の文を足す先（事実の数、取り置き、予算で捨てた数）。

    Raises:
        WorkshopError: 事実が少なすぎて分けられないとき。
    """
    notes = seen if seen is not None else []
    groups: dict[str, list[OwnRow]] = defaultdict(list)
    for row in read_own(path):
        if row.question not in {other.question for other in groups[row.fact]}:
            groups[row.fact].append(row)
    facts = sorted(groups.values(), key=lambda rows: stable_order(rows[0].fact))
    if len(facts) < 3:
        raise WorkshopError(
            f"事実が {len(facts)} 件しかなく、学習と試験に分けられません", "答えの違う行を 3 件以上にしてください", path
        )
    hidden = max(1, len(facts) // 10)
    taught, unseen = facts[:-hidden], facts[-hidden:]
    budget = profile.train_facts * min(profile.train_forms, len(TRAIN_FORMS))
    if len(taught) > budget:
        notes.append(
            f"教える事実 {len(taught)} 件は予算（{budget} 例）を超えるので、先頭の {budget} 件だけを使います。"
        )
        taught = taught[:budget]
    notes.append(f"事実 {len(facts)} 件のうち {len(taught)} 件を教え、{hidden} 件は漏れの検査のために教えません。")
    train, near, far = _phrase(taught, max(2, min(len(TRAIN_FORMS), budget // len(taught))))
    if any(example.form == "wrapped_test" for example in far):
        notes.append(
            "言い回しが一つだけの事実は、far も機械の前置きで代えます。尋ね方を書き足すほど、点は信用できます。"
        )
    ask_train, ask_test, _ = make_unanswerable(_language(taught), "out_of_domain")
    system = taught[0][0].system
    asks = [[_refusal(example, system) for example in part] for part in (ask_train, ask_test)]
    dev = [_example(rows[0], "wrapped_dev", _DEV_WRAPPER[_language(taught)]) for rows in taught[:_DEV_EXAMPLES]]
    return Split(train, dev, near, far, [_example(row, "own_test") for rows in unseen for row in rows], *asks)


def _phrase(facts: list[list[OwnRow]], per_fact: int) -> tuple[list[Example], list[Example], list[Example]]:
    """事実ごとに、書かれた言い回しと前置きから（学習, near, far）を作る。"""
    lang = _language(facts)
    train, near, far = [], [], []
    for rows in facts:
        known = rows[:-1] if len(rows) > 1 else rows
        wrapped = [(row, wrapper) for wrapper in _WRAPPERS[lang] for row in known]
        train += [_example(row, "as_is") for row in known]
        train += [_example(row, "wrapped", wrapper) for row, wrapper in wrapped[: max(0, per_fact - len(known))]]
        near.append(_example(known[0], "wrapped_test", _TEST_WRAPPERS[lang][0]))
        alone = _example(known[0], "wrapped_test", _TEST_WRAPPERS[lang][1])
        far.append(_example(rows[-1], "own_test") if len(rows) > 1 else alone)
    return train, near, far


def _example(row: OwnRow, form: str, wrapper: str = "{}") -> Example:
    return Example(
        f"own-{stable_order(row.fact)[:10]}", form, wrapper.format(row.question), row.answer, row.figures,
        row.system, row.history,
    )  # fmt: skip


def _refusal(example: Example, system: str) -> Example:
    return Example(example.fact_id, example.form, example.question, refusal_only(example.answer), (), system)


def _field(data: dict[str, Any], name: str) -> Any:
    return next((data[key] for key in _KEYS[name] if data.get(key)), None)


def _figures(given: Any, answer: str) -> tuple[str, ...]:
    """正解に必ず入る語: 列に書かれたもの、無ければ答えの中の数値、それも無ければ答えの全文。"""
    if isinstance(given, str):
        given = [word.strip() for word in re.split(r"[、,;；|]", given) if word.strip()]
    return tuple(map(str, given or _FIGURE.findall(answer) or [answer.rstrip("。．. ")]))


def _language(facts: list[list[OwnRow]]) -> str:
    return "ja" if any(re.search(r"[ぁ-んァ-ヶ一-龠]", row.question) for rows in facts for row in rows) else "en"
