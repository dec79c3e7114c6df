"""実行の報告（report.md と report.html）と、公開するときの model card。どちらも残した成果物だけから作る。

使い方: `python -m lib.show.summary --run 名前`。同じ成果物からは、同じ字の報告ができる（時刻は入れない）。
"""

import argparse
import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError, command_line
from lib.files import REPOSITORY, read_json, write_text
from lib.run import BUILT_IN, Run, reopen
from lib.score.exam import PARTS, gain, load_rows, share

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
    from lib.data.facts import DATA, FORM_LABELS, read_jsonl

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
    from lib.show.plots import curve

    buffer = io.BytesIO()
    figure = curve(read_json(path)["history"], ["loss", "eval_loss"], "学習と開発用の損失")
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return f'<img alt="学習と開発用の損失" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _page(run: Run, text: str, image: str) -> str:
    import mistune

    from lib.show.report import STYLE

    body = str(mistune.create_markdown(plugins=["table"])(text))
    title = "<h2>学習の様子</h2>"
    return (
        f'<!doctype html><html lang="ja"><head><meta charset="utf-8"><title>評価の報告: {run.folder.name}</title>'
        f"<style>{STYLE}</style></head><body>{body.replace(title, title + image)}</body></html>\n"
    )


def main() -> None:
    """終わった実行の報告を作り直す。"""
    parser = argparse.ArgumentParser(description="評価の報告を、残した成果物から作り直す")
    parser.add_argument("--run", default="embedded")
    options = parser.parse_args()
    with command_line():
        print(write_report(reopen(options.run)).relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
