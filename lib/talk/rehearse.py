"""発表を画面なしで通し、節ごとの分を予定と比べ、スライドを書く。`make rehearse` の中身。"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import nbformat

from lib.errors import WorkshopError, command_line
from lib.execute import run_notebook
from lib.files import REPOSITORY, read_json
from lib.run import open_run
from lib.talk.deck import write_deck
from lib.talk.demo import record
from lib.talk.plan import load_plan

SOURCE = REPOSITORY / "notebooks" / "00_talk.ipynb"
_SPARE_MINUTES = 2.0  # 言いよどみと拍手のために、最低これだけ余らせる
_CELL_SECONDS = 900
_RECORDING_BUDGET = 600  # 録画を作るときは、遅い機械でも最後まで学習させる


def computed_seconds(cells: Sequence[Any]) -> list[float]:
    """節ごとの計算の秒。0 番目は、話し始める前に済ませる準備。節は `section-3` のような印で始まる。"""
    seconds = [0.0]
    for cell in cells:
        if any(tag.startswith("section-") for tag in cell.metadata.get("tags", [])):
            seconds.append(0.0)
        seconds[-1] += cell.metadata.get("papermill", {}).get("duration") or 0.0
    return seconds


def report(plan: Mapping[str, Any], seconds: Sequence[float]) -> tuple[str, bool]:
    """節ごとの表と、どの節も予定に収まって 2 分以上余るか。使う分は、言うことの目安と、計算を黙って待つ時間の和。"""
    rows = []
    for section, computed in zip(plan["sections"], seconds[1:], strict=True):
        spare = section["minutes"] - section["spoken"] - computed / 60
        title = f"{section['number']}. {section['title']}{'' if spare >= 0 else '  ← 収まらない'}"
        rows.append((section["minutes"], section["spoken"], computed / 60, spare, title))
    whole = [sum(values) for values in list(zip(*rows, strict=True))[:4]]
    lines = [f"{a:>8.1f}{b:>8.1f}{c:>6.2f}{d:>6.2f}  {name}" for a, b, c, d, name in (*rows, (*whole, "合計"))]
    table = "\n".join(["予定（分）  話す  計算  余り  節", *lines, f"話す前の準備: {seconds[0]:.0f} 秒"])
    return table, whole[3] >= _SPARE_MINUTES and all(row[3] >= 0 for row in rows)


def main() -> None:
    """コマンドの入口。予定に収まらなければ終了コード 1。"""
    parser = argparse.ArgumentParser(description="発表を画面なしで通し、分を予定と比べる")
    parser.add_argument("--profile", default="talk")
    parser.add_argument("--run", default=None)
    parser.add_argument("--machine", default="", help="機械の説明。渡すと、実演を録画（data/recorded/talk.json）に残す")
    options = parser.parse_args()
    for name in ("papermill", "fontTools"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with command_line():
        plan, run = load_plan(), open_run(options.profile, options.run)
        values = {"PROFILE": run.profile.name, "SEED": run.seed, "RUN": run.folder.name}
        values["BUDGET"] = _RECORDING_BUDGET if options.machine else 0
        executed = run_notebook(run, SOURCE, values, _CELL_SECONDS)
        table, fits = report(plan, computed_seconds(nbformat.read(executed, as_version=4).cells))
        shown = read_json(run.folder / "00_talk" / "demo.json")
        print(f"{table}\n実演: {shown['label']}{'  ' + shown['reason'] if shown['reason'] else ''}")
        if options.machine:
            print(f"録画を残しました: {record(run, options.machine)}")
        print(f"スライド: {write_deck(executed, run.folder / 'slides.html', plan['title'])}")
        if not fits:
            what = f"{plan['minutes']:g} 分に収まらないか、余りが {_SPARE_MINUTES:g} 分より少なくなります"
            raise WorkshopError(what, "ほかの重い処理を止めるか、data/talk/plan.json の言うことを減らしてください")


if __name__ == "__main__":
    main()
