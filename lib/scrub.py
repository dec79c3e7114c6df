"""鍵やトークンを、残るファイルと画面から消す。値は環境変数から知る。"""

import html
import json
import os
import re
from pathlib import Path

from lib.files import write_text

_NAMES = re.compile("(?:KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
_SHORTEST = 8  # これより短い値は、ふつうの語と区別できない
_SHOWN = "（秘密の値）"


def scrub(text: str) -> str:
    """名前が KEY・TOKEN・SECRET・PASSWORD で終わる環境変数の値を、文から消す。"""
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= _SHORTEST:
            for form in _forms(value):
                text = text.replace(form, _SHOWN)
    return text


def _forms(value: str) -> list[str]:
    """その値が、画面（そのまま・Python の表示・HTML）と、それを入れた JSON の中で取る形。"""
    shown = {value, repr(value)[1:-1], html.escape(value), html.escape(value, quote=False)}
    stored = {json.dumps(form, ensure_ascii=ascii_only)[1:-1] for form in shown for ascii_only in (True, False)}
    return sorted(shown | stored, key=len, reverse=True)


def scrub_file(path: Path) -> None:
    """ファイルの中の秘密の値を消す。無ければ何もしない。"""
    if path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
        if (clean := scrub(text)) != text:
            write_text(path, clean)
