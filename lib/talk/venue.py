"""話す前・始める前の、この機械の下見。`make check`（DATA なし）の中身。何も取得せず、何も書かない。"""

import argparse
import shutil
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lib.errors import WorkshopError, command_line
from lib.files import REPOSITORY, read_json
from lib.profiles import Profile, get_profile
from lib.run import OUTPUTS
from lib.train.preflight import Finding, judge

_DISK_GB = 2.0  # 04〜06 の成果物（アダプタ、マージした重み、三つの GGUF）で 1.5 GB ほど
_MEMORY_GIB = 5.0  # 01〜07 の最大が 4.8 GiB（README の実測）
_ONLINE_SECONDS = 2.0


def unmet() -> list[tuple[Any, str | None]]:
    """pyproject.toml が求める部品のうち、無いか版の合わないもの。(求めるもの, 入っている版) の列。"""
    from packaging.requirements import Requirement

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wrong: list[tuple[Any, str | None]] = []
    for wanted in map(Requirement, project["dependencies"]):
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            wrong.append((wanted, None))
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append((wanted, found))
    return wrong


def packages() -> Finding:
    """pyproject.toml が求める部品が、求める版で入っているか。"""
    wrong = [
        f"{wanted.name} {found}（求める版 {wanted.specifier}）" if found else f"{wanted.name} が無い"
        for wanted, found in unmet()
    ]
    if wrong:
        return Finding("部品", "fatal", "、".join(wrong), "make setup を実行してください")
    return Finding("部品", "ok", f"Python {sys.version.split()[0]} で、求める部品がそろっています")


def model(profile: Profile) -> Finding:
    """重みが手元にあり、壊れていないか。"""
    from lib.model.load import on_disk

    try:
        folder = on_disk(profile)
    except WorkshopError as error:
        return Finding("モデル", "fatal", str(error))
    if folder is None:
        remedy = "つながる所で make fetch を実行してください"
        return Finding("モデル", "fatal", f"{profile.model} が手元にありません", remedy)
    return Finding("モデル", "ok", f"{profile.model} が手元にあります（{folder}）")


def converter() -> Finding:
    """GGUF の変換器が手元にあるか（06 が使う。実演には要らない）。"""
    from lib.export.gguf import converter_folder

    if converter_folder().exists():
        return Finding("変換器", "ok", "手元にあります")
    remedy = "06 を使うなら、つながる所で make fetch を実行してください"
    return Finding("変換器", "warning", "手元にありません", remedy)


def disk() -> Finding:
    """空き容量。"""
    free = shutil.disk_usage(OUTPUTS).free / 1e9
    return judge("空き容量", f"{free:.1f} GB", free < _DISK_GB, f"{_DISK_GB:g} GB 空けてください")


def memory() -> Finding:
    """空きメモリ。"""
    import psutil

    free = psutil.virtual_memory().available / 2**30
    remedy = f"全部を通すには {_MEMORY_GIB:g} GiB 要ります。ほかの処理を止めてください"
    return judge("空きメモリ", f"{free:.1f} GiB", free < _MEMORY_GIB, remedy, "warning")


def fonts() -> Finding:
    """図に日本語が出るか。"""
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    import lib.show.plots  # noqa: F401  （import すると日本語の字形が登録される）

    path = findfont("IPAexGothic")
    missing = [c for c in "録画学習質問" if ord(c) not in FT2Font(path).get_charmap()]
    if missing:
        return Finding("字形", "fatal", f"図に日本語が出ません（{path}）", "make setup を実行してください")
    return Finding("字形", "ok", "図もスライドも、同梱の字形で日本語が出ます")


def llama_cpp() -> Finding:
    """llama.cpp が動くか（06 が使う）。"""
    try:
        import xllamacpp  # noqa: F401
    except (ImportError, OSError) as error:
        return Finding("llama.cpp", "warning", f"使えません（{str(error)[:100]}）。06 と make app だけが使います")
    return Finding("llama.cpp", "ok", f"xllamacpp {version('xllamacpp')} が使えます")


def network() -> Finding:
    """つながるか。つながらなくても、ここまでがそろっていれば全部動く。"""
    try:
        urllib.request.urlopen(
            urllib.request.Request("https://pypi.org/simple/pip/", method="HEAD"), timeout=_ONLINE_SECONDS
        )
    except (urllib.error.URLError, TimeoutError, OSError):
        return Finding("回線", "warning", "つながりません。上がそろっていれば、このまま全部動きます")
    return Finding("回線", "ok", "つながっています（実演では使いません）")


def demo(rate: float) -> Finding:
    """実演の見込み。録画した機械との、行列積の速さの比で見積もる。

    Args:
        rate: この機械の行列積の速さ（GFLOP 毎秒）。
    """
    from lib.talk.plan import RECORDING, load_plan

    if not RECORDING.exists():
        return Finding("実演", "fatal", "録画がまだありません", "make rehearse MACHINE=… で作ってください")
    recorded, budget = read_json(RECORDING), load_plan().demo_seconds
    seconds = recorded["seconds"] * recorded["gflops"] / rate
    said = f"およそ {seconds:.0f} 秒の見込み（この機械は毎秒 {rate:.0f} GFLOP、"
    said += f"録画した機械は {recorded['gflops']} GFLOP で {recorded['seconds']:.0f} 秒）。予算は {budget:g} 秒です"
    remedy = "間に合わず録画に替わりそうです。ほかの処理を止めてください"
    return judge("実演", said, seconds > budget, remedy, "warning")


def check_machine(profile: Profile, show: Callable[[str], None] = print) -> bool:
    """全部を見て一行ずつ出し、直さないと困るものが無ければ True。"""
    from lib.model.load import fastest_threads

    def findings() -> Iterator[Finding]:
        yield packages()
        yield model(profile)
        yield from (look() for look in (converter, disk, memory, fonts, llama_cpp, network))
        yield demo(fastest_threads()[1])

    good = True
    for finding in findings():
        show(str(finding))
        good = good and finding.level != "fatal"
    return good


def main() -> None:
    """コマンドの入口。直さないと困るものがあれば終了コード 1。"""
    parser = argparse.ArgumentParser(description="この機械の下見")
    parser.add_argument("--profile", default="talk")
    options = parser.parse_args()
    with command_line():
        if not check_machine(get_profile(options.profile)):
            raise WorkshopError("✋ の付いた項目があります", "それぞれの行のとおりに直してください")
        print("下見はこれで終わりです。自分のデータの検査は make check DATA=… です。")


if __name__ == "__main__":
    main()
