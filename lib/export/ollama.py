"""Ollama の Modelfile を書き、読み返し、その TEMPLATE を本物の Go の template で展開する。"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import WorkshopError

# 文法の誤りを見つけると Go がプロセスごと止めるので、子プロセスで展開する。
_RENDER = (
    "import json, pathlib, sys, go_template\n"
    "sys.stdout.buffer.write(go_template.render(pathlib.Path(sys.argv[1]), json.load(sys.stdin)))"
)


@dataclass(frozen=True)
class Settings:
    """Modelfile に書いてあったこと。

    Attributes:
        source: `FROM` のパス。
        template: Go の text/template 形式のテンプレート。
        system: システム文。
        stops: 生成を止める文字列。
        num_ctx: 文脈の長さ（トークン）。
        temperature: 温度。
    """

    source: str
    template: str
    system: str
    stops: tuple[str, ...]
    num_ctx: int
    temperature: float


def modelfile(gguf: str, template: str, system: str, stops: Sequence[str], num_ctx: int) -> str:
    """Ollama の Modelfile を書く。

    TEMPLATE を省くと、Ollama は似た組込みのものに置き換えることがある。だからすべて明示する。

    Args:
        gguf: `FROM` に書く相対パス。
        template: Go の text/template 形式のテンプレート。
        system: システム文。
        stops: 生成を止める文字列。
        num_ctx: 文脈の長さ（トークン）。

    Raises:
        WorkshopError: Modelfile の引用符では書けない文字列のとき。
    """
    for label, text in (("SYSTEM", system), ("TEMPLATE", template)):
        if '"""' in text or text.endswith('"'):
            raise WorkshopError(
                f'{label} に """ か末尾の " があり、Modelfile に書けません', "その引用符を別の字に替えてください"
            )
    for label, text in (("FROM", gguf), *(("stop", stop) for stop in stops)):
        if not text or re.search(r'["\r\n]', text):
            raise WorkshopError(f"{label} が空か、引用符か改行を含み、Modelfile に書けません", "別の字に替えてください")
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""', f'SYSTEM """{system}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += [f"PARAMETER num_ctx {num_ctx}", "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"


def read_modelfile(text: str) -> Settings:
    """`modelfile` が書いた形の Modelfile を読み返す（Ollama の無い機械で、同じ設定で動かすため）。

    Raises:
        WorkshopError: 要る行が無いとき。
    """
    blocks = dict(re.findall(r'^(TEMPLATE|SYSTEM) """(.*?)"""$', text, re.M | re.S))
    rest = re.sub(r'^(TEMPLATE|SYSTEM) """.*?"""$', "", text, flags=re.M | re.S)
    source = re.search(r"^FROM (.+)$", rest, re.M)
    values = dict(re.findall(r"^PARAMETER (num_ctx|temperature) (\S+)$", rest, re.M))
    if source is None or blocks.keys() != {"TEMPLATE", "SYSTEM"} or len(values) < 2:
        raise WorkshopError(
            "Modelfile に FROM・TEMPLATE・SYSTEM・num_ctx・temperature がそろっていません",
            "06 のノートブックを実行し直してください",
        )
    stops = tuple(re.findall(r'^PARAMETER stop "(.*)"$', rest, re.M))
    number, temperature = int(values["num_ctx"]), float(values["temperature"])
    return Settings(source[1], blocks["TEMPLATE"], blocks["SYSTEM"], stops, number, temperature)


def render_template(template: str, messages: Sequence[dict[str, str]]) -> str | None:
    """TEMPLATE を対話に当てはめる。Go の template の wheel が無い機械（Linux の ARM など）では None。

    Args:
        template: Go の text/template 形式のテンプレート。
        messages: 対話。最初が system なら、Ollama と同じく `.System` にも入れる。

    Raises:
        WorkshopError: テンプレートの文法が違うとき。
    """
    try:
        import go_template  # noqa: F401
    except (ImportError, OSError):
        return None
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    values = {
        "System": system,
        "Messages": [{"Role": turn["role"], "Content": turn["content"]} for turn in messages],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template"
        path.write_text(template, encoding="utf-8")
        command = [sys.executable, "-c", _RENDER, str(path)]
        result = subprocess.run(command, input=json.dumps(values).encode(), capture_output=True)
    said = result.stdout.decode()
    if result.returncode or said.startswith("parse template failed"):
        reason = (said + result.stderr.decode()).strip()[:160]
        raise WorkshopError(f"TEMPLATE を読めません: {reason}", "Go の text/template の書き方に直してください")
    return said
