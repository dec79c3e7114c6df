"""README の結果の表を、録画から書く: `python -m lib.scoreboard`。手で写した数字が古くならないように。"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.data.facts import general_questions, make_split
from lib.errors import WorkshopError, command_line
from lib.experiments import RECORDED
from lib.files import REPOSITORY, read_json, write_text
from lib.profiles import get_profile
from lib.regression import SEEDS
from lib.run import STAGES
from lib.score.exam import wilson
from lib.talk.evidence import written

README = REPOSITORY / "README.md"
_BLOCK = re.compile(r"(<!-- 表: (\S+) -->\n).*?(<!-- 表の終わり -->)", re.DOTALL)
_LADDER = {
    "base": "そのまま", "few_shot": "例を見せる", "policy": "規則を全部渡す", "rag": "RAG", "sft": "SFT",
    "dpo": "SFT + DPO", "sft_rag": "SFT + RAG",
}  # fmt: skip

_TRAINED = {"sft", "dpo", "sft_rag"}

# 付録 A0 の元の設定と、変えたもの。録画から、書いた設定どおりの点を探す
_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_A0 = {
    "lang": "ja", "facts": 16, "forms": 7, "subset": "", "epochs": 2, "learning_rate": 2e-3, "rank": 16,
    "targets": _ALL, "from_layer": 0, "general_share": 0.0, "seed": 0,
}  # fmt: skip
_SWEEPS: dict[str, dict[str, dict[str, Any]]] = {
    "学習率": {f"{rate:g}": {"learning_rate": rate} for rate in (2e-4, 1e-3, 2e-3, 2e-2)},
    "rank": {f"{rank}": {"rank": rank} for rank in (4, 16, 64)},
    "付ける場所": {"q,v": {"targets": ["q_proj", "v_proj"]}, "q,k,v,o": {"targets": _ALL[:4]}, "全線形層": {}},
    "言い回し（延べ 224 例）": {
        "1 通り": {"forms": 1, "epochs": 14},
        "2 通り": {"forms": 2, "epochs": 7},
        "7 通り": {},
    },
    "例の数": {f"{size} 件": {"subset": size} for size in ("10", "50", "100", "300")},
    "一般の問答を混ぜる": {"混ぜない": {}, "20%": {"general_share": 0.2}},
    "言語（6 通り、96 例）": {"日本語": {"forms": 6}, "英語": {"forms": 6, "lang": "en"}},
}


def tables(seeds: Mapping[str, Any]) -> dict[str, str]:
    """表の名前 → Markdown。

    Args:
        seeds: 種 → {段: {指標: 値}}（`data/recorded/seeds.json` の一つのプロファイル）。
    """
    return {
        "結果": _results(seeds),
        "選好": _preference(seeds),
        "GGUF": _gguf(seeds),
        "やり方": _ladder(seeds),
        "時間": _minutes(),
        "実験": _sweeps(),
    }


def _each(seeds: Mapping[str, Any], stage: str, key: str, form: str = "{:.1f}", scale: float = 100) -> str:
    """種ごとの値を / で並べる。"""
    return " / ".join(form.format(scale * row[stage][key]) for row in seeds.values())


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _results(seeds: Mapping[str, Any]) -> str:
    split = make_split(get_profile("embedded"))
    parts = {
        "near": (f"教えた {len(split.dev)} 事実を、取り置きの言い回しで", len(split.near)),
        "far": ("話題の語を使わない質問で", len(split.far)),
        "unseen": ("教えていない事実（0 であるべき）", len(split.unseen)),
        "unanswerable": ("答えの無い質問を断れたか", len(split.ask_test)),
        "general": ("一般の質問（英語）", len(general_questions())),
    }
    first = next(iter(seeds.values()))["07_evaluation"]
    rows = []
    for part, (label, count) in parts.items():
        row = [f"{label}（{count} 問）"]
        for model in ("base", "sft", "dpo"):
            key = f"{model}_{part}_accuracy"
            around = wilson(round(first[key] * count), count)
            value = f"{100 * first[key]:.1f}" if model == "base" else _each(seeds, "07_evaluation", key)
            row.append(f"{value}% [{100 * around.low:.1f}, {100 * around.high:.1f}]")
        rows.append(row)
    return _table(["", "学習前", "SFT", "SFT + DPO"], rows)


def _preference(seeds: Mapping[str, Any]) -> str:
    keys = {
        "pair_accuracy": "ペア正解率（48 組）",
        "refusal_rate": "断れた率（48 問）",
        "near_accuracy": "事実の正答率（32 問）",
    }
    rows = [
        [name, *(f"{_each(seeds, '05_preference', f'{model}_{key}')}%" for key in keys)]
        for model, name in (("sft", "SFT"), ("dpo", "SFT + DPO"), ("orpo", "ORPO（学習前から、DPO と同じ歩数）"))
    ]
    return _table(["", *keys.values()], rows)


def _gguf(seeds: Mapping[str, Any]) -> str:
    stage = "06_merge_to_gguf"
    first = next(iter(seeds.values()))[stage]
    rows = []
    for kind in (key.removesuffix("_mb") for key in first if key.endswith("_mb")):
        row = [kind.upper(), f"{first[f'{kind}_mb']:.1f} MB", f"{_each(seeds, stage, f'{kind}_accuracy')}%"]
        if f"{kind}_kl" in first:
            row += [f"{_each(seeds, stage, f'{kind}_agreement')}%", _each(seeds, stage, f"{kind}_kl", "{:.4f}", 1)]
            row += [f"{_each(seeds, stage, f'{kind}_changed_rate')}%"]
        else:  # 比べる相手の F16 そのもの
            row += [f"{_each(seeds, stage, f'{kind}_token_agreement')}%", "–", "–"]
        rows.append(row)
    head = [
        "GGUF",
        "大きさ",
        "正答率（32 問）",
        "次のトークンが HF と同じ",
        "F16 からの KL（nat）",
        "F16 から変わった答え",
    ]
    return _table(head, rows)


def _ladder(seeds: Mapping[str, Any]) -> str:
    rows = []
    for key, name in _LADDER.items():
        row = [name]
        for part in ("near", "far", "unseen", "unanswerable"):
            metric = f"{key}_{part}_accuracy"
            if key in _TRAINED:
                row.append(f"{_each(seeds, '08_ladder', metric)}%")
            else:  # 学習前の段は、ふつう種によらない
                row.append(written([seed["08_ladder"][metric] for seed in seeds.values()], "{:.1%}"))
        rows.append(row)
    return _table(
        [
            "やり方",
            "取り置きの言い回し（16 問）",
            "話題の語を使わない質問（16 問）",
            "教えていない事実（8 問）",
            "断れたか（8 問）",
        ],
        rows,
    )


def _minutes() -> str:
    seconds = get_profile("embedded").expected_seconds
    cells = [f"{value / 60:.1f}" for value in (*seconds, sum(seconds))]
    return _table(["所要（分）", *(stage[:2] for stage in STAGES[: len(seconds)]), "合計"], [["`embedded`", *cells]])


def _sweeps() -> str:
    points = [point for point in read_json(RECORDED).values() if "subset" in point["settings"]]
    rows = []
    for name, changes in _SWEEPS.items():
        found = [
            next(p["result"] for p in points if p["settings"].items() >= (_A0 | change).items())
            for change in changes.values()
        ]
        shown = [" / ".join(changes)]
        shown += [" / ".join(f"{100 * point[part]:.0f}" for point in found) + "%" for part in ("near", "general")]
        rows.append([name, *shown])
    return _table(["変えたもの", "値", "取り置きの言い回し", "一般の質問（24 問）"], rows)


def filled(text: str, seeds: Mapping[str, Any]) -> str:
    """README の文に、表を入れ直したもの。

    Raises:
        WorkshopError: 知らない名前の表があるとき。
    """
    made = tables(seeds)
    if unknown := {name for _, name, _ in _BLOCK.findall(text)} - set(made):
        raise WorkshopError(
            f"表「{'、'.join(unknown)}」は作れません", f"次のどれかにしてください: {'、'.join(made)}", README
        )
    return _BLOCK.sub(lambda block: f"{block[1]}{made[block[2]]}\n{block[3]}", text)


def main(readme: Path = README) -> None:
    """コマンドの入口。"""
    with command_line():
        write_text(readme, filled(readme.read_text(encoding="utf-8"), read_json(SEEDS)["embedded"]))
        print(f"表を書き直しました: {readme}")


if __name__ == "__main__":
    main()
