"""llama.cpp をこのプロセスの中で 127.0.0.1 にだけ開き、Ollama の Modelfile を読み書きする。"""

import json
import os
import re
import time
from collections import namedtuple
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

from lib.errors import WorkshopError
from lib.export.gguf import open_gguf

Messages = Sequence[dict[str, str]]
_NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}  # `lib.model.generate.render` と同じ頼み方


class Chat(NamedTuple):
    """動いている llama.cpp との口。`address` は `http://127.0.0.1:PORT`。"""

    address: str

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """JSON を送って JSON を受け取る。サーバが答えなければ `WorkshopError`。"""
        request = Request(self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=300) as response:
                return json.load(response)
        except OSError as error:
            remedy = "ほかの重い処理を止めて、もう一度実行してください"
            raise WorkshopError(f"llama.cpp が答えません: {error}", remedy, path) from None

    def tokenize(self, text: str) -> list[int]:
        """`template` の文字列を、対話の口と同じくトークン ID の列にする（BOS はモデルの設定どおりに付く）。"""
        return self.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def template(self, messages: Messages) -> str:
        """GGUF の中のテンプレートで対話を文字列にする。"""
        return self.post("/apply-template", {"messages": messages, **_NO_THINKING})["prompt"]

    def complete(self, prompt: str | list[int], limit: int, **options: Any) -> dict[str, Any]:
        """文字列かトークン ID の列の続きを貪欲に書かせ、サーバの返事（content・tokens・stop_type など）を返す。"""
        body = {"prompt": prompt, "n_predict": limit, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self.post("/completion", {**body, **options})

    def ask(self, messages: Messages, limit: int) -> tuple[str, float]:
        """対話に貪欲に答え、(答え, 生成の速さ tokens/s) を返す。"""
        body = {"messages": messages, "max_tokens": limit, "temperature": 0, "cache_prompt": False, **_NO_THINKING}
        reply = self.post("/v1/chat/completions", body)
        return reply["choices"][0]["message"]["content"].strip(), reply["timings"]["predicted_per_second"]


@contextmanager
def serve(gguf: Path, num_ctx: int = 2048, slots: int = 1) -> Iterator[Chat]:
    """GGUF を llama.cpp で動かす（slots 問を同時に、文脈は各 num_ctx トークン）。必ず止め、失敗は `WorkshopError`。"""
    import xllamacpp

    open_gguf(gguf)  # 壊れたファイルを渡すと、llama.cpp 側でプロセスごと落ちることがある
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(gguf), num_ctx * slots, slots
    params.warmup, params.verbosity = False, 0
    # 使ってよいコアだけを使う（コンテナ・taskset・OMP_NUM_THREADS の制限を超えると桁違いに遅い）。
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = re.fullmatch(r"[1-9]\d*", os.environ.get("OMP_NUM_THREADS", ""))
    params.cpuparams.n_threads = min(cores, int(asked[0])) if asked else cores
    params.hostnames, params.port = ["127.0.0.1"], 0
    # 既定では、ブラウザで開いたどのページからも返事を読めてしまう（CORS）。このサーバ自身の番地だけに絞る。
    params.cors_origins, params.cors_origins_explicit, params.cors_credentials = "http://127.0.0.1", True, False
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        remedy = "この版の llama.cpp が、このモデルの形とトークナイザを知っているか確かめてください"
        raise WorkshopError(f"llama.cpp がこのモデルを読めません: {str(error)[:160]}", remedy, gguf) from None
    try:
        _wait_until_ready(server.listening_address)
        yield Chat(server.listening_address)
    finally:
        del server


def _wait_until_ready(address: str, seconds: float = 60) -> None:
    """仕事の列が回り始めるまで待つ。`/health` はその少し前から答え、その間に止めると、止める側が永遠に待つ。"""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        with suppress(OSError):
            return urlopen(address + "/slots", timeout=left).close()  # これは列を通って答える
        time.sleep(0.1)
    what = f"llama.cpp が {seconds:.0f} 秒たっても準備できません"
    raise WorkshopError(what, "空きメモリを確かめてください", address)


# Modelfile に書いてあったこと。others は、どれでもない行（"LICENSE"、"PARAMETER top_k" など → 値の列）
Settings = namedtuple("Settings", "source template system stops num_ctx temperature others")
_NEEDED = ("FROM", "TEMPLATE", "SYSTEM", "PARAMETER num_ctx", "PARAMETER temperature")
# 注釈か一つの命令。引用符の中は、行の終わりの引用符まで何行でも続く（Ollama の parser/parser.go と同じ）。
_COMMAND = re.compile(
    r"(?is)(?<![^\r\n])[ \t]*(?:#[^\r\n]*|(?:(from|template|system|license|adapter|draft|renderer|parser|requires)"
    r'|(parameter|message)[ \t]+(\w+))[ \t]+(?:"""(.*?)"""|"(?!"")(.*?)"|(?![ \t"])([^\r\n]*?))[ \t]*)(?![^\r\n])'
)


def modelfile(gguf: str, template: str, system: str, stops: Sequence[str], num_ctx: int) -> str:
    """Ollama の Modelfile を書く。省くと似た組込みのものに置き換えられることがあるので、すべて明示する。

    gguf は相対パス、template は Go の text/template、num_ctx はトークン数。引用符で書けない文字列は `WorkshopError`。
    """
    quoted, plain = r'"""|"\Z', r'["\r\n]|\A\Z'  # 三連の引用符の中に書けないもの、一行に書けないもの
    texts = [("SYSTEM", quoted, system), ("TEMPLATE", quoted, template), ("FROM", plain, gguf)]
    for label, bad, text in texts + [("stop", plain, stop) for stop in stops]:
        if re.search(bad, text):
            raise WorkshopError(f"{label} が空か、引用符か改行を含み、Modelfile に書けません", "別の字に替えてください")
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""', f'SYSTEM """{system}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join([*lines, f"PARAMETER num_ctx {num_ctx}", "PARAMETER temperature 0", ""])


def read_modelfile(text: str) -> Settings:
    """Ollama が受け取る Modelfile を読む（Ollama の無い機械用）。読めない行か、足りない命令があれば `WorkshopError`。

    くり返した命令は、Ollama と同じく後のものが効く（stop は全部）。使わなかった値は、一つも捨てずに others に残す。
    """
    text, found = text.removeprefix("\ufeff"), dict[str, list[str]]()
    for name, kind, key, *values in _COMMAND.findall(text):
        if name or kind:
            found.setdefault(name.upper() or f"{kind.upper()} {key}", []).append("".join(values))
    try:
        if strange := " ".join(_COMMAND.sub("", text).split()):
            raise ValueError(strange)
        source, template, system, num_ctx, temperature = (found[name].pop() for name in _NEEDED)
        stops = tuple(found.pop("PARAMETER stop", ()))
        others = {name: values for name, values in found.items() if values}
        return Settings(source, template, system, stops, int(num_ctx), float(temperature), others)
    except (KeyError, ValueError) as error:
        what = f"Modelfile の行が、読める形でそろっていません: {str(error)[:80]}"
        raise WorkshopError(what, "Ollama の Modelfile の書き方に直してください") from None
