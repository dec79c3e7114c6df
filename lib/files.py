"""ファイル: 壊れない書き方、読み方、指紋と記録（manifest）。"""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError

REPOSITORY = Path(__file__).resolve().parent.parent
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def find_data(name: str | Path) -> Path | None:
    """DATA に書かれた名前から、読むファイルを、いまの場所・リポジトリ・その data/・ハブの順に探す。何も無ければ None。

    フォルダなら、隠れていないただ一つのデータ。開けない、知らない拡張子、一つに決まらないときは WorkshopError。
    """
    known, text = "・".join(DATA_SUFFIXES), str(name)
    places = [place / name for place in (Path(), REPOSITORY, REPOSITORY / "data") if text]
    try:
        if (found := next(filter(Path.exists, places), None)) is None:
            away = text.count("/") == 1 and not any(place.parent.exists() for place in places)  # data/… は手元の名前
            return _from_hub(text) if away and Path(text).suffix not in DATA_SUFFIXES else None
        inside = sorted(found.iterdir()) if found.is_dir() else [found]
    except Exception as error:  # ハブの失敗は、部品ごとに例外が違う
        said = " ".join(f"{error}".split())[:200]
        raise WorkshopError(f"この場所は開けません（{said}）", "名前・権限・回線を確かめてください", name) from None
    files = [path for path in inside if path.suffix.lower() in DATA_SUFFIXES and not path.name.startswith(".")]
    if len(files) == 1:
        return files[0]
    if found.is_file():
        raise WorkshopError(f"読めるのは {known} だけです", "どれかの形式で保存し直してください", found)
    names = " ".join(path.name for path in files[:8])
    raise WorkshopError(f"ファイルが一つに決まりません: {names}", f"DATA に {known} を一つ指定してください", found)


def _from_hub(name: str) -> Path:
    """ハブのデータセット（持ち主/名前）の train を、一度だけ取り、data/my/hub/ に JSONL で置いたもの。"""
    from datasets import load_dataset
    from huggingface_hub import dataset_info

    path = REPOSITORY / "data" / "my" / "hub" / f"{name.replace('/', '--')}.jsonl"
    if not path.exists():
        dataset_info(name, timeout=10)  # 届かなければ、何度も試さずに、ここで止まる
        rows = load_dataset(name, split="train")
        write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
    return path


def write_text(path: Path, text: str) -> Path:
    """一時ファイルに書いてから改名する。途中で止まっても前の内容が残る。"""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any) -> Path:
    """JSON を壊れない形で書く。"""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """JSON を読む。無ければ `default`。それも無い、または壊れているときは WorkshopError。"""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise WorkshopError("ファイルがありません", "先に、これを作るノートブックを実行してください", path) from None
    except json.JSONDecodeError as error:
        remedy = "このファイルを消して、作ったノートブックを実行し直してください"
        raise WorkshopError("JSON として読めません", remedy, f"{path}:{error.lineno} 行目") from None


def file_sha256(path: Path) -> str:
    """ファイルの SHA-256 を 16 進で返す。"""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(folder: Path) -> str:
    """重みの指紋。全部は読まず、各 safetensors の大きさと、始めと終わりの 1 MiB から求める。"""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            digest.update(f"{path.name} {(size := path.stat().st_size)}\n".encode() + stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """フォルダの中の全ファイルの SHA-256 と `facts` を、`manifest.json` に書く。`check_folder` が突き合わせる。"""
    digests = {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    write_json(folder / "manifest.json", {**facts, "sha256": digests})


def check_folder(folder: Path) -> None:
    """重みのフォルダを、作ったときの記録と突き合わせる。欠けたり途中で切れたりしていれば WorkshopError。"""
    try:
        digests = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        broken = [n for n in digests if not (path := folder / n).exists() or file_sha256(path) != digests[n]]
    except (ValueError, KeyError, TypeError):
        broken = ["manifest.json"]
    if broken:
        remedy = "このフォルダを消してもう一度実行すると、作り直します"
        raise WorkshopError("ファイルが欠けているか壊れています", remedy, folder / broken[0])
