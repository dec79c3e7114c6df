"""実行の結果を人に見せる: index.html、07 の報告と model card、リリースゲート。どれも残した成果物だけから作る。

使い方: `python -m lib.show.page report --run 名前`、`python -m lib.show.page gate --run 名前 --better near`。
同じ成果物からは、同じ字の報告ができる（時刻は入れない）。
"""

import argparse
import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.data.facts import DATA, FORM_LABELS, read_jsonl
from lib.errors import WorkshopError, command_line
from lib.files import REPOSITORY, read_json, write_text
from lib.run import APPENDICES, BUILT_IN, Run, reopen
from lib.score.exam import PARTS, gain, load_rows, share
from lib.show.plots import curve

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


Rows = list[dict[str, Any]]
BASE = "学習前"


def load_results(run: Run) -> dict[str, Rows]:
    """07 が採点した表を、モデルごとに分けて返す（学習前が先頭）。

    Raises:
        WorkshopError: 07 の採点がまだ無いとき。
    """
    folder = run.folder / "07_evaluation"
    if not (folder / "comparison_evaluation.json").exists():
        raise WorkshopError("採点の表がまだありません", "先に 07 のノートブックを実行してください", folder)
    by_model: dict[str, Rows] = {}
    for row in load_rows(folder, "comparison_evaluation"):
        by_model.setdefault(BASE if row["model"] == "base" else row["model"], []).append(row)
    return by_model


def write_report(run: Run) -> Path:
    """報告と model card を `07_evaluation/` に書き、report.html の場所を返す。"""
    results = load_results(run)
    folder = run.folder / "07_evaluation"
    text = report_text(run, results)
    write_text(folder / "report.md", text)
    write_text(folder / "model_card.md", model_card(run, results))
    return write_text(folder / "report.html", _page(run, text, _curve(run)))


def report_text(run: Run, results: dict[str, Rows]) -> str:
    """報告の Markdown。"""
    sections = {
        "要約": summary_lines(results, _missing(run)),
        "設定": _settings(run),
        "点数": _table(
            ["部分", *results], [[PARTS[p], *(share(r, p).as_percent() for r in results.values())] for p in PARTS]
        )
        + ["", "角括弧は 95% 区間（Wilson）です。"],
        "学習前との差": _gains(results),
        "言い回しと分野": _by_kind(run, results),
        "学習の様子": _training(run),
        "良かった答えと、悪かった答え": _samples(results),
        "見つかった失敗": failures(results),
        "費用": _cost(run),
        "次に試すこと": next_steps(results),
    }
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())
    return f"# 評価の報告: {run.folder.name}\n\n{body}\n"


def summary_lines(results: dict[str, Rows], missing: dict[str, str]) -> list[str]:
    """いちばん言いたいことを、区間から決めた言葉で。読めなかったモデルは 0 点とせず、無いと書く。"""
    lines = []
    for name, rows in results.items():
        if name != BASE:
            said = "、".join(
                f"{PARTS[part]}: {gap.verdict()}（{gap.as_percent()}）"
                for part in ("near", "far", "general")
                for gap in [gain(results[BASE], rows, part)]
            )
            lines.append(f"- **{name}**（学習前と比べて）: {said}")
    return lines + [f"- **{name}**: 測れなかった（{reason}）。" for name, reason in missing.items()]


def failures(results: dict[str, Rows]) -> list[str]:
    """点数の裏で起きた、困ること。数えて 0 件なら、0 件と書く。"""
    lines = []
    for name, rows in results.items():
        if name == BASE:
            continue
        made_up, leak = share(rows, "unanswerable", "made_up"), share(rows, "unseen")
        lost = gain(results[BASE], rows, "general")
        lines += [
            f"- {name}: 答えの無い質問で、でたらめな数字を言った割合 {made_up.as_percent()}",
            f"- {name}: 教えていない事実の正答 {leak.as_percent()}（0 でなければ、漏れか偶然）",
            f"- {name}: 学習前と比べた一般の質問: {lost.verdict()}（{lost.as_percent()}）",
        ]
    return lines


def next_steps(results: dict[str, Rows]) -> list[str]:
    """測った値から決まる、次の一手。"""
    name, rows = next((item for item in results.items() if item[0] != BASE), (BASE, results[BASE]))
    rules = [
        (share(rows, "near").low < 0.8, "取り置きの言い回しの下限が 80% 未満。周回か、言い回しの種類を増やす（A0）"),
        (share(rows, "far").high < 0.8, "別の言葉での質問に弱い。質問に近い規則を渡す RAG を試す（08）"),
        (gain(results[BASE], rows, "general").high < 0, "一般の質問が下がった。一般の問答を 1〜2 割混ぜる（A0）"),
        (share(rows, "unanswerable").high < 0.5, "断れない。断りの例を SFT のデータに入れる"),
        (share(rows, "unseen").low > 0, "教えていない事実に答えている。02 の漏れの検査を見直す"),
    ]  # fmt: skip
    return [f"- {step}（{name}）" for hit, step in rules if hit] or ["- 目立った弱点は、この試験では見つからなかった"]


def model_card(run: Run, results: dict[str, Rows]) -> str:
    """公開するときの説明書（Hugging Face の model card の形）。点数は報告と同じ表から。"""
    best = next((name for name in results if name != BASE), BASE)
    scores = _table(
        ["部分", BASE, best], [[PARTS[p], *(share(results[n], p).as_percent() for n in (BASE, best))] for p in PARTS]
    )
    lines = [
        "---", "language: ja", f"base_model: {run.profile.model}", "library_name: peft", "tags: [lora, sft]", "---", "",
        f"# {run.folder.name}", "", f"{run.profile.model} に LoRA で {_data_name(run)} の事実を教えました。", "",
        "## 点数（学習に使っていない質問）", "", *scores, "", "## 使う前に", "", *failures(results), "",
        "答えは事実と違うことがあります。そのまま人に見せないでください。",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _missing(run: Run) -> dict[str, str]:
    path = run.folder / "07_evaluation" / "missing.json"
    return read_json(path) if path.exists() else {}


def _data_name(run: Run) -> str:
    return "架空の店「みなも堂」" if run.data == BUILT_IN else Path(run.data).stem


def _settings(run: Run) -> list[str]:
    # 学習したときの版。無ければ、実行を始めたときの版
    trained = run.folder / "04_lora_sft" / "adapter" / "manifest.json"
    found = read_json(trained if trained.exists() else run.folder / "run.json").get("versions", {})
    versions = "、".join(f"{name} {found[name]}" for name in ("torch", "transformers", "trl", "peft") if name in found)
    p = run.profile
    return [
        f"- モデル {p.model}、プロファイル {p.name}、種 {run.seed}、データ {_data_name(run)}",
        f"- SFT: {p.sft_epochs} 周、束 {p.sft_batch}、学習率 {p.sft_learning_rate:g}、LoRA r={p.lora_rank}",
        f"- 版: {versions}",
    ]


def _gains(results: dict[str, Rows]) -> list[str]:
    tuned = [name for name in results if name != BASE]
    cells = {(n, p): gain(results[BASE], results[n], p) for n in tuned for p in PARTS}
    rows = [[PARTS[p], *(f"{cells[n, p].verdict()} {cells[n, p].as_percent()}" for n in tuned)] for p in PARTS]
    return [*_table(["部分", *tuned], rows), "", "事実ごとに引き直した、対応のある差の 95% 区間です。"]


def _by_kind(run: Run, results: dict[str, Rows]) -> list[str]:
    categories = {}
    if run.data == BUILT_IN:
        categories = {fact["id"]: fact["category"] for fact in read_jsonl(DATA / "support" / "facts.jsonl")}
    lines: list[str] = []
    for title, key in (("言い回し", "form"), ("分野", "category")):
        counts: dict[str, dict[str, list[bool]]] = {}
        for name, rows in results.items():
            for row in rows:
                if row["part"] in ("near", "far"):
                    kind = FORM_LABELS[row["form"]] if key == "form" else categories.get(row["fact"], "")
                    counts.setdefault(kind, {}).setdefault(name, []).append(row["correct"])
        counts.pop("", None)
        if counts:
            cells = [
                [k, str(len(next(iter(v.values())))), *(f"{sum(v[n])}" for n in results)] for k, v in counts.items()
            ]
            lines += [*_table([title, "問", *(f"{n}の正答" for n in results)], cells), ""]
    return lines


def _training(run: Run) -> list[str]:
    path = run.folder / "04_lora_sft" / "training_results.json"
    if not path.exists():
        return ["学習の記録がありません。"]
    found = read_json(path)
    losses = [row["loss"] for row in found["history"] if "loss" in row]
    dev = [row["eval_loss"] for row in found["history"] if "eval_loss" in row]
    return [
        f"- 学習の損失: {losses[0]:.4f} → {losses[-1]:.4f}（{len(losses)} 歩、{found['seconds']:.0f} 秒）",
        f"- 開発用の損失（周ごと）: {' → '.join(f'{loss:.4f}' for loss in dev)}",
    ]


def _samples(results: dict[str, Rows], count: int = 3) -> list[str]:
    lines: list[str] = []
    for name, rows in results.items():
        if name != BASE:
            right = [row for row in rows if row["correct"] and row["part"] in ("near", "far")][:count]
            wrong = [row for row in rows if not row["correct"] and row["part"] in ("near", "far")]
            wrong = sorted(wrong, key=lambda row: not row["made_up"])[:count]
            cells = [
                [mark, row["question"], row["reference"], row["answer"]]
                for mark, part in (("○", right), ("×", wrong))
                for row in part
            ]
            lines += [f"**{name}**", "", *_table(["", "質問", "正解", "答え"], cells), ""]
    return lines


def _cost(run: Run) -> list[str]:
    path = run.folder / "stages.json"
    stages = read_json(path) if path.exists() else {}
    lines = _table(["段", "秒"], [[name, f"{row['seconds']:.0f}"] for name, row in stages.items() if name < "07"])
    adapter = run.folder / "04_lora_sft" / "adapter" / "adapter_model.safetensors"
    if adapter.exists():
        lines += ["", f"アダプタの大きさ {adapter.stat().st_size / 1e6:.1f} MB。"]
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown の表。縦棒と改行は表を壊し、`](` は外の画像を読ませるので、置き換える。"""
    clean = [[" ".join(str(cell).split()).replace("|", "｜").replace("](", "]\\(") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *clean]]


def _curve(run: Run) -> str:
    path = run.folder / "04_lora_sft" / "training_results.json"
    if not path.exists():
        return ""
    buffer = io.BytesIO()
    figure = curve(read_json(path)["history"], ["loss", "eval_loss"], "学習と開発用の損失")
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return f'<img alt="学習と開発用の損失" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _page(run: Run, text: str, image: str) -> str:
    import mistune

    body = str(mistune.create_markdown(plugins=["table"])(text))
    title = "<h2>学習の様子</h2>"
    return (
        f'<!doctype html><html lang="ja"><head><meta charset="utf-8"><title>評価の報告: {run.folder.name}</title>'
        f"<style>{STYLE}</style></head><body>{body.replace(title, title + image)}</body></html>\n"
    )


def gate(
    results: dict[str, Rows], model: str, better: Sequence[str], not_worse: Sequence[str]
) -> list[tuple[str, str, bool]]:
    """条件ごとに（部分、判定の言葉、通ったか）を返す。言葉も合否も、平均ではなく 95% 区間から決める。

    Args:
        results: モデル → 採点の行。
        model: 調べるモデル。
        better: 学習前より良いと示せなければならない部分。
        not_worse: 学習前より悪いと示されてはならない部分。

    Raises:
        WorkshopError: モデルか部分の名前が無いとき。
    """
    if model not in results or model == BASE:
        found = "、".join(name for name in results if name != BASE)
        raise WorkshopError(f"モデル「{model}」の採点がありません", f"--model は次から選んでください: {found}")
    verdicts = []
    for part in [*better, *not_worse]:
        if part not in PARTS:
            raise WorkshopError(f"部分「{part}」はありません", f"次から選んでください: {', '.join(PARTS)}")
        gap = gain(results[BASE], results[model], part)
        passed = gap.low > 0 if part in better else gap.high >= 0
        verdicts.append((part, f"{gap.verdict()} {gap.as_percent()}", passed))
    return verdicts


def main() -> None:
    """コマンドの入口。gate は、条件を満たせば 0、満たさなければ 1 で終わる。"""
    parser = argparse.ArgumentParser(description="終わった実行の報告を作り直す（report）、合否を決める（gate）")
    parser.add_argument("what", choices=("report", "gate"))
    parser.add_argument("--run", default="embedded")
    parser.add_argument("--model", default="SFT")
    parser.add_argument("--better", nargs="+", default=["near"], help=f"上がったと示せること（{', '.join(PARTS)}）")
    parser.add_argument("--not-worse", nargs="*", default=[], help="下がったと示されないこと")
    options = parser.parse_args()
    with command_line():
        run = reopen(options.run)
        if options.what == "report":
            print(write_report(run).relative_to(REPOSITORY))
            return
        verdicts = gate(load_results(run), options.model, options.better, options.not_worse)
        for part, said, passed in verdicts:
            print(f"{'○' if passed else '×'} {PARTS[part]}: {said}")
        if not all(passed for *_, passed in verdicts):
            raise WorkshopError(f"{options.model} は、配備の条件を満たしません", "上の × の部分を直してください")
        print(f"{options.model} は、配備の条件をすべて満たしました。")


if __name__ == "__main__":
    main()
