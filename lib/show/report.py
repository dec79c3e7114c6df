"""実行の結果を人に見せる: 段ごとの要約と、ブラウザで読む index.html。"""

import html
from pathlib import Path
from typing import Any

from lib.files import REPOSITORY, read_json, write_json, write_text
from lib.run import APPENDICES, BUILT_IN, Run

_TITLES = {
    "01_concepts": "ファインチューニングとは何か",
    "02_dataset": "データを作り、調べ、分ける",
    "03_baseline": "学習前の実力",
    "04_lora_sft": "LoRA SFT で事実を教える",
    "05_preference": "好みを教える: DPO と ORPO",
    "06_merge_to_gguf": "マージから GGUF まで",
    "07_evaluation": "良くなったのかを測る",
    "08_ladder": "学習するだけの価値があったか",
    "A0_experiments": "付録: 設定を変えて測る",
    "A1_methods": "付録: LoRA のほかの方法",
    "A2_rlhf": "付録: 好みの学習を、条件をそろえて比べる",
    "A3_failure_lab": "付録: 失敗の実験室",
}

# 段 → (指標の鍵, 見出し, 書式)
_KEY_METRICS = {
    "01_concepts": ("lora_max_difference", "自作 LoRA と PEFT の最大差", "{:.1e}"),
    "02_dataset": ("leaks", "漏れ", "{:.0f} 件"),
    "03_baseline": ("near_accuracy", "学習前の正答率", "{:.1%}"),
    "04_lora_sft": ("near_accuracy", "学習後の正答率", "{:.1%}"),
    "05_preference": ("dpo_pair_accuracy", "DPO 後のペア正解率", "{:.1%}"),
    "06_merge_to_gguf": ("f16_token_agreement", "HF と GGUF の一致", "{:.2%}"),
    "07_evaluation": ("near_gain", "正答率の伸び", "{:+.1%}"),
    "08_ladder": ("sft_rag_far_accuracy", "SFT + RAG の、別の言葉での質問", "{:.1%}"),
    "A3_failure_lab": ("failures", "起こして直した失敗", "{:.0f} 個"),
}
# 自分のデータでは、near は機械の前置きを付けただけの甘い試験なので、そうと分かる見出しにし、結論には far を出す。
_OWN_METRICS = {
    "04_lora_sft": ("near_accuracy", "学習後の正答率（機械の前置き）", "{:.1%}"),
    "07_evaluation": ("sft_far_accuracy", "表に書かれた別の尋ね方の正答率", "{:.1%}"),
}

STYLE = """
body{font-family:"Hiragino Sans","Noto Sans CJK JP","Noto Sans JP",sans-serif;max-width:960px;
margin:2rem auto;padding:0 1rem;line-height:1.7;color:#1b1f24;background:#fff}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.5rem .6rem;border-bottom:1px solid #d9dde3}
td.n{text-align:right}a{color:#0059a8}.missing{color:#8a4b00}footer{color:#57606a;font-size:.85rem;margin-top:2rem}
"""


def shown_stages(run: Run, record: dict[str, Any]) -> list[str]:
    """表に載せる段: 01〜08 と、実行した付録。"""
    return [*run.stages, *(name for name in APPENDICES if name in record)]


def stage_summary(run: Run, stage: str) -> str:
    """その段の主な指標を一言で。まだなら空。"""
    if not run.is_done(stage):
        return ""
    metrics = _KEY_METRICS if run.data == BUILT_IN else {**_KEY_METRICS, **_OWN_METRICS}
    key, label, form = metrics.get(stage, ("", "", ""))
    value = run.metrics(stage).get(key)
    return f"{label} {form.format(value)}" if value is not None else ""


def notebook_html(source: Path, target: Path) -> Path:
    """実行済みのノートブックを、外の資源に頼らない HTML にする。"""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab")
    exporter.mathjax_url = exporter.require_js_url = exporter.mermaid_js_url = ""
    notebook = nbformat.read(source, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "badge" not in cell.metadata.get("tags", [])]  # 外の画像
    body, _ = exporter.from_notebook_node(notebook)
    return write_text(target, body)


def write_index(run: Run, record: dict[str, Any]) -> Path:
    """実行済みのノートブックを HTML にし、入口の index.html を書く。

    Args:
        run: 実行。
        record: 段 → {"seconds": 秒}。
    """
    rows = []
    for stage in shown_stages(run, record):
        source = run.folder / "notebooks" / f"{stage}.ipynb"
        title = html.escape(f"{stage[:2]} {_TITLES[stage]}")
        if stage in record and source.exists():
            notebook_html(source, run.folder / "html" / f"{stage}.html")
            link = f'<a href="html/{stage}.html">{title}</a>'
            minutes = f"{record[stage]['seconds'] / 60:.1f}"
        else:
            link, minutes = f'<span class="missing">{title}（未完）</span>', "–"
        rows.append(
            f'<tr><td>{link}</td><td class="n">{minutes}</td><td>{html.escape(stage_summary(run, stage))}</td></tr>'
        )
    page = f"""<!doctype html><html lang="ja"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>ファインチューニング実践 — {html.escape(run.folder.name)}</title>
<style>{STYLE}</style></head><body>
<h1>ファインチューニング実践ワークショップ</h1>
<p>測った数字は、すべてこの実行の中で計算しました（「録画」と書いたものを除く）。題名を押すと、実行済みのノートブックが読めます。</p>
<table><thead><tr><th>ノートブック</th><th>分</th><th>主な指標</th></tr></thead><tbody>{"".join(rows)}</tbody></table>
<footer>実行 {html.escape(run.folder.name)} ・ プロファイル {html.escape(run.profile.name)}
・ データ {html.escape(run.data)} ・ モデル {html.escape(run.profile.model)} ・ 種 {run.seed}</footer></body></html>
"""
    return write_text(run.folder / "index.html", page)


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
