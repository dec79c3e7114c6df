"""llama.cpp との会話。サーバはこのプロセスの中だけで動き、127.0.0.1 にだけ口を開く。

`python -m lib.export.serve model.gguf` は、そのファイルだけを動かす新しいプロセスで、速さとメモリを測る。
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import WorkshopError, command_line
from lib.export.gguf import open_gguf
from lib.files import REPOSITORY

_MEASURED_PROMPT, _MEASURED_ANSWER = 256, 32  # 速さを測る、読む量と書く量（トークン）


def _threads() -> int:
    """このプロセスが使ってよいコアの数。コンテナ・taskset・OMP_NUM_THREADS の制限を守る（超えると桁違いに遅い）。"""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) else cores


@dataclass(frozen=True)
class Chat:
    """動いている llama.cpp との口。

    Attributes:
        address: `http://127.0.0.1:PORT`。
    """

    address: str

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """JSON を送って JSON を受け取る。

        Raises:
            WorkshopError: サーバが断ったとき。
        """
        with self._open(path, body) as response:
            return json.loads(response.read())

    def _open(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            return urllib.request.urlopen(request, timeout=300)
        except (urllib.error.URLError, TimeoutError) as error:
            raise WorkshopError(
                f"llama.cpp が答えません: {error}", "ほかの重い処理を止めて、もう一度実行してください", path
            ) from None

    def tokenize(self, text: str) -> list[int]:
        """`template` の文字列を、対話の口と同じくトークン ID の列にする（BOS はモデルの設定どおりに付く）。"""
        return self.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def template(self, messages: list[dict[str, str]]) -> str:
        """GGUF の中のテンプレートで対話を文字列にする。"""
        return self.post("/apply-template", {"messages": messages})["prompt"]

    def complete(self, prompt: str | list[int], limit: int, **options: Any) -> dict[str, Any]:
        """文字列かトークン ID の列の続きを貪欲に書かせ、サーバの返事（content・tokens・stop_type など）を返す。"""
        body = {"prompt": prompt, "n_predict": limit, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self.post("/completion", {**body, **options})

    def hidden(self, ids: list[int]) -> np.ndarray:
        """各位置の、最後の層の出力（位置, 幅）。`serve(..., hidden=True)` のときだけ使える。"""
        reply: Any = self.post("/embedding", {"content": ids, "embd_normalize": -1})
        return np.array(reply[0]["embedding"], dtype=np.float32)

    def stream(self, messages: list[dict[str, str]], limit: int) -> Iterator[str]:
        """対話に貪欲に答え、書けた分から少しずつ返す。"""
        body = {"messages": messages, "max_tokens": limit, "temperature": 0, "stream": True}
        with self._open("/v1/chat/completions", body) as response:
            for line in response:
                data = line.decode().strip().removeprefix("data: ")
                if data.startswith("{") and (choices := json.loads(data)["choices"]):
                    yield choices[0]["delta"].get("content") or ""

    def ask(self, messages: list[dict[str, str]], limit: int) -> tuple[str, float]:
        """対話に貪欲に答える。

        Returns:
            (答え, 生成の速さ tokens/s)。
        """
        body = {"messages": messages, "max_tokens": limit, "temperature": 0, "cache_prompt": False}
        reply = self.post("/v1/chat/completions", body)
        speed = float(reply.get("timings", {}).get("predicted_per_second", float("nan")))
        return reply["choices"][0]["message"]["content"].strip(), speed


@lru_cache(maxsize=64)
def _check(gguf: Path, changed: int) -> None:
    """壊れたファイルを渡すと、llama.cpp 側でプロセスごと落ちることがある。読むのに数秒かかるので、一度だけ見る。"""
    open_gguf(gguf)


@contextmanager
def serve(gguf: Path, num_ctx: int = 2048, hidden: bool = False) -> Iterator[Chat]:
    """GGUF を読み込んで llama.cpp を動かし、抜けるときに必ず止める。

    Args:
        gguf: モデル。
        num_ctx: 文脈の長さ（トークン）。
        hidden: 隠れ状態も返せるようにするか（少し遅くなる）。

    Raises:
        WorkshopError: ファイルが壊れている、または起動しないとき。
    """
    import xllamacpp

    _check(gguf, gguf.stat().st_mtime_ns if gguf.exists() else 0)
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx = num_ctx
    params.n_parallel = 1
    params.cpuparams.n_threads = _threads()
    params.warmup = False
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    # 既定では、ブラウザで開いたどの頁からも返事を読めてしまう（CORS）。このサーバ自身の番地だけに絞る。
    params.cors_origins, params.cors_origins_explicit, params.cors_credentials = "http://127.0.0.1", True, False
    params.verbosity = 0
    if hidden:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise WorkshopError(
            f"llama.cpp がこのモデルを読めません: {str(error)[:160]}",
            "この版の llama.cpp が、このモデルの形とトークナイザを知っているか確かめてください",
            gguf,
        ) from None
    try:
        chat = Chat(server.listening_address)
        _wait_until_ready(chat)
        yield chat
    finally:
        del server


def _wait_until_ready(chat: Chat, seconds: float = 60) -> None:
    """用意ができ、仕事の列が回り始めるまで待つ。

    `/health` は列が回る少し前から答え、その間に止めると、止める側が永遠に待つ。`/slots` は列を通って答える。
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            for path in ("/health", "/slots"):
                with urllib.request.urlopen(chat.address + path, timeout=left):
                    pass
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise WorkshopError(
        f"llama.cpp が {seconds:.0f} 秒たっても準備できません", "空きメモリを確かめてください", chat.address
    )


def measure(gguf: Path) -> dict[str, float]:
    """新しいプロセスで GGUF を動かし、load_seconds・prompt_per_second・answer_per_second・peak_mb を測る。

    Raises:
        WorkshopError: そのプロセスが失敗したとき。
    """
    command = [sys.executable, "-m", "lib.export.serve", str(gguf)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["理由は不明"])[-1].removeprefix("✋ ")
        raise WorkshopError(f"速さを測れません: {reason[:200]}", "空きメモリを確かめてください", gguf)
    return json.loads(result.stdout.splitlines()[-1])


def _measure_here(gguf: Path) -> dict[str, float]:
    import xllamacpp  # noqa: F401  （import の時間を、読み込みの時間に入れない）

    _check(gguf, gguf.stat().st_mtime_ns)
    start = time.monotonic()
    with serve(gguf) as chat:
        load_seconds = time.monotonic() - start
        ids = (chat.tokenize("窓口へのお問い合わせ、ありがとうございます。") * _MEASURED_PROMPT)[:_MEASURED_PROMPT]
        # 1 回目は重みをディスクから読みながらになるので、2 回測って速い方を採る。
        timings = [chat.complete(ids, _MEASURED_ANSWER, ignore_eos=True)["timings"] for _ in range(2)]
    return {
        "load_seconds": load_seconds,
        "prompt_per_second": max(t["prompt_per_second"] for t in timings),
        "answer_per_second": max(t["predicted_per_second"] for t in timings),
        "peak_mb": _peak_megabytes(),
    }


def _peak_megabytes() -> float:
    """このプロセスが今までに使った最大のメモリ（MB）。"""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage の値は親プロセスの分を引き継ぐことがあるので、Linux では使わない
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status.open() if line.startswith("VmHWM"))
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    """コマンドの入口。"""
    parser = argparse.ArgumentParser(description="GGUF を 1 つ動かし、速さとメモリを JSON で出す")
    parser.add_argument("gguf", type=Path)
    with command_line():
        print(json.dumps(_measure_here(parser.parse_args().gguf)))


if __name__ == "__main__":
    main()
