"""文字のデータファイル（JSONL・JSON・CSV・TSV）を、壊れた所の行番号を集めながら読む。"""

import codecs
import csv
import io
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.errors import WorkshopError

_JSON_REASONS = {
    "Extra data": "一つの値のあとに余分な文字があります",
    "Expecting value": "値があるはずの場所に値がありません",
    "Expecting property name enclosed in double quotes": "キーが二重引用符で囲まれていません",
    "Expecting ',' delimiter": "区切りの「,」がありません",
    "Expecting ':' delimiter": "キーのあとの「:」がありません",
    "Unterminated string starting at": "文字列が閉じていません",
    "Invalid control character at": "文字列の中に生の改行やタブがあります",
    "Exceeds the limit (4300 digits) for integer string conversion": "整数の桁が多すぎます",
}
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Problem:
    """データの問題一つ。

    Attributes:
        file: ファイル名（ハブなら名前）。
        line: 1 から数えた行。ファイル全体のことなら 0。
        level: "error" | "warning" | "note"。
        code: 種類を表す短い英語。
        message: 何が起きているか。
        remedy: どうすればよいか。
    """

    file: str
    line: int
    level: str
    code: str
    message: str
    remedy: str

    def error(self) -> WorkshopError:
        """同じ内容の例外。"""
        return WorkshopError(self.message, self.remedy, f"{self.file}:{self.line} 行目" if self.line else self.file)


@dataclass(frozen=True)
class Row:
    """一件。`line` は始まりの行（1 から。Parquet とハブでは何件目か）、`data` は列名 → 値。"""

    line: int
    data: dict[str, Any]


def show(value: Any) -> str:
    """値を画面に出せる短い形にする。見出しの無い CSV では個人情報が列名に来るので、数字とメールは伏せる。"""
    return re.sub(r"\d", "*", re.sub(r"[^\s@＠,]+[@＠]\S*", "***@***", str(value)))[:60]


def read_text(path: Path) -> tuple[list[Row], list[Problem]]:
    """文字のデータファイルを読み、(読めた行, 壊れている所) を返す。

    Args:
        path: .jsonl・.json・.csv・.tsv のファイル。

    Raises:
        WorkshopError: 開けない、空、テキストでないとき。
    """
    text = _decode(path)
    kind = path.suffix.lower()
    if kind in (".jsonl", ".json"):
        rows = text.jsonl() if kind == ".jsonl" else text.json()
    else:
        header = text.content.partition("\n")[0]
        # 名前は .csv でも中身がタブ区切りのことがある（Excel の「Unicode テキスト」）。
        rows = text.csv("\t" if kind == ".tsv" or ("\t" in header and "," not in header) else ",")
    return rows, text.problems


def _decode(path: Path) -> "_Text":
    """文字コードを厳密に決める。順に BOM、UTF-8、cp932（日本の Excel）。どれでもない行は一つずつ報告する。"""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise WorkshopError(f"読めません: {error.strerror}", "権限を確かめてください", path) from None
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and len(re.findall(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", raw[:4096])) > len(raw[:4096]) // 20:
        raise WorkshopError("テキストではありません", "Excel なら「CSV UTF-8」で保存し直してください", path)
    if not raw.removeprefix(codecs.BOM_UTF8).strip():
        raise WorkshopError("ファイルが空です", "中身を確かめてください", path)
    codec, bad = ("utf-16" if wide else "utf-8-sig"), list[int]()
    try:
        raw.decode(codec)
    except UnicodeDecodeError as error:
        if wide:
            line = raw[: error.start].decode(codec, "ignore").count("\n") + 1
            raise WorkshopError("UTF-16 として壊れています", "保存し直してください", f"{path}:{line} 行目") from None
        lines = raw.split(b"\n")
        bad = [number for number, line in enumerate(lines, 1) if not _reads(line, "utf-8")]
        # UTF-8 で読める日本語の行の方が多ければ、UTF-8 の一部が壊れたもの。全体を cp932 と見ると全部が化ける。
        if sum(not line.isascii() for line in lines) < 2 * len(bad):
            other = [number for number, line in enumerate(lines, 1) if not _reads(line, "cp932")]
            codec, bad = ("cp932", other) if len(other) < len(bad) else (codec, bad)
    text = _Text(path, raw.decode(codec, "replace"), frozenset(bad))
    for line in bad:
        text.report(line, "encoding", "文字として読めない並びがあります", "この行を UTF-8 で書き直してください")
    if codec != "utf-8-sig" or (raw.startswith(codecs.BOM_UTF8) and path.suffix.lower() in (".jsonl", ".json")):
        name = "BOM つきの UTF-8" if codec == "utf-8-sig" else codec
        text.report(0, "not-utf8", f"文字コードが {name} です", "ほかの道具のために UTF-8 にそろえてください", "note")
    return text


def _reads(line: bytes, codec: str) -> bool:
    try:
        line.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("一つの { } に同じキーが二つあります")
    return made


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} は JSON の値ではありません")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse("大きすぎる数")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)


def _check_surrogates(value: Any, source: str) -> None:
    """対になっていないサロゲート（"\\ud83d" など）を断る。UTF-8 で書けず、トークナイザも止まる。"""
    if re.search(r"\\u[dD][89a-fA-F]", source):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("\\u のあとの文字が対になっていません（サロゲート）") from None


@dataclass
class _Text:
    """文字にできたファイル。読みながら `problems` に壊れた所を足す。`bad` は文字にできなかった行。"""

    path: Path
    content: str
    bad: frozenset[int]
    problems: list[Problem] = field(default_factory=list)

    def report(self, line: int, code: str, message: str, remedy: str, level: str = "error") -> None:
        self.problems.append(Problem(str(self.path), line, level, code, message, remedy))

    def _report_json(self, line: int, error: Exception, code: str = "json") -> None:
        reason = "入れ子が深すぎます" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.colno} 字目: {_JSON_REASONS.get(error.msg, error.msg)}"
        remedy = "この行を直してください" if code == "json" else "直してください（ここから後ろは読めません）"
        self.report(line, code, f"JSON として読めません（{_JSON_REASONS.get(reason, reason)}）", remedy)

    def _add(self, rows: list[Row], line: int, value: Any) -> None:
        if isinstance(value, dict):
            rows.append(Row(line, value))
        else:
            self.report(line, "not-object", "一件が { } の形ではありません", "列名と値の組で書いてください")

    def jsonl(self) -> list[Row]:
        rows: list[Row] = []
        if head := re.match(r"\s*\[[ \t]*[\r\n]", self.content):
            at = self.content.count("\n", 0, head[0].index("[")) + 1
            self.report(at, "stopped", "一行に一件ではなく、全体が配列です", "拡張子を .json にしてください")
            return rows
        # 文字列の中の U+2028 などで切らないよう、splitlines は使わない。
        for number, line in enumerate(self.content.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
            if line.strip() and number not in self.bad:
                try:
                    value = _DECODER.decode(line.removeprefix("\ufeff"))
                    _check_surrogates(value, line)
                    self._add(rows, number, value)
                except (ValueError, RecursionError) as error:
                    self._report_json(number, error)
        return rows

    def json(self) -> list[Row]:
        rows: list[Row] = []
        text, line, seen = self.content, 1, 0
        index = _skip(text, 0)
        if self.bad:
            return rows
        if text[index : index + 1] != "[":
            remedy = "一行に一件なら拡張子を .jsonl にしてください"
            self.report(text.count("\n", 0, index) + 1, "stopped", "全体が [ ] の配列ではありません", remedy)
            return rows
        index = _skip(text, index + 1)
        more = text[index : index + 1] != "]"
        while more:
            line, seen = line + text.count("\n", seen, index), index
            try:
                value, index = _DECODER.raw_decode(text, index)
                _check_surrogates(value, text[seen:index])
            except (ValueError, RecursionError) as error:
                self._report_json(getattr(error, "lineno", line), error, "stopped")
                return rows
            self._add(rows, line, value)
            index = _skip(text, index)
            more = text[index : index + 1] == ","
            index = _skip(text, index + 1) if more else index
        if text[index : index + 1] != "]" or text[index + 1 :].strip():
            line = text.count("\n", 0, index) + 1
            self.report(line, "stopped", "配列の続きが読めません", "「,」と「]」の場所を確かめてください")
        return rows

    def csv(self, delimiter: str) -> list[Row]:
        rows: list[Row] = []
        header: list[str] = []
        reader = csv.reader(io.StringIO(self.content, newline=""), delimiter=delimiter, strict=True)
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return rows
            except csv.Error as error:
                if header and "expected after" in str(error):
                    self.report(
                        start, "csv", "閉じた引用符のあとに文字があります", '引用符そのものは "" と書いてください'
                    )
                    continue
                what = "引用符が閉じていないか、一つの欄が長すぎます"
                self.report(start, "stopped", what, "直してください（ここから後ろは読めません）")
                return rows
            if not cells or not self.bad.isdisjoint(range(start, reader.line_num + 1)):
                continue
            if not header:
                header = [name.strip() for name in cells]
                if not self._header_is_sound(header, start):
                    return rows
            elif len(cells) != len(header):
                what = f"欄が {len(cells)} 個です（見出しは {len(header)} 個）"
                self.report(start, "ragged", what, "区切りの文字を含む欄を引用符で囲み、欄の数をそろえてください")
            else:
                rows.append(Row(start, dict(zip(header, map(_cell, cells), strict=True))))

    def _header_is_sound(self, header: list[str], line: int) -> bool:
        twice = sorted({show(name) for name in header if name and header.count(name) > 1})
        if not all(header):
            what = f"見出しの {header.index('') + 1} 列目が空です"
            self.report(line, "stopped", what, "列の名前を書くか、余分な列を消してください")
        elif twice:
            self.report(line, "stopped", f"見出しに同じ名前があります: {'、'.join(twice)}", "別の名前にしてください")
        return all(header) and not twice


def _skip(text: str, index: int) -> int:
    """JSON の空白を飛ばした位置。"""
    found = _SPACE.match(text, index)
    return found.end() if found else index


def _cell(text: str) -> Any:
    """CSV の欄の値。`save_rows` が JSON にして書いた会話（[{"role": …）だけは元に戻す。"""
    if text.startswith('[{"role"'):
        try:
            return _DECODER.decode(text)
        except (ValueError, RecursionError):
            return text
    return text
