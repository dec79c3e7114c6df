"""話す前に: この機械の下見（`make check`）と、画面なしの通し・節ごとの分・スライド（`make rehearse`）。"""

import argparse
import logging
import shutil
import sys
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions
from typing import Any

import nbformat
import psutil
from matplotlib.font_manager import findfont
from packaging.requirements import Requirement

from lib.errors import WorkshopError, command_line
from lib.execute import run_notebook
from lib.export.gguf import converter_folder
from lib.files import REPOSITORY, read_json
from lib.model.load import on_disk, race
from lib.profiles import Profile, get_profile
from lib.run import OUTPUTS, open_run
from lib.talk.deck import write_deck
from lib.talk.plan import RECORDING, load_plan
from lib.train.preflight import Finding, judge, require

SOURCE = REPOSITORY / "notebooks" / "00_talk.ipynb"
_SPARE_MINUTES = 3.0  # 言いよどみと拍手のために、最低これだけ余らせる


def findings(profile: Profile) -> Iterator[Finding]:
    """部品から実演の見込みまでを、一つずつ見る。"""
    needs = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wanted = [need for need in map(Requirement, needs) if need.marker is None or need.marker.evaluate()]
    found = [(need, next((item.version for item in distributions(name=need.name)), "")) for need in wanted]
    lacking = [(need, have) for need, have in found if not (have and need.specifier.contains(have, prereleases=True))]
    wrong = "、".join(f"{need.name} {have or 'が無い'}（求める版 {need.specifier}）" for need, have in lacking)
    fine = f"Python {sys.version.split()[0]} で、求める部品がそろっています"
    yield judge("部品", wrong or fine, wrong, "make setup を実行してください")
    try:
        folder = on_disk(profile)
        said = f"{profile.model}（{folder or '手元にありません'}）"
    except WorkshopError as error:
        folder, said = None, str(error)
    yield judge("モデル", said, not folder, "つながる所で make fetch を実行してください")
    converter, remedy = converter_folder(), "06 を使うなら、つながる所で make fetch を実行してください"
    yield judge("変換器", converter.name, not converter.exists(), remedy, "warning")
    disk, memory = shutil.disk_usage(OUTPUTS).free / 1e9, psutil.virtual_memory().available / 2**30
    # 04〜06 の成果物（アダプタ、マージした重み、三つの GGUF）で 1.5 GB ほど。メモリは 01〜07 の最大が 4.8 GiB（実測）。
    yield judge("空き容量", f"{disk:.1f} GB", disk < 2, "2 GB 空けてください")
    remedy = "全部を通すには 5 GiB 必要です。ほかの処理を止めてください"
    yield judge("空きメモリ", f"{memory:.1f} GiB", memory < 5, remedy, "warning")
    font = findfont("IPAexGothic")
    yield judge("フォント", f"図とスライドの日本語は {font}", "ipaex" not in font, "make setup を実行してください")
    try:
        import xllamacpp  # noqa: F401

        yield Finding("llama.cpp", "ok", "xllamacpp が使えます")
    except (ImportError, OSError) as error:
        yield Finding("llama.cpp", "warning", f"使えません（{str(error)[:100]}）。06 と make app だけが使います")
    try:
        urllib.request.urlopen("https://pypi.org/simple/pip/", timeout=2).close()
        yield Finding("回線", "ok", "つながっています（実演では使いません）")
    except OSError:
        yield Finding("回線", "warning", "つながりません。上がそろっていれば、このまま全部動きます")
    yield estimate(race()[1])


def estimate(rate: float) -> Finding:
    """実演の見込み。記録した機械との、行列積の速さの比（`rate` は GFLOP 毎秒）で見積もる。"""
    recorded, budget = read_json(RECORDING), load_plan()["demo_seconds"]
    seconds = recorded["seconds"] * recorded["gflops"] / rate
    said = f"およそ {seconds:.0f} 秒の見込み（この機械は毎秒 {rate:.0f} GFLOP、"
    said += f"記録した機械は {recorded['gflops']} GFLOP で {recorded['seconds']:.0f} 秒）。予算は {budget:g} 秒です"
    return judge("実演", said, seconds > budget, "記録に替わりそうです。ほかの処理を止めてください", "warning")


def computed_seconds(cells: Sequence[Any]) -> list[float]:
    """節ごとの計算の秒。0 番目は、話し始める前に済ませる準備。節は `section-4` のような印で始まる。"""
    seconds, section = [0.0] * 9, 0
    for cell in cells:
        marks = [int(tag[8:]) for tag in cell.metadata.get("tags", []) if tag.startswith("section-")]
        section = marks[0] if marks else section
        seconds[section] += cell.metadata.get("papermill", {}).get("duration") or 0.0
    return seconds


def report(plan: Mapping[str, Any], seconds: Sequence[float]) -> tuple[str, bool]:
    """節ごとの表と、どの節も予定に収まって 3 分以上余るか。使う分は、台本の字の数の見込みと、計算を待つ時間の和。"""
    rows = []
    for section, computed in zip(plan["sections"], seconds[1:], strict=True):
        spare = section["minutes"] - section["spoken"] - computed / 60
        title = f"{section['number']}. {section['title']}{'' if spare >= 0 else '  ← 収まらない'}"
        rows.append((section["minutes"], section["spoken"], computed / 60, spare, title))
    whole = [sum(values) for values in list(zip(*rows, strict=True))[:4]]
    lines = [f"{a:>8.1f}{b:>8.1f}{c:>6.2f}{d:>6.2f}  {name}" for a, b, c, d, name in (*rows, (*whole, "合計"))]
    table = "\n".join(["予定（分）  話す  計算  余り  節", *lines, f"話す前の準備: {seconds[0]:.0f} 秒"])
    return table, whole[3] >= _SPARE_MINUTES and all(row[3] >= 0 for row in rows)


def rehearse(profile: str, name: str | None, budget: float) -> None:
    """発表を通し、節ごとの表とスライドを残す。予定に収まらなければ `WorkshopError`。"""
    plan, run = load_plan(), open_run(profile, name)
    values = {"PROFILE": run.profile.name, "SEED": run.seed, "RUN": run.folder.name, "BUDGET": budget}
    executed = run_notebook(run, SOURCE, values, timeout=900)
    table, fits = report(plan, computed_seconds(nbformat.read(executed, as_version=4).cells))
    shown = read_json(run.folder / "00_talk" / "demo.json")
    print(f"{table}\n実演: {shown['label']}  {shown['reason']}".rstrip())
    print(f"スライド: {write_deck(run.folder / 'slides.html', shown)}")
    if not (fits or budget):
        what = f"{plan['minutes']:g} 分に収まらないか、余りが {_SPARE_MINUTES:g} 分より少なくなります"
        raise WorkshopError(what, "ほかの重い処理を止めるか、data/talk/plan.json の言うことを減らしてください")


def main() -> None:
    """コマンドの入口。直さないと困るものがあるか、予定に収まらなければ、終了コード 1。"""
    parser = argparse.ArgumentParser(description="この機械を下見する（--check）か、発表を画面なしで通す")
    parser.add_argument("--profile", default="talk")
    parser.add_argument("--run", default=None)
    parser.add_argument("--budget", type=float, default=0, help="実演の予算（秒）。0 なら台本の値")
    parser.add_argument("--check", action="store_true", help="この機械の下見だけをする")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # papermill と fontTools の独り言
    with command_line():
        if options.check:
            require(list(findings(get_profile(options.profile))))
        else:
            rehearse(options.profile, options.run, options.budget)


if __name__ == "__main__":
    main()
