"""自分のデータ: どのファイルの、どの行を、何として読むか。どこがおかしいか。決めるのはここだけ。

検査（`check_file`、`make check DATA=`）が通した行は、実行（`read_own`、`make run DATA=`）が必ず読める。
何が見えたら何と言うかは `data/own/checks.toml` の表にある。元のファイルは書き替えない。
"""

import argparse
import codecs
import csv
import io
import json
import re
import tomllib
from collections import Counter, namedtuple
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, create_model

from lib.data.facts import DATA
from lib.errors import WorkshopError, command_line
from lib.files import find_data
from lib.text.words import normalise_width

OWN_SYSTEM = "質問に短く答えます。"
"""自分のデータで、システム文が書かれていないときに使う文。"""
TABLE = tomllib.loads((DATA / "own" / "checks.toml").read_text(encoding="utf-8"))
"""検査の表: 見る所 → 種類 → 程度・文・直し方・見つけ方。"""
MARKS = {"error": "✋ エラー", "warning": "⚠ 警告", "note": "・ 注意"}
_WORDS = tomllib.loads((DATA / "own" / "words.toml").read_text(encoding="utf-8"))
_RULES = {code: rule for rules in TABLE.values() for code, rule in rules.items()}
_CANONICAL = {alias: name for name, aliases in _WORDS["aliases"].items() for alias in aliases}
# 全角の数字と記号、横棒の異体を半角にそろえてから個人情報を探す。字数は変えない。
_PLAIN = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20} | dict.fromkeys(map(ord, "‐‑‒–—―−ー"), 0x2D)
Said = list[tuple[str, str]]
Problem = namedtuple("Problem", "file line level code message remedy")
"""問題一つ。`line` は 1 から数えた行（ファイル全体なら 0）、`level` は `MARKS` の鍵、`code` は表の鍵。"""
Row = namedtuple("Row", "line data form said worse texts")
"""一件の意味。`said` は学ぶ会話の (役, 文)、`worse` は悪い答えで終わる会話、`texts` は幅を直す前の (場所, 文)。"""
OwnRow = namedtuple("OwnRow", "fact question answer system figures history line")
"""実行が読む 1 行。同じ `fact` の行は同じ事実、`figures` は正解に必ず入る語、`history` は前の往復。"""


class Turn(BaseModel):
    """一つの発言。空白だけの文は発言ではない。"""

    role: Literal["system", "user", "assistant"] = Field(default=None, validate_default=True)
    content: str = Field(default=None, validate_default=True, strict=True, pattern=r"[^\s\x1c-\x1f]")


def _column(kind: str) -> Any:
    """`words.toml` の forms に書いた列の型。文字列なら、その役の発言一つにする。"""
    role, several, optional = kind.rstrip("*?"), kind.endswith("*"), kind.endswith("?")

    def wrap(value: Any) -> Any:
        turns = [] if optional and value in (None, "") else [{"role": role, "content": value}]
        return value if several and isinstance(value, list) and value else turns

    return Annotated[list[Turn], BeforeValidator(wrap) if role else Field(min_length=1)], [] if optional else ...


FORMS = {
    form: create_model(form, **{column: _column(kind) for column, kind in columns.items()})
    for form, columns in _WORDS["forms"].items()
}
"""形の名前 → 列の型。上から順に見分ける。"""


class Report:
    """一つのファイルを読んだ結果。`rows` は読めた件、`problems` は問題。開けない、一行も無いときは `WorkshopError`。"""

    def __init__(self, source: str | Path) -> None:
        if (path := find_data(source)) is None:
            raise WorkshopError("データのファイルがありません", "場所と名前を確かめてください", source)
        self.path, self.file, self.rows, self.problems = path, str(path), list[Row](), list[Problem]()
        for line, found in _read(path):
            faults = [found]
            if isinstance(found, dict):
                row, faults = _understand(line, found)
                self.rows.append(row)
            for fault in faults:
                self.add(line, *fault)
        if not self.rows and not self.count("error"):
            raise WorkshopError("データの行が一つもありません", "中身を確かめてください", self.file)

    def add(self, line: int, code: str, *values: Any) -> None:
        """表の問題を一つ足す。"""
        rule = _RULES[code]
        said = rule["says"].format(*values), rule["remedy"].format(*values)
        self.problems.append(Problem(self.file, line, rule["level"], code, *said))

    def count(self, level: str) -> int:
        """その程度（"error" など）の問題の数。"""
        return sum(problem.level == level for problem in self.problems)

    def text(self, limit: int = 50) -> str:
        """画面に出す文。同じ種類は `limit` 件までで、残りは件数だけにする。"""
        forms = "、".join(f"{form} {count}" for form, count in Counter(row.form for row in self.rows).most_common())
        counts = "・".join(f"{mark[2:]} {self.count(level)}" for level, mark in MARKS.items())
        lines, seen = [f"{self.file}: {len(self.rows)} 件（{forms}）  {counts}"], Counter[str]()
        for p in self.problems:
            seen[p.code] += 1
            if seen[p.code] <= limit:
                place = f"{p.line} 行目 " if p.line else ""
                lines.append(f"{MARKS[p.level]}: {place}[{p.code}] {p.message}。{p.remedy}。")
        return "\n".join(lines + [f"… [{code}] ほかに {n - limit} 件あります" for code, n in seen.items() if n > limit])


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    """(始まりの行, 列名 → 値) か (行, (表の鍵, 文に入る値 ...)) の列。Parquet では、行は何件目か。"""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet

        try:
            yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
        except (OSError, ValueError, NotImplementedError) as error:  # pyarrow の例外は、どれかの子
            what = f"Parquet として読めません: {type(error).__name__}"
            raise WorkshopError(what, "作り直すか、CSV で保存し直してください", path) from None
        return
    text, bad, codec = _decode(path)
    yield from ((line, ("encoding",)) for line in bad)
    if codec != "UTF-8" and (codec != "BOM つきの UTF-8" or "json" in suffix):
        yield 0, ("not-utf8", codec)
    found = (_json if "json" in suffix else _csv)(text, suffix)
    yield from ((line, item) for line, item in found if line not in bad or not isinstance(item, dict))


def _decode(path: Path) -> tuple[str, list[int], str]:
    """文字コードを決める（順に BOM、UTF-8、cp932）。(文字列, 文字にできない行, 文字コードの名前) を返す。"""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise WorkshopError(f"読めません: {error.strerror}", "権限を確かめてください", path) from None
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and len(re.findall(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", raw[:4096])) > len(raw[:4096]) // 20:
        raise WorkshopError("テキストではありません", "Excel なら「CSV UTF-8」で保存し直してください", path)
    if not raw.removeprefix(codecs.BOM_UTF8).strip():
        raise WorkshopError("ファイルが空です", "中身を確かめてください", path)
    name = "UTF-16" if wide else "BOM つきの UTF-8" if raw.startswith(codecs.BOM_UTF8) else "UTF-8"
    text, bad = _decode_as(raw, "utf-16" if wide else "utf-8-sig")
    # UTF-8 で読める日本語の行の方が多ければ、UTF-8 の一部が壊れたもの。全体を cp932 と見ると全部が化ける。
    if not wide and sum(not line.isascii() for line in text.split("\n")) < 2 * len(bad):
        other = _decode_as(raw, "cp932")
        text, bad, name = (*other, "cp932") if len(other[1]) < len(bad) else (text, bad, name)
    return text, bad, name


def _decode_as(raw: bytes, codec: str) -> tuple[str, list[int]]:
    with suppress(UnicodeDecodeError):
        return raw.decode(codec), []
    text = raw.decode(codec, "replace")
    return text, [number for number, line in enumerate(text.split("\n"), 1) if "\ufffd" in line]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("一つの { } に同じキーが二つあります")
    return made


def _reason(error: Exception) -> str:
    what = getattr(error, "msg", str(error).partition(":")[0])
    return _WORDS["json"].get(type(error).__name__) or _WORDS["json"].get(what, what)


def _parse(text: str) -> Any:
    """JSON の一件。読めなければ ("json", 理由)。"""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # NaN や、対にならないサロゲートを断る
        return value if isinstance(value, dict) else ("not-object",)
    except (ValueError, RecursionError) as error:
        return "json", _reason(error)


def _json(text: str, suffix: str) -> Iterator[tuple[int, Any]]:
    """JSONL の行か、JSON の配列の要素を、始まりの行とともに一つずつ返す。"""
    text = re.sub("\r\n?", "\n", text)
    first, at = text.count("\n", 0, len(text) - len(text.lstrip())) + 1, text.find("[") + 1
    if suffix == ".jsonl" and not re.match(r"\s*\[[ \t]*\n", text):
        found = enumerate(text.split("\n"), 1)  # splitlines は、文の中の U+2028 でも切るので使わない
        yield from ((number, _parse(line.removeprefix("\ufeff"))) for number, line in found if line.strip())
        return
    try:
        values = json.loads(text) if suffix == ".json" and text.lstrip().startswith("[") else None
    except (ValueError, RecursionError) as error:
        yield getattr(error, "lineno", 0), ("stopped", f"JSON として読めません（{_reason(error)}）", "直してください")
        return
    if values is None:
        remedy = "一行に一件なら拡張子を .jsonl に、全体が [ ] の配列なら .json にしてください"
        yield first, ("stopped", "拡張子と中身の形が合いません", remedy)
    for _ in values or ():
        at = next(re.compile(r"[\s,]*").finditer(text, at)).end()
        end = json.JSONDecoder().raw_decode(text, at)[1]
        yield text.count("\n", 0, at) + 1, _parse(text[at:end])
        at = end


def _csv(text: str, suffix: str) -> Iterator[tuple[int, Any]]:
    header, first = list[str](), text.partition("\n")[0]
    # Excel の「Unicode テキスト」は、名前が .csv でもタブで区切る。
    tab = suffix == ".tsv" or ("\t" in first and "," not in first)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",", strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if header and "expected after" in str(error):
                yield start, ("csv",)
                continue
            yield start, ("stopped", "引用符が閉じていないか、一つの欄が長すぎます", "直してください")
            return
        if cells is None:
            return
        if cells and not header:
            header = [name.strip() for name in cells]
            wrong = {_show(name) or "（空）" for name in header if not name or header.count(name) > 1}
            if wrong:
                what = f"見出しに、空か同じ名前の列があります: {'、'.join(sorted(wrong))}"
                yield start, ("stopped", what, "列の名前を書くか、別の名前にするか、余分な列を消してください")
                return
        elif cells and len(cells) != len(header):
            yield start, ("ragged", len(cells), len(header))
        elif cells:
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            with suppress(ValueError, RecursionError):  # 表計算の欄に JSON で入れた会話
                row |= {name: json.loads(cell) for name, cell in row.items() if cell.startswith('[{"role"')}
            yield start, row


def _show(value: Any) -> str:
    """値を画面に出せる短い形にする。見出しの無い CSV では個人情報が列名に来るので、数字とメールは伏せる。"""
    return re.sub(r"\d", "*", re.sub(r"[^\s@＠,]+[@＠]\S*", "***@***", str(value)))[:60]


@lru_cache(maxsize=4096)
def _shape(columns: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """列の名前から、(形, 正式な列名 → その行での列名)。正式な名前がそのままあれば、別名より先に採る。"""
    names: dict[str, str] = {}
    for column in columns:
        plain = normalize("NFKC", column).strip().lower()
        name = _CANONICAL.get(plain, plain)
        if name not in names or column == name:
            names[name] = column
    needed = {form: {k for k, f in model.model_fields.items() if f.is_required()} for form, model in FORMS.items()}
    return next((form for form in FORMS if needed[form] <= names.keys()), "不明"), names


def _understand(line: int, data: dict[str, Any]) -> tuple[Row, list[tuple[Any, ...]]]:
    """一件の意味と、形と役の順の問題。文を取り出せなければ、会話は空。"""
    form, names = _shape(tuple(data))
    if form not in FORMS:
        code = next(code for code, rule in TABLE["shapes"].items() if names.keys() >= set(rule["columns"]))
        return Row(line, data, form, [], [], []), [(code, _show("、".join(data)))]
    fields = {key: data[names[key]] for key in FORMS[form].model_fields if key in names}
    kinds = _WORDS["forms"][form]
    lists = {key for key, value in fields.items() if value and isinstance(value, list) and kinds[key].endswith("*")}
    try:
        made = FORMS[form].model_validate(fields)
    except ValidationError as error:
        faults = {}
        for wrong in reversed(error.errors(include_url=False, include_context=False)):
            (key, *at), value = wrong["loc"], wrong["input"]
            place = f"{key} の {int(at[0]) + 1} 番目" if key in lists else str(key)
            blank = "no-turns" if value == [] else "empty" if value is None or isinstance(value, str) else "not-text"
            code = "role" if at and at[-1] != "content" else "not-list" if not at and value != [] else blank
            faults[place] = (code, place, _show(value))
        return Row(line, data, form, [], [], []), list(faults.values())
    texts, told = list[tuple[str, str]](), {}
    for key in FORMS[form].model_fields:
        turns = getattr(made, key)
        places = [f"{key} の {number} 番目" if key in lists else key for number in range(1, len(turns) + 1)]
        texts += zip(places, (turn.content for turn in turns), strict=True)
        told[key] = [(turn.role, normalise_width(turn.content)) for turn in turns]
    said = [turn for key, turns in told.items() if key != "rejected" for turn in turns]
    if form == "instruction":  # input は、空行をはさんで指示につなぐ
        said = [*told["system"], ("user", "\n\n".join(text for role, text in said if role == "user")), *told["output"]]
    worse = told["prompt"] + told["rejected"] if form == "preference" else []
    orders = ["".join(role[0] for role, _ in chat) for chat in (said, worse)]
    found = [code for code, rule in TABLE["roles"].items() if any(re.search(rule["pattern"], o) for o in orders)]
    found += ["repeated-turn"] if len(set(said)) < len(said) else []
    found += ["same-choice"] if _plain(worse) == _plain(said) else []
    return Row(line, data, form, said, worse, texts), [(code,) for code in found]


def _plain(said: Said) -> tuple[tuple[str, str], ...]:
    """同じ文かを比べるための形（NFKC にし、空白の並びを一つにする）。"""
    return tuple((role, " ".join(normalize("NFKC", text).split())) for role, text in said)


def _see(text: str) -> Iterator[tuple[str, ...]]:
    """文の中に見えるもの: (表の鍵, 見つけた並び, 幅を直した並び)。個人情報は伏せる。"""
    with suppress(UnicodeError):  # UTF-8 を cp932 で開いたものは、逆にたどると日本語に戻る
        if re.search("[ぁ-んァ-ヶ一-鿿]", back := text.encode("cp932").decode()) and back != text:
            yield "mojibake", ""
            return
    personal = list(_personal(text.translate(_PLAIN)))
    for code, rule in TABLE["texts"].items():
        if runs := [found[found.lastindex or 0] for found in re.finditer(rule["pattern"], text)]:
            shown = "…" if personal else "、".join(runs)[:40]
            yield code, shown, normalise_width(shown)
            if code == "mojibake":
                return
    yield from personal


def _personal(text: str) -> Iterator[tuple[str, ...]]:
    """個人情報らしい並びの (表の鍵, 伏せ字)。カード（ISO/IEC 7812-1）と個人番号は検査数字、電話は桁の数も見る。"""
    for code, rule in TABLE["personal"].items():
        for found in re.finditer(rule["pattern"], text):
            digits = re.sub(r"\D", "", found[0].replace("(0)", "").replace("+81", "0"))
            values = [int(digit) for digit in reversed(digits)]
            luhn = sum(sum(divmod(n * (1 + i % 2), 10)) for i, n in enumerate(values)) % 10
            # 個人番号の検査数字は、平成26年総務省令第85号 第5条。
            rest = sum(p * (n + 1 if n <= 6 else n - 5) for n, p in enumerate(values[1:], 1)) % 11
            phone = re.fullmatch(r"0[5-9]0\d{8}|0[1-9]\d{8}", digits)
            fits = {"card": luhn == 0, "my-number": values[:1] == [0 if rest <= 1 else 11 - rest], "phone": phone}
            if fits.get(code, True):
                text = text.replace(found[0], " ")
                yield code, re.sub(r"\w", "*", found[0])


def check_file(source: str | Path) -> Report:
    """データを検査する。壊れた行は、結果の `problems` に行の順で入る。開けない、一行も無いときは `WorkshopError`。"""
    report, whole, asked = Report(source), dict[Any, int](), dict[Any, int]()
    for row in report.rows:
        for place, text in row.texts:
            for code, *values in _see(text):
                report.add(row.line, code, place, *values)
        said, worse = _plain(row.said), _plain(row.worse)
        if said and (said, worse) in whole:
            report.add(row.line, "duplicate", whole[said, worse])
        elif said and not worse and asked.setdefault(said[:-1], row.line) != row.line:
            report.add(row.line, "conflict", asked[said[:-1]])
        whole.setdefault((said, worse), row.line)
    _check_whole(report)
    report.problems.sort(key=lambda problem: problem.line)
    return report


def _check_whole(report: Report) -> None:
    """ファイル全体のこと: 混じった形、使われない列、ライセンス。"""
    first: dict[tuple[str, str], int] = {}
    for row in report.rows:
        first.setdefault(("form", row.form), row.line)
        for name, column in _shape(tuple(row.data))[1].items():
            first.setdefault(("column", name), row.line)
            if name == "licence":
                first.setdefault(("licence", str(row.data[column] or "")), row.line)
    main, *others = Counter(row.form for row in report.rows if row.form in FORMS).most_common() or [("", 0)]
    for form, count in others:
        report.add(first["form", form], "mixed-format", main[0], form, count)
    for code, rule in TABLE["columns"].items():
        if lines := [first["column", name] for name in rule["columns"] if ("column", name) in first]:
            report.add(lines[0], code)
    licences = {value: line for (kind, value), line in first.items() if kind == "licence"}
    for value, line in licences.items():
        if re.search(_RULES["licence"]["pattern"], value.strip().lower().replace(" ", "-")):
            report.add(line, "licence", _show(value))
    beside = [path.name for path in report.path.parent.iterdir()]
    if not licences and not any(name == "README.md" or name.startswith("LICEN") for name in beside):
        report.add(0, "no-licence")


def read_own(path: str | Path) -> list[OwnRow]:
    """表を読み、質問と答えにそろえる。読めない行があれば、最初の一つの行番号を示す `WorkshopError`。"""
    report, rows = Report(path), []
    for problem in report.problems:
        if problem.level == "error":
            place = f"{problem.file}:{problem.line} 行目"
            raise WorkshopError(problem.message, f"{problem.remedy}（make check で全体を調べられます）", place)
    for row in report.rows:
        system = row.said[0][1] if row.said[0][0] == "system" else OWN_SYSTEM
        *history, (_, question), (_, text) = [turn for turn in row.said if turn[0] != "system"]
        answer, keys = text.strip(), {name: (name, *_WORDS["aliases"][name]) for name in ("fact", "figures")}
        fact, given = (next((row.data[k] for k in keys[name] if row.data.get(k)), None) for name in keys)
        if isinstance(given, str):
            given = [word.strip() for word in re.split(r"[、,;；|]", normalise_width(given)) if word.strip()]
        # 正解に必ず入る語: 列に書かれたもの、無ければ答えの中の数値、それも無ければ答えの全文。
        figures = tuple(map(str, given or re.findall(_WORDS["figure"]["pattern"], answer) or [answer.rstrip("。．. ")]))
        before = tuple({"role": role, "content": content} for role, content in history)
        fact = normalise_width(str(fact or answer))
        rows.append(OwnRow(fact, question.strip(), answer, system, figures, before, row.line))
    return rows


def main() -> None:
    """コマンドの入口。エラーの問題が一つでもあれば終了コード 1。"""
    parser = argparse.ArgumentParser(description="学習データを検査する")
    parser.add_argument("file", help="JSONL・JSON・CSV・TSV・Parquet、またはフォルダ")
    with command_line():
        report = check_file(parser.parse_args().file)
        print(report.text())
    raise SystemExit(1 if report.count("error") else 0)


if __name__ == "__main__":
    main()
