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

README, SEEDS = REPOSITORY / "README.md", REPOSITORY / "data" / "recorded" / "seeds.json"
_BLOCK = re.compile(r"(<!-- 結果の表 -->\n).*?(<!-- 表の終わり -->)", re.DOTALL)


def results_table(seeds: Mapping[str, Any]) -> str:
    """結果の表（Markdown）。seeds は、シード → {段: {指標: 値}}。角括弧は最初のシードの 95% 区間。"""
    split = make_split(get_profile("embedded"))
    parts = {
        "near": (f"教えた {len(split.dev)} 事実の言い換え（近い）", len(split.near)),
        "far": ("言い換え（遠い。話題の語を使わない）", len(split.far)),
        "unseen": ("未学習の事実（0 であるべき）", len(split.unseen)),
        "unanswerable": ("回答不能な質問の回答拒否率", len(split.ask_test)),
        "general": ("一般の質問（英語）", len(general_questions())),
    }
    rows = {}
    for part, (label, count) in parts.items():
        cells = []
        for model in ("base", "sft", "dpo"):
            values = [row["07_evaluation"][f"{model}_{part}_accuracy"] for row in seeds.values()]
            around = wilson(round(values[0] * count), count)
            shown = " / ".join(f"{100 * value:.1f}" for value in (values[:1] if model == "base" else values))
            cells.append(f"{shown}% [{100 * around.low:.1f}, {100 * around.high:.1f}]")
        rows[f"{label}（{count} 問）"] = cells
    return pandas.DataFrame.from_dict(rows, orient="index", columns=["学習前", "SFT", "SFT + DPO"]).to_markdown()


def filled(text: str, seeds: Mapping[str, Any]) -> str:
    """README の文に、表を入れ直したもの。"""
    return _BLOCK.sub(lambda block: f"{block[1]}{results_table(seeds)}\n{block[2]}", text)


if __name__ == "__main__":
    with command_line():
        write_text(README, filled(README.read_text(encoding="utf-8"), read_json(SEEDS)["embedded"]))
        print(f"表を書き直しました: {README}")
