"""終わった実行の要約を `data/recorded/runs/` に記録する（保守用）。"""

from pathlib import Path

from lib.files import REPOSITORY, read_json, write_json
from lib.run import Run

_RECORDED = {
    "base_near_accuracy": "学習前: 取り置きの言い回し",
    "sft_near_accuracy": "SFT: 取り置きの言い回し",
    "sft_far_accuracy": "SFT: 別の言葉での質問",
    "sft_unseen_accuracy": "SFT: 教えていない事実",
    "sft_general_accuracy": "SFT: 一般の質問",
    "dpo_unanswerable_accuracy": "SFT + DPO: 断れた率",
}


def record_run(run: Run, machine: str) -> Path:
    """終わった実行の要約を `data/recorded/runs/` に「録画」として残す。

    Args:
        run: 07 まで終わった実行。
        machine: 機械の説明（例「2 コア x86-64、GPU なし」）。
    """
    settings = read_json(run.folder / "run.json")
    scores = run.metrics("07_evaluation")
    summary = {label: f"{scores[name]:.1%}" for name, label in _RECORDED.items()}
    gguf = run.metrics("06_merge_to_gguf")
    for kind in ("F16", *run.profile.quantizations):
        summary[f"GGUF {kind}: 取り置きの言い回し"] = f"{gguf[f'{kind.lower()}_accuracy']:.1%}"
    results = run.metrics("04_lora_sft")
    amount = f"{run.profile.train_facts} 事実 × {run.profile.train_forms} 言い回し"
    setting = f"{amount}、{run.profile.sft_epochs} 周、束 {run.profile.sft_batch}"
    summary["SFT の学習時間"] = f"{results['train_seconds']:.0f} 秒（{setting}）"
    return write_json(
        REPOSITORY / "data" / "recorded" / "runs" / f"{run.profile.name}.json",
        {
            "profile": run.profile.name,
            "model": run.profile.model,
            "date": settings["created"][:10],
            "machine": machine,
            "seed": run.seed,
            "versions": settings["versions"],
            "summary": summary,
        },
    )
