"""触って試す部品の中身。引数から、表や図のもとになる値を計算する。画面には触れない。"""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def lora_parameters(model: Any, targets: Sequence[str], rank: int) -> int:
    """その線形層に LoRA を付けたとき、学習する数。

    Args:
        model: モデル。重みの無い meta デバイスの箱でよい。
        targets: 付ける層の名前の末尾（"q_proj" など）。
        rank: 差分の太さ r。
    """
    chosen = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in targets]
    return sum(rank * (layer.in_features + layer.out_features) for layer in chosen)


def pieces(tokenizer: Any, text: str) -> list[tuple[str, int, bool]]:
    """文をトークンに分け、(文字, id, 前のトークンと同じ文字の続きか) の列にする。

    1 文字が複数のトークンに割れたときは、初めのトークンがその文字を持ち、続きは「…」になる。
    """
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    shown, reached = [], 0
    for number, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        going_on = start < reached
        shown.append((text[reached:end] or "…" if going_on else text[start:end], number, going_on))
        reached = max(reached, end)
    return shown


def learning_rates(kind: str, peak: float, warmup: float, steps: int) -> list[dict[str, float]]:
    """歩ごとの学習率。空の重みを、Trainer が使うのと同じスケジューラで進めて読む。

    Args:
        kind: スケジューラの種類（`lr_scheduler_type`）。
        peak: いちばん高い学習率。
        warmup: 1 未満なら全体に対する割合、1 以上なら歩数（`warmup_steps` と同じ）。
        steps: 全部の歩数。
    """
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    first = int(warmup) if warmup >= 1 else math.ceil(steps * warmup)
    scheduler = get_scheduler(kind, optimizer, first, steps)
    rows = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "learning_rate": float(optimizer.param_groups[0]["lr"])})
        optimizer.step()
        scheduler.step()
    return rows


def smallest_fit(
    measured: Mapping[str, Mapping[str, float]], megabytes: float, agreement: float, correct: float
) -> str | None:
    """条件をすべて満たす量子化のうち、いちばん小さいもの。無ければ None。

    Args:
        measured: 種類 → {"megabytes", "agreement", "correct"}。
        megabytes: 大きさの上限（MB）。
        agreement: 1 位の語が HF と一致する割合の下限。
        correct: 正答率の下限。
    """
    fit = [
        kind
        for kind, row in measured.items()
        if row["megabytes"] <= megabytes and row["agreement"] >= agreement and row["correct"] >= correct
    ]
    return min(fit, key=lambda kind: measured[kind]["megabytes"], default=None)


def side_by_side(results: Mapping[str, Sequence[Mapping[str, Any]]], parts: Mapping[str, str]) -> dict[str, Any]:
    """残した答えを、質問ごとに並べる。

    Args:
        results: モデル → 採点の行。どのモデルも同じ質問を同じ順で持つ。
        parts: 部分 → 見出し。

    Returns:
        「見出し: 質問」→ {"question", "reference", "answers": [(モデル, 答え, 正答か)]}。
    """
    found: dict[str, Any] = {}
    for rows in zip(*results.values(), strict=True):
        row = rows[0]
        answers = [(name, r["answer"], r["correct"]) for name, r in zip(results, rows, strict=True)]
        assert {r["question"] for r in rows} == {row["question"]}, "問題の並びが違う"
        entry = {"question": row["question"], "reference": row["reference"], "answers": answers}
        found[f"{parts[row['part']]}: {row['question']}"] = entry
    return found
