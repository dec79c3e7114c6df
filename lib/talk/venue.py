"""話す前・始める前の、この機械の下見。`make check`（DATA なし）の中身。何も取得せず、何も書かない。"""

import argparse
import shutil
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from importlib.metadata import distributions

import psutil
from matplotlib.font_manager import findfont
from packaging.requirements import Requirement

from lib.errors import WorkshopError, command_line
from lib.export.gguf import converter_folder
from lib.files import REPOSITORY, read_json
from lib.model.load import fastest_threads, on_disk
from lib.profiles import Profile, get_profile
from lib.run import OUTPUTS
from lib.show.plots import BLUE  # noqa: F401  （import すると、日本語のフォントが登録される）
from lib.talk.plan import RECORDING, load_plan
from lib.train.preflight import Finding, judge


def unmet() -> Iterator[str]:
    """pyproject.toml が求める部品のうち、無いか版の合わないもの。"""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for need in map(Requirement, project["dependencies"]):
        found = next((item.version for item in distributions(name=need.name)), "")
        wanted = need.marker is None or need.marker.evaluate()
        if wanted and not (found and need.specifier.contains(found, prereleases=True)):
            yield f"{need.name} {found}（求める版 {need.specifier}）" if found else f"{need.name} が無い"


def findings(profile: Profile) -> Iterator[Finding]:
    """部品から実演の見込みまでを、一つずつ見る。"""
    wrong = "、".join(unmet())
    fine = f"Python {sys.version.split()[0]} で、求める部品がそろっています"
    yield judge("部品", wrong or fine, wrong, "make setup を実行してください")
    try:
        folder, said = on_disk(profile), f"{profile.model} が手元に"
        said += f"あります（{folder}）" if folder else "ありません"
    except WorkshopError as error:
        folder, said = None, str(error)
    yield judge("モデル", said, not folder, "つながる所で make fetch を実行してください")
    missing = not converter_folder().exists()
    remedy = "06 を使うなら、つながる所で make fetch を実行してください"
    yield judge("変換器", "手元にありません" if missing else "手元にあります", missing, remedy, "warning")
    disk, memory = shutil.disk_usage(OUTPUTS).free / 1e9, psutil.virtual_memory().available / 2**30
    # 04〜06 の成果物（アダプタ、マージした重み、三つの GGUF）で 1.5 GB ほど。メモリは 01〜07 の最大が 4.8 GiB（実測）。
    yield judge("空き容量", f"{disk:.1f} GB", disk < 2, "2 GB 空けてください")
    remedy = "全部を通すには 5 GiB 必要です。ほかの処理を止めてください"
    yield judge("空きメモリ", f"{memory:.1f} GiB", memory < 5, remedy, "warning")
    font = findfont("IPAexGothic")
    said = f"図とスライドの日本語は {font} で出ます"
    yield judge("フォント", said, "ipaex" not in font, "make setup を実行してください")
    try:
        import xllamacpp

        yield Finding("llama.cpp", "ok", f"xllamacpp {xllamacpp.__version__} が使えます")
    except (ImportError, OSError) as error:
        yield Finding("llama.cpp", "warning", f"使えません（{str(error)[:100]}）。06 と make app だけが使います")
    try:
        urllib.request.urlopen(urllib.request.Request("https://pypi.org/simple/pip/", method="HEAD"), timeout=2)
        yield Finding("回線", "ok", "つながっています（実演では使いません）")
    except OSError:
        yield Finding("回線", "warning", "つながりません。上がそろっていれば、このまま全部動きます")
    yield estimate(fastest_threads()[1])


def estimate(rate: float) -> Finding:
    """実演の見込み。録画した機械との、行列積の速さの比（`rate` は GFLOP 毎秒）で見積もる。"""
    if not RECORDING.exists():
        return Finding("実演", "fatal", "録画がまだありません", "make rehearse MACHINE=… で作ってください")
    recorded, budget = read_json(RECORDING), load_plan()["demo_seconds"]
    seconds = recorded["seconds"] * recorded["gflops"] / rate
    said = f"およそ {seconds:.0f} 秒の見込み（この機械は毎秒 {rate:.0f} GFLOP、"
    said += f"録画した機械は {recorded['gflops']} GFLOP で {recorded['seconds']:.0f} 秒）。予算は {budget:g} 秒です"
    return judge(
        "実演", said, seconds > budget, "間に合わず録画に替わりそうです。ほかの処理を止めてください", "warning"
    )


def main() -> None:
    """コマンドの入口。直さないと困るものがあれば終了コード 1。"""
    parser = argparse.ArgumentParser(description="この機械の下見")
    parser.add_argument("--profile", default="talk")
    with command_line():
        levels = []
        for finding in findings(get_profile(parser.parse_args().profile)):
            print(finding, flush=True)
            levels.append(finding.level)
        if "fatal" in levels:
            raise WorkshopError("✋ の付いた項目があります", "それぞれの行のとおりに直してください")
        print("下見はこれで終わりです。自分のデータの検査は make check DATA=… です。")


if __name__ == "__main__":
    main()
