"""期待値と記録済みの結果を、終わった実行から書き直す（保守の人だけが使う）。

使い方: python tests/maintain/record.py new0 new1 new2（シードの違う 3 つ以上の実行）
"""

import argparse
import statistics
import time
import tomllib
from pathlib import Path
from typing import Any

import pandas

import lib.run as run_room
from lib.data.facts import FAR_FORMS, read_jsonl
from lib.errors import WorkshopError, command_line
from lib.files import REPOSITORY, read_json, write_json
from lib.model.load import race
from lib.run import STAGES, Run, reopen, versions
from lib.score.exam import PARTS
from lib.talk.plan import RECORDING

EXPECTED = REPOSITORY / "tests" / "results" / "expected.json"
SEEDS, ANSWERS = (REPOSITORY / "data" / "recorded" / f"{name}.json" for name in ("seeds", "answers"))
# 割合の最低の幅。32 問の 1 問（3.1 点）より狭いので、1 問の違いも赤になる。
_LEAST_SHARE = 0.03
_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_UPPER_BOUNDS, _RECORDED = _TABLES["upper_bounds"], _TABLES["recorded"]


def collect(run: Run) -> dict[str, float]:
    """実行の全指標を「ステージ.名前」→ 値にする（速さは機械しだいなので除く）。"""
    done = {stage: run.metrics(stage).items() for stage in STAGES if run.is_done(stage)}
    slow = ("_seconds", "_per_second")
    return {f"{stage}.{k}": float(value) for stage, found in done.items() for k, value in found if not k.endswith(slow)}


def precision(run: Run) -> str:
    """学習の計算の精度（"mixed" か "float32"）。04 がまだなら空。"""
    return read_json(run.folder / "precision.json", {}).get("precision", "")


def allowed(value: float | None, rule: dict[str, Any], times: int = 1) -> bool:
    """値が、期待値の許す範囲（幅は times 倍）にあるか。無い値と NaN は範囲外。"""
    if value is None:
        return False
    return value <= rule["at_most"] if "at_most" in rule else abs(value - rule["value"]) <= times * rule["tolerance"]


def expected_from(runs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """複数のシードの実行から、期待値と許す幅を作る。

    中心は中央値、幅は「中央値からの最大のずれ × 2」。シードが 3 つでは外れを見逃すので 2 倍し、
    正答率などの割合では最低 `_LEAST_SHARE`（3 点）を許す。トークンの一致は 1 点まで。丸め誤差の指標は上限だけを持つ。
    """
    result: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        values = [run[name] for run in runs if name in run]
        bound = _UPPER_BOUNDS.get(name)
        if bound is not None and not (name.endswith("_loss") and min(values) > bound):  # 届かない損失は値で
            result[name] = {"at_most": bound, "why": "上限だけを持つ（record.toml）"}
            continue
        centre = statistics.median(values)
        is_share = name.endswith(("accuracy", "rate", "gain"))
        width = max(*(2 * abs(value - centre) for value in values), _LEAST_SHARE if is_share else abs(centre) * 0.01)
        why = f"{len(values)} 回の実測 {min(values):.4g}〜{max(values):.4g}"
        result[name] = {"value": centre, "tolerance": round(width, 6), "why": why}
    return result


def update(path: Path, more: dict[str, Any]) -> Path:
    """JSON の表に、いくつかの鍵を加えて書く。"""
    print(f"書きました: {write_json(path, {**read_json(path, {}), **more})}")
    return path


def right_by_fact(run: Run) -> dict[str, dict[str, list[str]]]:
    """07 の正誤。部分 → 事実 → モデルごとの、質問の順の 0 と 1（例 ["00", "11", "10"]）。判定を計算し直せる。"""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in read_json(run.folder / "07_evaluation" / "comparison_evaluation.json"):
        marks = found.setdefault(row["part"], {}).setdefault(row["fact"], {})
        marks[row["model"]] = marks.get(row["model"], "") + str(int(row["correct"]))
    return {part: {fact: list(marks.values()) for fact, marks in facts.items()} for part, facts in found.items()}


def kept_answers(run: Run) -> dict[str, dict[str, list[str]]]:
    """07 の答え（near は依頼の言い回しだけ）と、06 のファイルの答え（gguf）。モデルごとの、質問と同じ順の文の列。"""

    def side_by_side(rows: pandas.DataFrame) -> dict[str, list[str]]:
        wide = rows.pivot_table("answer", ["question", "reference"], "model", aggfunc="first", sort=False)
        return wide.reset_index().to_dict("list")

    table = pandas.DataFrame(read_json(run.folder / "07_evaluation" / "comparison_evaluation.json"))
    table = table[table["form"].isin(["request", *FAR_FORMS])].replace({"model": {"base": "学習前"}})
    files = read_json(run.folder / "06_merge_to_gguf" / "gguf_evaluation.json", [])
    files = pandas.DataFrame([row for row in files if row["model"] in ("F16", "Q4_K_M")])
    found = {part: side_by_side(table[table["part"] == part]) for part in ("near", "far")}
    return found | ({"gguf": side_by_side(files)} if len(files) else {})


def by_seed(*runs: Run) -> dict[str, dict[str, Any]]:
    """シード → 日付、終わった段の指標、07 の正誤。"""
    dates = {run: read_json(run.folder / "run.json")["created"][:10] for run in runs}
    done = {run: {stage: run.metrics(stage) for stage in STAGES if run.is_done(stage)} for run in runs}
    return {str(run.seed): {"date": dates[run], **done[run], "right": right_by_fact(run)} for run in runs}


def record(*runs: Run) -> Path:
    """同じ設定の、シードの違う実行から、記録を書く（答えは、初めの実行だけ）。シードが 3 つ以上なら、期待値も。

    値を一つ替えた実行（`MIX=0` など）は、比べるための記録として、`embedded（mix=0.0）` のような名前で残す。
    """
    if len({(run.profile, precision(run)) for run in runs}) != 1:
        raise WorkshopError("プロファイルか精度の違う実行です", "同じものだけを渡してください")
    (first, *_), found = runs, by_seed(*runs)
    opened, name = read_json(first.folder / "run.json"), first.profile.name
    if changed := "、".join(f"{key}={value}" for key, value in opened["changed"].items()):
        return update(SEEDS, {f"{name}（{changed}）": found})
    update(SEEDS, {name: found})
    head = {"date": opened["created"][:10], "model": first.profile.model, "seed": first.seed}
    update(ANSWERS, {name: {**head, **kept_answers(first)}})
    if len(found) < 3:
        return SEEDS
    metrics = expected_from([collect(run) for run in runs])
    expected = {"versions": opened["versions"], "seeds": [run.seed for run in runs], "precision": precision(first)}
    return update(EXPECTED, {name: {**expected, "metrics": metrics}})


def record_run(run: Run, machine: str) -> None:
    """終わった実行の要約を、`machine`（例「2 コア x86-64、GPU なし」）とともに `data/recorded/runs/` に残す。"""
    settings, profile = read_json(run.folder / "run.json"), run.profile
    scores, gguf, sft = map(run.metrics, ("07_evaluation", "06_merge_to_gguf", "04_lora_sft"))
    summary = {label: f"{scores[name]:.1%}" for name, label in _RECORDED.items()}
    for kind in ("F16", *profile.quantizations):
        summary[f"GGUF {kind}: 言い換え（近い）"] = f"{gguf[f'{kind.lower()}_accuracy']:.1%}"
    amount = f"{profile.train_facts} 事実 × {profile.train_forms} 言い回し、{profile.sft_epochs} エポック"
    summary["SFT の学習時間"] = f"{sft['train_seconds']:.0f} 秒（{amount}、バッチ {profile.sft_batch}）"
    found = {"profile": profile.name, "model": profile.model, "date": settings["created"][:10], "machine": machine}
    found |= {"seed": run.seed, "versions": settings["versions"], "summary": summary}
    update(REPOSITORY / "data" / "recorded" / "runs" / f"{profile.name}.json", found)


def record_experiments() -> None:
    """`outputs/experiments/` の結果を data/recorded/experiments.json に加える。

    A5 の終わりの表は what_for.json に、A4 の指標（シードごと）は company.json に。
    """
    update(run_room.RECORDED, {path.stem: read_json(path) for path in sorted(run_room.EXPERIMENTS.glob("*.json"))})
    made = (("what_for", "A5_form_and_voice/what_for", "profile"), ("company", "A4_company_case/metrics", "seed"))
    for name, file, key in made:
        found = sorted(run_room.EXPERIMENTS.parent.glob(f"*/{file}.json"))
        named = {str(read_json(path.parents[1] / "run.json")[key]): read_json(path) for path in found}
        if named:
            update(run_room.RECORDED.with_name(f"{name}.json"), named)


def record_benchmark(folder: Path, machine: str) -> None:
    """lm_eval（`--log_samples`）の出力 `folder/<モデルの呼び名>/` の、課題ごとの正誤（質問の順の 0 と 1）を残す。"""
    right: dict[str, dict[str, str]] = {}
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "right": right}
    for path in sorted(folder.glob("*/*/results_*.json")):
        told = read_json(path)
        found |= {name: told[f"{name}_version"] for name in ("lm_eval", "transformers")}
        for task in told["results"]:
            (samples,) = path.parent.glob(f"samples_{task}_*.jsonl")
            rows = sorted(read_jsonl(samples), key=lambda row: row["doc_id"])
            right.setdefault(path.parent.parent.name, {})[task] = "".join(f"{row['acc']:.0f}" for row in rows)
    update(REPOSITORY / "data" / "recorded" / "benchmark.json", found)


def right_by_stage(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """発表の実演の、近い・遠い言い換えごとの正答の数（学習前・役割の指示・10 例・98 例）。"""
    stages = ("before", "role", "ten", "after")
    parts = {part: [row for row in rows if row["part"] == PARTS[part]] for part in ("near", "far")}
    return {part: {key: sum(row[f"{key}_ok"] for row in some) for key in stages} for part, some in parts.items()}


def record_talk(run: Run, machine: str, target: Path | None = None) -> Path:
    """その場で計算した実演を記録として残す。機械の速さも添える（`make check` が見込みに使う）。

    Raises:
        WorkshopError: その実行が記録を見せただけのとき。
    """
    found = read_json(run.folder / "00_talk" / "demo.json")
    if not found["live"]:
        what = f"実演ではなく記録が出た実行（{found['reason']}）なので、記録にできません"
        raise WorkshopError(what, "ほかの重い処理を止めて、もう一度実行してください", run.folder)
    threads, rate, _ = race()
    target = target or RECORDING.with_name(f"{run.profile.name}.json")
    kept = {key: found[key] for key in ("seconds", "parameters", "rows", "history", "cost")}
    for row in kept["rows"][2:]:  # 見せない行は、数えるだけ
        if row["part"] in (PARTS["near"], PARTS["far"]):
            row |= {key: row[key][:20] for key in ("before", "role")}
    seeds = read_json(target, {}).get("seeds", {}) | {str(run.seed): right_by_stage(found["rows"])}
    head = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "threads": threads, "gflops": round(rate)}
    return update(
        target, {**head, "profile": run.profile.name, "seed": run.seed, "versions": versions(), **kept, "seeds": seeds}
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="期待値と、記録済みの結果を書き直す")
    said = "シードの違う実行（期待値には 3 つ以上）。--machine を付けるなら一つ"
    parser.add_argument("runs", nargs="*", metavar="実行", help=said)
    parser.add_argument("--experiments", action="store_true", help="付録の、設定ごとの結果を data/recorded/ に加える")
    parser.add_argument("--machine", default="", help="機械の説明。付けると、実行の要約を data/recorded/runs/ に残す")
    parser.add_argument("--talk", action="store_true", help="--machine とともに。実演を data/recorded/talk.json に残す")
    parser.add_argument("--benchmark", type=Path, help="--machine とともに。lm_eval の出力を残す")
    options = parser.parse_args()
    with command_line():
        runs = [reopen(name) for name in options.runs]
        if options.experiments:
            record_experiments()
        elif options.benchmark:
            record_benchmark(options.benchmark, options.machine)
        elif options.talk or options.machine:
            (record_talk if options.talk else record_run)(*runs, options.machine)
        else:
            record(*runs)
