"""README の結果の表を、記録済みの結果から書く（手で写した数字が古くならないように）。

使い方: python tests/maintain/readme_table.py
"""

import re
from collections.abc import Mapping
from typing import Any

import pandas

from lib.errors import command_line
from lib.files import REPOSITORY, read_json, write_text
from lib.score.exam import PARTS, model_verdicts

README, SEEDS = REPOSITORY / "README.md", REPOSITORY / "data" / "recorded" / "seeds.json"
LABELS = PARTS | {"unseen": "未学習の事実（0 であるべき）", "unanswerable": "回答不能な質問の回答拒否率"}
NAMES = {"base": "学習前", "sft": "SFT", "dpo": "SFT + DPO"}
_BLOCK = re.compile(r"(<!-- 結果の表 -->\n).*?(<!-- 表の終わり -->)", re.DOTALL)


def shares(by_seed: Mapping[str, Any]) -> dict[str, list[str]]:
    """モデル → 部分ごとの正答率（シードの順。どのシードでも同じ値は一度だけ）。"""
    found = {}
    for model, name in NAMES.items():
        rows = [
            [f"{100 * row['07_evaluation'][f'{model}_{part}_accuracy']:.0f}" for part in LABELS]
            for row in by_seed.values()
        ]
        found[name] = [" / ".join(values if len(set(values)) > 1 else values[:1]) for values in zip(*rows, strict=True)]
    return found


def judged(by_seed: Mapping[str, Any]) -> dict[str, str]:
    """最初のシードの六つの判定（07 と同じ検定）。正誤は、部分 → 事実 → モデルごとの、質問の順の 0 と 1。"""
    rows = {
        name: [
            {"part": part, "fact": fact, "question": f"{fact} {n}", "correct": mark == "1"}
            for part, facts in next(iter(by_seed.values()))["right"].items()
            for fact, marks in facts.items() for n, mark in enumerate(marks[place])
        ]
        for place, name in enumerate(NAMES.values())
    }  # fmt: skip
    found = {f"{a} → {b}、{LABELS[p]}": str(change) for (a, b, p), change in model_verdicts(rows).items()}
    return {key: text.partition("、")[2] or text for key, text in found.items()}


def filled(text: str, seeds: Mapping[str, Any]) -> str:
    """README の文に、二つの表（正答率と判定）を入れ直したもの。seeds は、プロファイル → シード → {段: {指標: 値}}。"""
    chosen = {name: seeds[name] for name in ("embedded", "embedded-ja") if name in seeds}
    chosen = {p if len(rows) > 2 else f"{p}（シード {'・'.join(rows)}）": rows for p, rows in chosen.items()}
    table = pandas.DataFrame({f"{p} {m}": v for p in chosen for m, v in shares(chosen[p]).items()}, LABELS.values())
    words = pandas.DataFrame({p: judged(chosen[p]) for p in chosen}).rename_axis("シード 0 の判定")
    tables = [table.rename_axis("正答率（%）"), words]
    shown = "\n\n".join(re.sub(" {2,}", " ", re.sub("-{3,}", "--", one.to_markdown())) for one in tables)
    return _BLOCK.sub(lambda block: f"{block[1]}{shown}\n{block[2]}", text)


if __name__ == "__main__":
    with command_line():
        write_text(README, filled(README.read_text(encoding="utf-8"), read_json(SEEDS)))
        print(f"表を書き直しました: {README}")
