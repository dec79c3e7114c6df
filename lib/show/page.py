"""実行が残した成果物と data/templates から、index.html、07 の報告、model card、リリースゲートの結果を作る。"""

import sys
from pathlib import Path
from typing import Any

import mistune
import rich.markdown
from IPython.core.pylabtools import print_figure

from lib.data.facts import DATA, FORM_LABELS, read_jsonl
from lib.errors import WorkshopError, command_line
from lib.files import REPOSITORY, read_json, write_text
from lib.run import BUILT_IN, Run, reopen
from lib.score.exam import ANSWERS, BASE, GATE, PARTS, difference, model_verdicts, release, share
from lib.show.plots import curve, picture


def load_results(run: Run, names: tuple[str, ...] = ("07_evaluation/comparison",)) -> dict[str, list[dict[str, Any]]]:
    """採点した表（names を省くと 07 のもの）を、モデルごとに分けて返す（学習前が先頭）。まだ無ければ WorkshopError。"""
    rows = [row for n in names for row in read_json(run.folder / f"{n}_evaluation.json", [] if n[:2] == "06" else None)]
    models = dict.fromkeys(row["model"] for row in rows)
    return {BASE if name == "base" else name: [row for row in rows if row["model"] == name] for name in models}


def write_report(run: Run) -> Path:
    """report.md・report.html・model_card.md を `07_evaluation/` に書く。同じ成果物からは、同じ字になる。"""
    results, folder = load_results(run), run.folder / "07_evaluation"
    values = {"run": run, "results": results, "base": BASE, "parts": PARTS, "forms": FORM_LABELS, "share": share}
    judged = model_verdicts(results)
    gaps = {(a, b, p): difference(results[a], results[b], p) for a, b, _ in judged for p in PARTS} | judged
    pairs, taught = list(dict.fromkeys(key[:2] for key in judged)), read_jsonl(DATA / "support" / "facts.jsonl")
    values |= {"pairs": pairs, "gaps": gaps, "read": read_json, "facts": taught}
    for name in ("model_card.md", "report.md"):
        write_text(folder / name, picture(name, **values).data)
    if (training := run.folder / "04_lora_sft" / "training_results.json").exists():
        figure = curve(read_json(training)["history"], ["loss", "eval_loss"], "学習損失と検証損失")
        values["image"] = print_figure(figure, base64=True, metadata={"Software": None})
    values["body"] = mistune.create_markdown(plugins=["table"])(picture("report.md", **values).data)
    return write_text(folder / "report.html", picture("report.html", **values).data)


def stage_summary(run: Run, stage: str) -> str:
    """その段の主な指標を一言で。まだなら空。自分のデータでは、甘い near を結論に見せない。"""
    known = read_json(DATA / "templates" / "key_metrics.json")
    key, text = (known["support"] | (known["own"] if run.data != BUILT_IN else {})).get(stage, ("", ""))
    found = run.metrics(stage) if run.is_done(stage) else {}
    return text.format(found[key]) if key in found else ""


def notebook_html(source: Path, target: Path) -> Path:
    """実行済みのノートブックを、外の資源に頼らない HTML にする。設定と準備のコードは畳む。"""
    from nbconvert import HTMLExporter  # 重いので、読むだけのノートブックには読ませない

    exporter = HTMLExporter(template_name="notebook", extra_template_basedirs=[str(DATA / "templates")])
    return write_text(target, exporter.from_filename(str(source))[0])


def write_index(run: Run, record: dict[str, Any]) -> Path:
    """実行済みのノートブックを HTML にし、入口の index.html を書く。record は、段 → {"seconds": 秒}。"""
    stages = []
    for stage in dict.fromkeys([*run.stages, *record]):
        source = run.folder / "notebooks" / f"{stage}.ipynb"
        if done := stage in record and source.exists():
            notebook_html(source, run.folder / "html" / f"{stage}.html")
        cells = read_json(REPOSITORY / "notebooks" / source.name)["cells"]
        title = next(line[2:].strip() for cell in cells for line in cell["source"][:1] if line.startswith("# "))
        stages.append((stage, title, done, stage_summary(run, stage)))
    return write_text(run.folder / "index.html", picture("index.html", run=run, record=record, stages=stages).data)


def main() -> None:
    """コマンドの入口: 「report か gate」と実行の名前（gate には、比べる実行も）。gate は、赤があれば 1 で終わる。"""
    with command_line():
        if len(sys.argv) < 3:
            raise WorkshopError("report か gate と、実行の名前が必要です", "make report か make gate を使ってください")
        if sys.argv[1] == "report":
            return print(write_report(reopen(sys.argv[2])))
        found = release(*(load_results(reopen(name), ANSWERS) for name in sys.argv[2:]))
        rich.print(rich.markdown.Markdown(picture("gate.md", found=found, rules=GATE).data))
        if red := sum(bad for judged in found.values() for _, bad in judged.values()):
            raise WorkshopError(
                f"赤が {red} 件なので、出せません", "× の所か、条件（data/exam.toml）を見直してください"
            )


if __name__ == "__main__":
    main()
