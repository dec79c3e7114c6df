"""選好ペアを作る: 規則から、人が書いたものから、モデルに何度も答えさせたものから。

悪い理由は四つだけ: 数字が違う・でたらめ・あいまい・無礼。どれも規則で確かめられる。
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from lib.data.facts import DATA, Example, Split, make_unanswerable, read_jsonl, stable_order
from lib.errors import WorkshopError
from lib.score.answers import is_refusal, makes_up_figure
from lib.text.quantities import nfkc, states

WRONG, MADE_UP, VAGUE, RUDE = "数字が違う", "でたらめ", "あいまい", "無礼"
REASONS = {"wrong_figure": WRONG, "made_up": MADE_UP, "vague": VAGUE, "rude": RUDE}
# 害の大きい順。間違った数字は、言葉づかいの悪さより先に直したい。
_GOODNESS = {WRONG: 0, MADE_UP: 0, VAGUE: 1, RUDE: 2, "": 3}
_POLITE_END = re.compile(r"(?:です|ます|ません|ました|でした|ください|でしょう)(?:か|ね|が)?[。.!！?？]?$")
_JAPANESE = re.compile(r"[ぁ-んァ-ヶ一-龠]")

Judge = Callable[[str, str, str], str]
"""審判: (質問, 答え A, 答え B) → "A" / "B" / ""（決められない）。"""


def make_pairs(split: Split, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """規則で作った選好ペアを（学習用, 取り置き）で返す。

    半分は「数字が違う」（正しい答え 対 別の事実の答えの数字）、半分は「でたらめ」（断り 対 作り話）。
    取り置きは、学習に出ない文型と話題で作る。

    Returns:
        TRL の会話型の選好データ。各行に `reason`（なぜ悪いか）を添える。
    """
    made_up = make_unanswerable("ja" if _JAPANESE.search(split.ask_train[0].question) else "en")[2]

    def wrong(examples: list[Example]) -> list[dict[str, Any]]:
        figures = sorted({e.figures[0] for e in examples}, key=stable_order)
        return [pair(e, e.answer, _swap_figure(e, figures), WRONG) for e in examples if e.figures[0][0].isdigit()]

    def invented(examples: list[Example]) -> list[dict[str, Any]]:
        return [pair(e, e.answer, made_up[e.fact_id], MADE_UP) for e in examples]

    def spread(rows: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda r: stable_order(r["prompt"][-1]["content"] + r["reason"]))[:number]

    train = spread(wrong(split.train), count // 2) + spread(invented(split.ask_train), count - count // 2)
    test = spread(wrong(split.near), 24) + spread(invented(split.ask_test), 24)
    return sorted(train, key=lambda r: stable_order(r["prompt"][-1]["content"])), test


def written_pairs(split: Split, lang: str = "ja") -> list[dict[str, Any]]:
    """一組ずつ書かれたペアのうち、学習に使ってよいもの（教える事実と、学習用の話題だけ）。"""
    taught = {e.fact_id: e for e in [*split.ask_train, *split.train]}
    rows = []
    for row in read_jsonl(DATA / "support" / "preferences.jsonl"):
        source = taught.get(row["fact"] or row["unanswerable"])
        if source:
            text = row[lang]
            example = Example(source.fact_id, "written", text["prompt"], text["chosen"], source.figures, source.system)
            rows.append(pair(example, text["chosen"], text["rejected"], REASONS[row["reason"]]))
    return rows


def fault(example: Example, answer: str) -> str:
    """答えの欠点を四つの理由のどれかで返す。良い答えなら空。

    数値の無い質問（答えの無い質問）では、断れば良い答え、そうでなければ「でたらめ」とする。
    """
    if not example.figures:
        return "" if is_refusal(answer) else MADE_UP
    if makes_up_figure(example, answer):
        return WRONG
    if not all(states(answer, figure) for figure in example.figures):
        return VAGUE
    return RUDE if _JAPANESE.search(example.answer) and not _POLITE_END.search(answer.strip()) else ""


def rank_pairs(
    examples: Sequence[Example], samples: Sequence[Sequence[str]], judge: Judge | None = None
) -> list[dict[str, Any]]:
    """同じ質問への何通りかの答えから、最も良いものと最も悪いものを組にする。

    良し悪しは `fault` の規則で決める。規則で差が付かない質問だけを審判に尋ね、
    順を入れ替えても同じほうを選んだときだけ組にする（審判は先に出たほうを好みがちなため）。

    Args:
        examples: 質問。形は (n,)。
        samples: 質問ごとの答え。形は (n, 答えの数)。モデルに温度つきで答えさせたもの。
        judge: 審判。None なら規則だけで決める。
    """
    rows = []
    for example, answers in zip(examples, samples, strict=True):
        ranked = sorted(set(answers), key=lambda a: (-_GOODNESS[fault(example, a)], stable_order(a)))
        if len(ranked) < 2:
            continue
        best, worst = ranked[0], ranked[-1]
        if _GOODNESS[fault(example, best)] > _GOODNESS[fault(example, worst)]:
            rows.append(pair(example, best, worst, fault(example, worst)))
        elif judge:
            verdicts = judge(example.question, best, worst), judge(example.question, worst, best)
            if verdicts in (("A", "B"), ("B", "A")):
                chosen, rejected = (best, worst) if verdicts[0] == "A" else (worst, best)
                rows.append(pair(example, chosen, rejected, "審判の判断"))
    return rows


def read_choice(text: str) -> str:
    """審判の返事から A か B を読む。どちらとも決められなければ空。"""
    text = nfkc(text).strip()
    if first := re.match(r"([ABab])(?![A-Za-z])", text):
        text = first[1].upper() + text[1:]
    found = set(re.findall(r"(?<![A-Za-z])[AB](?![A-Za-z])", text))
    return found.pop() if len(found) == 1 else ""


def openai_judge(base_url: str, model: str, key_variable: str = "WORKSHOP_JUDGE_KEY", seconds: float = 60) -> Judge:
    """OpenAI 互換の口を持つ審判を作る（手元の llama.cpp サーバでもよい）。

    Args:
        base_url: 例 `http://127.0.0.1:8080/v1`。
        model: モデル名。
        key_variable: 鍵を入れた環境変数の名前。鍵そのものは引数にも出力にも現れない。
        seconds: 1 回の問い合わせを待つ長さ（秒）。

    Returns:
        審判。呼んだときに接続できないと `WorkshopError` を出す。
    """

    def judge(question: str, a: str, b: str) -> str:
        task = "客への返答として良いほうを、A か B の 1 文字だけで答えてください。"
        ask = f"質問: {question}\n\nA: {a}\n\nB: {b}\n\n{task}"
        body = {"model": model, "temperature": 0, "max_tokens": 4, "messages": [{"role": "user", "content": ask}]}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get(key_variable, '')}"}
        request = urllib.request.Request(f"{base_url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                return read_choice(json.load(reply)["choices"][0]["message"]["content"])
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            reason = error.code if isinstance(error, urllib.error.HTTPError) else type(error).__name__
            raise WorkshopError(
                f"審判が答えません（{reason}）", "宛先と鍵の環境変数を確かめてください", base_url
            ) from None

    return judge


def pair(example: Example, chosen: str, rejected: str, reason: str) -> dict[str, Any]:
    """TRL の会話型の選好データの 1 行（と、悪い理由）。"""
    return {
        "prompt": example.prompt(),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "reason": reason,
    }


def _swap_figure(example: Example, figures: list[str]) -> str:
    """正解の数値を、同じ単位の別の事実の数値（無ければ 1 桁目を変えたもの）に替えた、もっともらしい誤答。"""
    mine = example.figures[0]
    unit = re.sub(r"[\d.]", "", mine)
    others = [figure for figure in figures if figure != mine and re.sub(r"[\d.]", "", figure) == unit]
    start = int(stable_order(example.question), 16)
    other = others[start % len(others)] if others else str((int(mine[0]) % 9) + 1) + mine[1:]
    return example.answer.replace(mine, other)
