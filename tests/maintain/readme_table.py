"""README の結果の表を、記録済みの結果から書く（手で写した数字が古くならないように）。

使い方: python tests/maintain/readme_table.py
"""

import re
from collections.abc import Mapping
from typing import Any

import pandas

from lib.data.facts import general_questions, make_split
from lib.errors import command_line
from lib.files import REPOSITORY, read_json, write_text
from lib.profiles import get_profile
from lib.score.answers import wilson
from lib.score.exam import PARTS, model_verdicts

README, SEEDS = REPOSITORY / "README.md", REPOSITORY / "data" / "recorded" / "seeds.json"
NAMES = {"base": "学習前", "sft": "SFT", "dpo": "SFT + DPO"}
_BLOCK = re.compile(r"(<!-- 結果の表 -->\n).*?(<!-- 表の終わり -->)", re.DOTALL)


def results_table(seeds: Mapping[str, Any]) -> str:
    """結果の表（Markdown）。seeds は、シード → {段: {指標: 値}}。角括弧は最初のシードの 95% 区間。"""
    split = make_split(get_profile("embedded"))
    parts = {
        "near": (f"教えた {len(split.dev)} 事実の言い換え（近い）", split.near),
        "far": ("言い換え（遠い。話題の語を使わない）", split.far),
        "unseen": ("未学習の事実（0 であるべき）", split.unseen),
        "unanswerable": ("回答不能な質問の回答拒否率", split.ask_test),
        "general": ("一般の質問（易しい）", general_questions("en")),
        "ordinary": ("一般の質問（ふつう）", general_questions("en", "ordinary")),
    }
    rows = {}
    for part, (label, asked) in parts.items():
        cells, facts = [], len({example.fact_id for example in asked})
        for model in NAMES:
            values = [row["07_evaluation"][f"{model}_{part}_accuracy"] for row in seeds.values()]
            around = wilson(values[0] * facts, facts)  # 幅は、質問でなく独立な事実の数で決める
            shown = " / ".join(f"{100 * value:.1f}" for value in (values[:1] if model == "base" else values))
            cells.append(f"{shown}% [{100 * around.low:.1f}, {100 * around.high:.1f}]")
        rows[f"{label}（{len(asked)} 問）"] = cells
    return pandas.DataFrame.from_dict(rows, orient="index", columns=NAMES.values()).to_markdown()


def verdict_lines(right: Mapping[str, Mapping[str, list[str]]]) -> str:
    """07 の六つの判定（Markdown の箇条書き）。right は、部分 → 事実 → モデルごとの正誤（質問の順の 0 と 1）。"""
    rows = {
        name: [
            {"part": part, "fact": fact, "question": f"{fact} {n}", "correct": mark == "1"}
            for part, facts in right.items() for fact, marks in facts.items() for n, mark in enumerate(marks[place])
        ]
        for place, name in enumerate(NAMES.values())
    }  # fmt: skip
    return "".join(f"\n- {a} → {b}、{PARTS[p]}: {found}" for (a, b, p), found in model_verdicts(rows).items())


def filled(text: str, seeds: Mapping[str, Any]) -> str:
    """README の文に、表を入れ直したもの。"""
    first = next(iter(seeds.values()))
    told = f"\n\nシード {next(iter(seeds))} の判定:\n{verdict_lines(first['right'])}" if "right" in first else ""
    return _BLOCK.sub(lambda block: f"{block[1]}{results_table(seeds)}{told}\n{block[2]}", text)


if __name__ == "__main__":
    with command_line():
        write_text(README, filled(README.read_text(encoding="utf-8"), read_json(SEEDS)["embedded"]))
        print(f"表を書き直しました: {README}")
