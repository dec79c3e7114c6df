"""終わった実行の指標を、記録した期待値と比べる。`make compare` の中身。

期待値は `tests/results/expected.json` の 1 か所だけにあり、許す幅は複数の種での実測のばらつきから決める。
"""

import argparse
import statistics
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lib.errors import WorkshopError, command_line
from lib.files import REPOSITORY, read_json, write_json, write_text
from lib.run import OUTPUTS, STAGES, Run, open_run, reopen

EXPECTED = REPOSITORY / "tests" / "results" / "expected.json"
SEEDS = REPOSITORY / "data" / "recorded" / "seeds.json"
# 速さは機械しだいなので比べない。
_NOT_COMPARED = ("_seconds", "_per_second")
# 割合の最低の幅。32 問の 1 問（3.1 点）より狭いので、1 問の違いも赤になる。
_LEAST_SHARE = 0.03
# 丸め誤差の指標は「これ以下ならよい」で、値そのものに意味はない。
_UPPER_BOUNDS = {
    "01_concepts.lora_max_difference": 1e-5,
    "01_concepts.merge_max_difference": 1e-4,
    "04_lora_sft.loss_difference": 1e-5,
    "05_preference.dpo_loss_difference": 1e-4,
    "06_merge_to_gguf.merge_logit_difference": 1e-4,  # 倍精度どうしの差。正規化の層の float32 で 1e-5 ほど残る
    "06_merge_to_gguf.saved_logit_difference": 1e-3,  # float32 に丸めたあと。種 0 で 3e-5 だった
    "06_merge_to_gguf.merge_probability_difference": 1e-4,
    "06_merge_to_gguf.size_error": 0.01,
}


def collect(run: Run) -> dict[str, float]:
    """実行の全指標を「段.名前」→ 値にする（速さは除く）。"""
    return {
        f"{stage}.{name}": float(value)
        for stage in STAGES
        if run.is_done(stage)
        for name, value in run.metrics(stage).items()
        if not name.endswith(_NOT_COMPARED)
    }


def expected_from(runs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """複数の種の実行から、期待値と許す幅を作る。

    中心は中央値、幅は「中央値からの最大のずれ × 2」。種が 3 つでは外れを見逃すので 2 倍し、
    正答率などの割合では最低 `_LEAST_SHARE`（3 点）を許す。トークンの一致は 1 点まで。
    丸め誤差の指標は上限だけを持つ。
    """
    result: dict[str, dict[str, Any]] = {}
    for name in runs[0]:
        values = [run[name] for run in runs if name in run]
        if name in _UPPER_BOUNDS:
            result[name] = {"at_most": _UPPER_BOUNDS[name], "why": "丸め誤差の大きさ"}
            continue
        centre = statistics.median(values)
        spread = max(abs(value - centre) for value in values)
        is_share = name.endswith(("accuracy", "rate", "gain", "gain_low"))
        floor = _LEAST_SHARE if is_share else abs(centre) * 0.01
        result[name] = {
            "value": centre,
            "tolerance": round(max(2 * spread, floor), 6),
            "why": f"{len(values)} 種の実測 {min(values):.4g}〜{max(values):.4g}",
        }
    return result


def compare(found: dict[str, float], expected: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """期待値ごとに、実測・許す幅・合否の行を返す。指標が無いのも不合格。"""
    rows = []
    for name, rule in expected.items():
        value = found.get(name)
        if value is None:
            ok = False
        elif "at_most" in rule:
            ok = value <= rule["at_most"]
        else:
            ok = abs(value - rule["value"]) <= rule["tolerance"]
        allowed = f"≤ {rule['at_most']:g}" if "at_most" in rule else f"{rule['value']:.4g} ± {rule['tolerance']:.2g}"
        rows.append({"name": name, "value": value, "allowed": allowed, "ok": ok})
    return rows


def print_drift(rows: list[dict[str, Any]]) -> bool:
    """ずれの表を出し、すべて範囲内なら True。"""
    for row in rows:
        shown = "無し" if row["value"] is None else f"{row['value']:.4g}"
        print(f"{'ok  ' if row['ok'] else '範囲外'}  {row['name']:<44}{shown:>12}   {row['allowed']}")
    bad = sum(not row["ok"] for row in rows)
    print(f"{len(rows)} 個のうち {bad} 個が範囲外")
    return bad == 0


def write_junit(path: Path, rows: list[dict[str, Any]]) -> Path:
    """ずれの表を、CI が読む JUnit の XML に書く。"""
    suite = ElementTree.Element("testsuite", name="regression", tests=str(len(rows)))
    suite.set("failures", str(sum(not row["ok"] for row in rows)))
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=row["name"].split(".")[0], name=row["name"])
        if not row["ok"]:
            ElementTree.SubElement(case, "failure", message=f"実測 {row['value']}、許す範囲 {row['allowed']}")
    return write_text(path, ElementTree.tostring(suite, encoding="unicode") + "\n")


def record(profile: str, names: list[str], target: Path = EXPECTED) -> None:
    """同じプロファイルの、種の違う 3 つ以上の実行から期待値のファイルを書く。

    Raises:
        WorkshopError: 種が 3 つ未満のとき。
    """
    settings = {name: read_json(OUTPUTS / name / "run.json") for name in names}
    runs = [open_run(profile, name, settings[name]["seed"]) for name in names]
    if len({run.seed for run in runs}) < 3:
        raise WorkshopError("期待値には、違う種の実行が 3 つ以上要ります", "SEED を変えて make run をしてください")
    everything = read_json(target) if target.exists() else {}
    everything[profile] = {
        "versions": settings[names[0]]["versions"],
        "seeds": [run.seed for run in runs],
        "metrics": expected_from([collect(run) for run in runs]),
    }
    write_json(target, everything)
    print(f"書きました: {target}")
    record_seeds(profile, runs)


def record_seeds(profile: str, runs: list[Run], target: Path = SEEDS) -> None:
    """種ごとの指標を、録画として残す（07 が並べて見せ、README の表になる）。"""
    everything = read_json(target) if target.exists() else {}
    everything[profile] = {
        str(run.seed): {
            "date": read_json(run.folder / "run.json")["created"][:10],
            **{stage: run.metrics(stage) for stage in STAGES},
        }
        for run in runs
    }
    write_json(target, everything)


def main() -> None:
    """コマンドの入口。"""
    parser = argparse.ArgumentParser(description="実行の指標を期待値と比べる")
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--run", default="")
    parser.add_argument("--record", nargs="+", metavar="RUN", help="これらの実行から期待値を作り直す")
    options = parser.parse_args()
    with command_line():
        if options.record:
            record(options.profile, options.record)
            return
        name = options.run or options.profile
        run = reopen(name)
        expected = read_json(EXPECTED).get(options.profile)
        if expected is None:
            raise WorkshopError(
                f"プロファイル {options.profile} の期待値はまだありません", "--record で作ってください", EXPECTED
            )
        rows = compare(collect(run), expected["metrics"])
        write_junit(run.folder / "regression.xml", rows)
        if not print_drift(rows):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
