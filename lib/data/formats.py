"""学習データを読み、形を見分け、別の形に直して書く。

壊れた行で止まらず、どの行が壊れているかを一つずつ集める（`scan`）。最初の一つで止めるのが `load`。
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.data.textfile import Problem, Row, read_text, show
from lib.errors import WorkshopError
from lib.files import DATA_SUFFIXES, find_data, write_text

FIELDS = {
    "messages": {"messages": ""},
    "preference": {"prompt": "user", "chosen": "assistant", "rejected": "assistant"},
    "prompt_completion": {"prompt": "user", "completion": "assistant"},
    "instruction": {"system": "system", "instruction": "user", "input": "user", "output": "assistant"},
    "qa": {"question": "user", "answer": "assistant"},
}
"""形の名前 → キーと、文字列が入ったときの役。上から順に見分ける。"""
_OPTIONAL = ("system", "input")
_ALIASES = {
    **dict.fromkeys(("質問", "質問文", "問い", "問", "q"), "question"),
    **dict.fromkeys(("回答", "回答文", "答え", "答", "a"), "answer"),
    **{"指示": "instruction", "入力": "input", "出力": "output", "プロンプト": "prompt"},
}
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def find_file(source: str | Path) -> Path | None:
    """読むファイルを決める（決め方は `find_data`）。ハブの名前（owner/name）なら None。

    Raises:
        WorkshopError: 無い、知らない拡張子、フォルダの中が一つに決まらないとき。
    """
    if found := find_data(source):
        return found
    if isinstance(source, str) and _HUB.fullmatch(source) and Path(source).suffix.lower() not in DATA_SUFFIXES:
        return None
    raise WorkshopError("データのファイルがありません", "場所と名前を確かめてください", source)


def scan(source: str | Path) -> tuple[list[Row], list[Problem]]:
    """データを読み、(読めた行, 壊れている所) を返す。壊れた行では止まらない。

    Args:
        source: ファイル、データが一つだけのフォルダ、またはハブの名前（owner/name の train）。

    Raises:
        WorkshopError: 開けない、テキストでない、または一行も無いとき。
    """
    path, problems = find_file(source), list[Problem]()
    if path is None:
        rows = _read_hub(str(source))
    elif path.suffix.lower() == ".parquet":
        rows = _read_parquet(path)
    else:
        rows, problems = read_text(path)
    if not rows and not any(problem.level == "error" for problem in problems):
        raise WorkshopError("データの行が一つもありません", "中身を確かめてください", path or source)
    return rows, problems


def load(source: str | Path) -> list[Row]:
    """データを読む。`scan` と違い、壊れた所が一つでもあれば止まる。

    Raises:
        WorkshopError: 開けないとき、または壊れた所があるとき（最初の一つの行を示す）。
    """
    rows, problems = scan(source)
    for problem in problems:
        if problem.level == "error":
            raise problem.error()
    return rows


def _read_hub(name: str) -> list[Row]:
    import datasets

    try:
        return [Row(number, dict(data)) for number, data in enumerate(datasets.load_dataset(name, split="train"), 1)]
    except Exception as error:  # ハブの失敗は、通信・認証・設定ごとに型が違い、列挙しきれない
        raise WorkshopError(
            f"ファイルもフォルダも無く、Hugging Face のデータセットとしても読めません: {type(error).__name__}",
            "場所と名前とネットワークを確かめるか、先に取得したファイルを指定してください",
            name,
        ) from None


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError):
        raise WorkshopError("Parquet として読めません", "壊れていないか、取り直して確かめてください", path) from None
    return [Row(number, data) for number, data in enumerate(values, 1)]


@lru_cache(maxsize=4096)
def _canonical(key: str) -> str:
    plain = unicodedata.normalize("NFKC", key).strip().lower()
    return _ALIASES.get(plain, plain)


def _names(data: dict[str, Any]) -> dict[str, str]:
    """正式な列名 → その行での列名。正式な名前がそのままあれば、別名より先に採る。"""
    found: dict[str, str] = {}
    for key in data:
        canonical = _canonical(key)
        if canonical not in found or key == canonical:
            found[canonical] = key
    return found


def detect_format(data: dict[str, Any]) -> str | None:
    """列名から形（`FIELDS` の鍵）を見分ける。どれでもなければ None。日本語の列名も読む。"""
    names = _names(data)
    for form, fields in FIELDS.items():
        if all(key in names or key in _OPTIONAL for key in fields):
            return form
    return None


def turns(data: dict[str, Any], form: str) -> list[tuple[str, Any, Any]]:
    """一件の中の文を (場所, 役, 中身) の列にする。

    壊れた値は直さずにそのまま返す（役や中身が文字列とは限らない）。空の任意の列は入れない。
    """
    names = _names(data)
    found: list[tuple[str, Any, Any]] = []
    for key, role in FIELDS[form].items():
        value = data.get(names.get(key, key))
        if key in _OPTIONAL and value in (None, ""):
            continue
        if isinstance(value, list) and value and form not in ("qa", "instruction"):
            for number, turn in enumerate(value, 1):
                said = turn if isinstance(turn, dict) else {}
                found.append((f"{key} の {number} 番目", said.get("role"), said.get("content")))
        else:
            found.append((key, role, value))
    return found


def map_texts(data: dict[str, Any], form: str, change: Callable[[str], str]) -> dict[str, Any]:
    """学習に使う文のすべてに `change` を掛けた写しを返す。列名と、ほかの列は変えない。"""
    names, made = _names(data), dict(data)
    for key in FIELDS[form]:
        value = data.get(names.get(key, key))
        if isinstance(value, str):
            made[names[key]] = change(value)
        elif isinstance(value, list):
            made[names[key]] = [
                {**turn, "content": change(turn["content"])}
                if isinstance(turn, dict) and isinstance(turn.get("content"), str)
                else turn
                for turn in value
            ]
    return made


def convert(data: dict[str, Any], target: str, allow_loss: bool = False) -> dict[str, Any]:
    """一件を別の形に直す。知らない列（id や licence など）はそのまま残す。

    Args:
        data: 一件。
        target: 直す先の形（`FIELDS` の鍵）。
        allow_loss: 入れ場所の無い rejected とシステム文を捨ててよいなら True。

    Raises:
        WorkshopError: 形が分からない、中身が壊れている、または直すと失われるものがあるとき。
    """
    form = detect_format(data)
    if form is None or target not in FIELDS:
        what = (
            f"形を見分けられません（列: {show('、'.join(data))}）"
            if form is None
            else f"「{target}」という形はありません"
        )
        raise WorkshopError(what, f"使える形は {'・'.join(FIELDS)} です")
    names = _names(data)
    fields = {key: data[names[key]] for key in FIELDS[form] if key in names}
    extra = {key: value for key, value in data.items() if key not in {names[known] for known in fields}}
    if form == target:
        return {**fields, **extra}
    if target == "preference":
        raise WorkshopError(f"{form} からは preference を作れません", "悪い答え（rejected）を人が用意してください")
    if form == "preference" and not allow_loss:
        raise _loss(" rejected（悪い答え）", target)
    made = _from_messages(_to_messages(data, form), target, allow_loss)
    if clash := sorted(made.keys() & extra.keys()):
        raise _loss(f"もとからある列 {'、'.join(clash)}", target)
    return {**made, **extra}


def _loss(what: str, target: str) -> WorkshopError:
    return WorkshopError(
        f"{target} に直すと{what}が失われます", "別の形を選ぶか、捨ててよいものなら除いてから直してください"
    )


def _to_messages(data: dict[str, Any], form: str) -> list[dict[str, Any]]:
    """会話の列にする。input は、空行をはさんで instruction につなぐ。"""
    said = [turn for turn in turns(data, form) if not turn[0].startswith("rejected")]
    for place, role, content in said:
        if not isinstance(role, str) or not role or not isinstance(content, str):
            raise WorkshopError(f"{place} に役か文がありません", "lib.data.validate で検査してから直してください")
    if form == "instruction":
        asked = "\n\n".join(content for _, role, content in said if role == "user")
        said = [turn for turn in said if turn[0] == "system"] + [("", "user", asked), said[-1]]
    plain = [{"role": role, "content": content} for _, role, content in said]
    # 会話に添えられた name や weight などを落とさないよう、もとがリストならその要素を使う。
    names = _names(data)
    parts = [data[names[key]] for key in FIELDS[form] if key != "rejected" and key in names]
    nested = [turn for part in parts if isinstance(part, list) for turn in part]
    return nested if len(nested) == len(plain) else plain


def _from_messages(messages: list[dict[str, Any]], target: str, allow_loss: bool) -> dict[str, Any]:
    roles = [turn["role"] for turn in messages]
    if target == "messages":
        return {"messages": messages}
    if len(messages) < 2 or roles[-1] != "assistant":
        raise WorkshopError("最後が assistant の答えではありません", "答えのある会話だけを直してください")
    if target == "prompt_completion":
        return {"prompt": messages[:-1], "completion": messages[-1:]}
    system = messages[0]["content"] if roles[0] == "system" else None
    if roles[system is not None :] != ["user", "assistant"]:
        raise _loss(f"{len(messages)} 個の発言のやりとり", target)
    if attached := sorted({key for turn in messages for key in turn} - {"role", "content"}):
        raise _loss(f"発言に添えた {'、'.join(attached)}", target)
    asked, answered = messages[-2]["content"], messages[-1]["content"]
    if target == "instruction":
        head = {} if system is None else {"system": system}
        return {**head, "instruction": asked, "input": "", "output": answered}
    if system is not None and not allow_loss:
        raise _loss("システム文", target)
    return {"question": asked, "answer": answered}


def save_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """行を .jsonl（UTF-8）か .csv（Excel で開ける BOM つき）に書く。途中で止まっても前の内容が残る。

    CSV では、列はすべての行の列名を出てきた順に並べ、リストなどの入れ子は JSON にして欄に入れる。

    Raises:
        WorkshopError: 拡張子が違う、書けない値がある、書き込めないとき。
    """
    made = list(rows)
    try:
        if path.suffix == ".jsonl":
            return write_text(path, "".join(_dump(row) + "\n" for row in made))
        if path.suffix == ".csv":
            stream = io.StringIO()
            writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")  # 生の \r も守る
            header = list(dict.fromkeys(key for row in made for key in row))
            writer.writerow(header)
            writer.writerows([_cell(row.get(key)) for key in header] for row in made)
            return write_text(path, "\ufeff" + stream.getvalue())
    except (ValueError, TypeError, RecursionError):
        raise WorkshopError(
            "書けない値（NaN や対にならない文字など）があります", "その行を直してください", path
        ) from None
    except OSError as error:
        raise WorkshopError(f"書き込めません: {error.strerror}", "空き容量と権限を確かめてください", path) from None
    raise WorkshopError("書けるのは .jsonl か .csv だけです", "名前の終わりを変えてください", path)


def _dump(value: Any) -> str:
    # default=str は、Parquet から来た日付などのため。
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else _dump(value)
