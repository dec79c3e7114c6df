"""llama.cpp との会話。サーバはこのプロセスの中だけで動き、127.0.0.1 にだけ口を開く。"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError
from lib.export import open_gguf

_THREADS = os.cpu_count() or 1


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
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return json.loads(response.read())
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

    def complete_ids(self, ids: list[int], limit: int) -> list[int]:
        """トークン ID の列の続きを貪欲に生成し、ID の列で返す。"""
        body = {"prompt": ids, "n_predict": limit, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self.post("/completion", body)["tokens"]

    def ask(self, messages: list[dict[str, str]], limit: int) -> tuple[str, float]:
        """対話に貪欲に答える。

        Returns:
            (答え, 生成の速さ tokens/s)。
        """
        body = {"messages": messages, "max_tokens": limit, "temperature": 0, "cache_prompt": False}
        reply = self.post("/v1/chat/completions", body)
        speed = float(reply.get("timings", {}).get("predicted_per_second", float("nan")))
        return reply["choices"][0]["message"]["content"].strip(), speed


@contextmanager
def serve(gguf: Path, num_ctx: int = 2048) -> Iterator[Chat]:
    """GGUF を読み込んで llama.cpp を動かし、抜けるときに必ず止める。

    Args:
        gguf: モデル。
        num_ctx: 文脈の長さ（トークン）。

    Raises:
        WorkshopError: ファイルが壊れている、または起動しないとき。
    """
    import xllamacpp

    open_gguf(gguf)  # 壊れたファイルを渡すと、llama.cpp 側でプロセスごと落ちることがある
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx = num_ctx
    params.n_parallel = 1
    params.cpuparams.n_threads = _THREADS
    params.warmup = False
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    try:
        chat = Chat(server.listening_address)
        _wait_until_ready(chat)
        yield chat
    finally:
        del server


def _wait_until_ready(chat: Chat, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(chat.address + "/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise WorkshopError(
        f"llama.cpp が {seconds:.0f} 秒たっても準備できません", "空きメモリを確かめてください", chat.address
    )
