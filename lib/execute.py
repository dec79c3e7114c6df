"""ノートブックを papermill で順に実行し、表と index.html で終わる。`make run` の中身（`python -m lib.execute`）。"""

import argparse
import hashlib
import html
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

import rich
from filelock import FileLock, Timeout
from jupyter_client.manager import AsyncKernelManager
from rich.table import Table
from traitlets.config import Config

from lib.data.facts import language
from lib.data.own import read_own
from lib.errors import WorkshopError, command_line
from lib.files import REPOSITORY, file_sha256, read_json, write_json, write_text
from lib.model.load import resolve
from lib.profiles import PROFILES, get_profile
from lib.run import APPENDICES, STAGES, Run, data_path, open_run, versions
from lib.show.page import stage_summary, write_index

NOTEBOOKS = REPOSITORY / "notebooks"


def scrub(text: str) -> str:
    """名前が KEY・TOKEN・SECRET・PASSWORD で終わる環境変数の値を消す。ふつうの語と区別できない 8 字未満は残す。"""
    secret = re.compile("(?:KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
    for value in [value for name, value in os.environ.items() if secret.search(name) and len(value) >= 8]:
        # 画面（そのまま・Python の表示・HTML）での形と、それを JSON に入れた形
        shown = {value, repr(value)[1:-1], html.escape(value), html.escape(value, quote=False)}
        stored = {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in shown for ascii_only in (True, False)}
        for form in sorted(shown | stored, key=len, reverse=True):
            text = text.replace(form, "（秘密の値）")
    return text


def only_one(folder: Path) -> FileLock:
    """この実行を独り占めする鍵。プロセスが終われば（kill -9 でも）OS が外す。上流を作る自分の子は、そのまま通す。"""
    lock = FileLock(folder / "lock", timeout=0)
    if os.environ.get("WORKSHOP_RUN_HELD") != str(folder):
        lock.acquire()
        os.environ["WORKSHOP_RUN_HELD"] = str(folder)
    return lock


class LocalKernel(AsyncKernelManager):
    """カーネルの独り言（止めたときのトレースバックなど）を、画面でなく `kernel.log` に書く。"""

    log_stream: BinaryIO

    async def _async_launch_kernel(self, kernel_cmd: list[str], **settings: Any) -> None:
        await super()._async_launch_kernel(kernel_cmd, **{**settings, "stderr": self.log_stream})


def run_notebook(run: Run, source: Path, parameters: dict[str, Any], timeout: int = 3600) -> Path:
    """ノートブックを画面なしで動かし、秘密の値を消した写しの場所を返す。失敗、時間切れ（秒）なら WorkshopError。"""
    import papermill  # 重いので、上流を作るだけのノートブックには読ませない
    from nbclient.exceptions import CellTimeoutError

    # 時間の上限は、終わらないセル（ウィジェットが止める例がある）を無限に待たないため。
    target, log = run.folder / "notebooks" / source.name, run.folder / "kernel.log"
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ["WORKSHOP_HEADLESS"] = "1"  # 触る部品を出さない（lib.show.widgets）
    remedy = "メモリの空きとほかの重い処理を確かめ、同じコマンドで続きから始めてください"
    try:
        with log.open("ab") as LocalKernel.log_stream, tempfile.TemporaryDirectory(prefix="workshop-") as sockets:
            # TCP でなく、この実行だけのフォルダのソケットで話す。ほかの利用者に覗かれず、port も開かない。
            local = {"transport": "ipc", "ip": f"{sockets}/kernel"} if os.name == "posix" else {}
            bar = {"disable": not sys.stdout.isatty()}  # lib が tqdm を黙らせているので、端末では出すと言う
            options = {"cwd": str(NOTEBOOKS), "kernel_name": "python3", "kernel_manager_class": LocalKernel}
            options |= {"progress_bar": bar, "config": Config(ConnectionFileMixin=local)}
            options |= {"start_timeout": 180, "execution_timeout": timeout}  # 混んだ機械は、既定の 60 秒で起動しない
            papermill.execute_notebook(source, target, parameters, **options)
    except papermill.exceptions.PapermillExecutionError as error:
        said, told = scrub(str(error.evalue)), f"実行の写し {target} で前後が読めます"
        if error.ename == "WorkshopError":
            raise WorkshopError(said.rstrip("。"), told) from None
        where = f"{source.stem} のセル {error.cell_index + 1}"
        raise WorkshopError(f"{error.ename}: {said[:300]}", told, where) from None
    except CellTimeoutError:  # OSError の一種なので、ここで取らないと空き容量の失敗に見える
        started = sum(bool(cell["metadata"]["papermill"]["start_time"]) for cell in read_json(target)["cells"])
        where = f"{source.stem} のセル {started}"
        raise WorkshopError(f"セルが {timeout} 秒たっても終わりません", remedy, where) from None
    except RuntimeError as error:  # カーネルが起動しない、または途中で落ちた
        raise WorkshopError(f"ノートブックを動かすカーネルが止まりました: {error}", remedy, source.stem) from None
    finally:
        for path in filter(Path.exists, (target, log)):
            write_text(path, scrub(path.read_text(encoding="utf-8", errors="replace")))
    return target


def _fingerprint(run: Run, stage: str) -> str:
    """段の結果を左右するコード（文章・出力・`run.finish` の後の練習は除く）と版、02 では自分のデータの SHA-256。"""
    cells = read_json(NOTEBOOKS / f"{stage}.ipynb")["cells"]
    cells = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    last = next((place for place, source in enumerate(cells) if "run.finish(" in source), len(cells))
    path = data_path(run.data) if stage == "02_dataset" else None
    code = "\0".join([*cells[: last + 1], *map(str, versions().items())])
    return hashlib.sha256(code.encode()).hexdigest() + (f"+{file_sha256(path)}" if path else "")


def run_all(run: Run, stages: list[str], index: bool = True) -> None:
    """段を順に実行する。終わっていて、コード・版・データの変わらない段は飛ばす。やり直したら、後ろもやり直す。"""
    resolve(run.profile)
    stale, book = False, run.folder / "stages.json"  # 段 → 秒と指紋。上流を作る別のプロセスも書き足す
    expected = dict(zip(STAGES, run.profile.expected_seconds, strict=False))
    try:
        for stage in stages:
            place = f"[{STAGES.index(stage) + 1}/{len(STAGES)}]" if stage in STAGES else "[付録]"
            done, record = run.is_done(stage), read_json(book, {})
            if not stale and done and record.get(stage, {}).get("source") == _fingerprint(run, stage):
                print(f"{place} {stage}  済み（飛ばします）")
                continue
            half = "途中の成果物があります。学習は保存した所から、ほかは最初から続けます"
            said = half if (run.folder / stage).exists() and not done else ""
            print(f"{place} {stage}  見込み {expected.get(stage, '不明')} 秒  {said}", flush=True)
            stale, start = True, time.monotonic()
            (run.folder / stage / "metrics.json").unlink(missing_ok=True)
            write_json(book, {name: row for name, row in record.items() if name != stage})
            values = {"PROFILE": run.profile.name, "SEED": run.seed, "RUN": run.folder.name}
            values |= {"DATA": run.data} if stage == "02_dataset" else {}  # どのデータを使うかは 02 だけが決める
            run_notebook(run, NOTEBOOKS / f"{stage}.ipynb", values)
            took = {"seconds": round(time.monotonic() - start, 1), "source": _fingerprint(run, stage)}
            write_json(book, {**read_json(book, {}), stage: took})
            print(f"    → {took['seconds']:.0f} 秒  {stage_summary(run, stage)}", flush=True)
    finally:
        if index:
            record, table = read_json(book, {}), Table("ノートブック", "分", "主な指標")
            for stage in dict.fromkeys([*run.stages, *record]):  # 01〜08 と、実行した付録
                minutes = f"{record[stage]['seconds'] / 60:.1f}" if stage in record and run.is_done(stage) else "未完"
                table.add_row(stage, minutes, stage_summary(run, stage))
            table.add_row("合計", f"{sum(row['seconds'] for row in record.values()) / 60:.1f}")
            rich.print(table, f"\n読む: {write_index(run, record)}")


def require(run: Run, *names: str) -> None:
    """上流の段が無ければ、そのノートブックを別のプロセスで実行して作る。失敗したら WorkshopError。"""
    if not (missing := [name for name in names if not run.is_done(name)]):
        return
    print(f"上流の成果物がまだありません: {', '.join(missing)}。今から作ります。", flush=True)
    command = [sys.executable, "-m", "lib.execute", "--profile", run.profile.name, "--run", run.folder.name]
    command += ["--seed", str(run.seed), "--no-index", *missing]  # ほかの設定は、実行（run.json）が覚えている
    pipe, last = subprocess.PIPE, ""
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=subprocess.STDOUT, encoding="utf-8") as process:
        for line in process.stdout or ():
            last = line.strip().removeprefix("✋ ") or last
            print(line, end="", flush=True)
    if process.returncode:
        raise WorkshopError(f"上流の実行が失敗しました: {last}", "上の表示を見て直し、もう一度実行してください")


def _fitting(name: str, data: str) -> str:
    """自分のデータの言語を読めるプロファイルの名前。規約に同意していなければ、替えずに、替え方を知らせる。"""
    profile, path = get_profile(name), data_path(data)
    if path is None or language(read_own(path)) == profile.lang or (other := f"{name}-ja") not in PROFILES:
        return name
    if os.environ.get("WORKSHOP_ACCEPT_GEMMA_TERMS") == "yes":
        print(f"データが日本語なので、日本語を読むモデルのプロファイル {other} で実行します。")
        return other
    print(f"⚠ {profile.model} は日本語を読めず、遅くもなります。PROFILE={other} なら読めます（規約への同意が必要）。")
    return name


def main() -> None:
    """コマンドの入口。"""
    parser = argparse.ArgumentParser(description="ノートブックを順に実行する", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--run", help="実行の名前（省くとプロファイル名）")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="", help="自分のデータの場所（data/my なら my）")
    parser.add_argument("--lang", help="データの言語（ja か en。省くとモデルが読めるほう）")
    parser.add_argument("--mix", type=lambda text: text and float(text), help="一般の問答の割合（0 なら混ぜない）")
    parser.add_argument("--no-index", action="store_true", help="表と index.html を作らない")
    parser.add_argument("stages", nargs="*", help="実行する段（省くと全部）")
    known, ways = (*STAGES, *APPENDICES), "SEED は整数、MIX は 0 以上 1 未満の数にしてください"
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # Ctrl-C の後、待つ人のいなくなった見張りが「カーネルが死んだ」と書き残す。その一行だけ出さない。
    logging.getLogger("asyncio").addFilter(lambda record: "DeadKernelError" not in record.getMessage())
    # 裏で起動されたプロセスは SIGINT を無視する設定を受け継ぐ。それでも Ctrl-C で止まれるように戻す。
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with command_line():
        try:
            options, odd = parser.parse_known_args()
        except argparse.ArgumentError as error:
            raise WorkshopError(f"{error.argument_name} の値を読めません", ways) from None
        if unknown := [*odd, *(name for name in options.stages if name not in known)]:
            raise WorkshopError(f"「{unknown[0]}」はありません", f"段の名前は次から選んでください: {', '.join(known)}")
        profile, more = _fitting(options.profile, options.data), {"lang": options.lang, "mix": options.mix}
        run = open_run(profile, options.run or None, options.seed, data=options.data, **more)
        remedy = "終わるのを待つか、空き容量と権限を確かめて、同じコマンドで続きから始めてください"
        try:
            _held = only_one(run.folder)  # 手放すと、鍵が外れる
            run_all(run, [name for name in known if name in (options.stages or run.stages)], not options.no_index)
        except OSError as error:  # ほかの所で実行中、空き容量が尽きた、権限が無いなど
            busy = "この実行は、ほかの所でいま走っています" if isinstance(error, Timeout) else ""
            raise WorkshopError(busy or f"書き込めません: {error.strerror}", remedy, run.folder) from None


if __name__ == "__main__":
    main()
