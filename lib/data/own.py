"""自分のデータ: どのファイルの、どの行を、何として読むか。どこがおかしいか、どう分けるか。

検査（`check_file`、`make check DATA=`）が通した行は、実行（`read_own`、`make run DATA=`）が必ず読める。
何が見えたら何と言うかは `data/own/checks.toml` の表にある。元のファイルは書き替えない。
"""

import csv
import io
import json
import re
import sys
import tomllib
from collections import Counter, defaultdict, namedtuple
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize

from pyarrow import parquet
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from lib.data.facts import DATA, TRAIN_FORMS, Example, Split, make_unanswerable, stable_order
from lib.errors import WorkshopError, command_line
from lib.files import find_data
from lib.profiles import Profile
from lib.text.quantities import key_figures, split_items, states
from lib.text.words import normalise_width

OWN_SYSTEM = "質問に短く答えます。"
"""自分のデータで、システム文が書かれていないときに使う文。"""
TABLE = tomllib.loads((DATA / "own" / "checks.toml").read_text(encoding="utf-8"))
"""検査の表: 見る所 → 種類 → 程度・文・直し方・見つけ方。"""
MARKS = {"error": "✋ エラー", "warning": "⚠ 警告", "note": "・ 注意"}
_WORDS = tomllib.loads((DATA / "own" / "words.toml").read_text(encoding="utf-8"))
_RULES = {code: rule for rules in TABLE.values() for code, rule in rules.items()}
_SEEN = {kind: code for code, rule in TABLE["rows"].items() for kind in rule.get("seen", ())}
_CANONICAL = {alias: name for name, aliases in _WORDS["aliases"].items() for alias in aliases}
# 全角の数字と記号、横棒の異体を半角にそろえてから個人情報を探す。字数は変えない。
_PLAIN = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20} | dict.fromkeys(map(ord, "‐‑‒–—―−ー"), 0x2D)
Problem = namedtuple("Problem", "line level code message remedy")
"""問題一つ。`line` は 1 から数えた行（ファイル全体なら 0）、`level` は `MARKS` の鍵、`code` は表の鍵。"""
Row = namedtuple("Row", "line data form faults said worse texts", defaults=((), (), ()))
"""一件の意味。`data` は列名と正式な列名 → 値、`faults` は (表の鍵, 文に入る値 ...) の列、`said` は学ぶ会話の (役, 文)、
`worse` は悪い答えで終わる会話、`texts` は (場所, 文)。文を取り出せなければ、会話は空。"""


class Turn(BaseModel):
    """一つの発言。空白だけの文は発言ではない。"""

    role: Literal["system", "user", "assistant"] = Field(default=None, validate_default=True)
    content: str = Field(default="", validate_default=True, strict=True, pattern=r"[^\s\x1c-\x1f]")


_TURNS = TypeAdapter(Annotated[list[Turn], Field(min_length=1)])


class Report:
    """一つのファイルを読んだ結果。`rows` は読めた件、`problems` は問題。開けない、一行も無いときは `WorkshopError`。"""

    def __init__(self, source: str | Path) -> None:
        if (path := find_data(source)) is None:
            raise WorkshopError("データのファイルがありません", "場所と名前を確かめてください", source)
        self.path, self.rows, self.problems = path, list[Row](), list[Problem]()
        for line, found in _read(path):
            if isinstance(found, dict):
                self.rows.append(_understand(line, found))
            for fault in self.rows[-1].faults if isinstance(found, dict) else [found]:
                self.add(line, *fault)
        if not self.rows and not self.count("error"):
            raise WorkshopError("データの行が一つもありません", "中身を確かめてください", path)

    def add(self, line: int, code: str, *values: Any) -> None:
        """表の問題を一つ足す。"""
        rule = _RULES[code]
        said = rule["says"].format(*values), rule["remedy"].format(*values)
        self.problems.append(Problem(line, rule["level"], code, *said))

    def count(self, level: str) -> int:
        """その程度（"error" など）の問題の数。"""
        return sum(problem.level == level for problem in self.problems)

    def text(self, limit: int = 50) -> str:
        """画面に出す文。同じ種類は `limit` 件までで、残りは件数だけにする。"""
        forms = "、".join(f"{form} {count}" for form, count in Counter(row.form for row in self.rows).most_common())
        counts = "・".join(f"{mark[2:]} {self.count(level)}" for level, mark in MARKS.items())
        lines, seen = [f"{self.path}: {len(self.rows)} 件（{forms}）  {counts}"], Counter[str]()
        for line, level, code, message, remedy in self.problems:
            seen[code] += 1
            if seen[code] <= limit:
                lines.append(f"{MARKS[level]}: {f'{line} 行目 ' if line else ''}[{code}] {message}。{remedy}。")
        return "\n".join(lines + [f"… [{code}] ほかに {n - limit} 件あります" for code, n in seen.items() if n > limit])


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    """(始まりの行, 列名 → 値) か (行, (表の鍵, 文に入る値 ...)) の列。Parquet では、行は何件目か。"""
    suffix = path.suffix.lower()
    try:
        raw = path.read_bytes()
        if suffix == ".parquet":
            yield from enumerate(parquet.read_table(io.BytesIO(raw)).to_pylist(), 1)
            return
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow の例外は、どれかの子
        what = f"{suffix} として読めません: {type(error).__name__}"
        raise WorkshopError(what, "権限と中身を確かめ、CSV で保存し直してください", path) from None
    text, bad, codec = _decode(raw)
    if not text.strip():
        raise WorkshopError("ファイルが空です", "中身を確かめてください", path)
    if len(re.findall(r"[\0-\x08\x0e-\x1a\x1c-\x1f]", text[:4096])) > len(text[:4096]) // 20:
        raise WorkshopError("テキストではありません", "Excel なら「CSV UTF-8」で保存し直してください", path)
    yield from ((line, ("encoding",)) for line in bad)
    if codec != "UTF-8" and (codec != "BOM つきの UTF-8" or "json" in suffix):
        yield 0, ("not-utf8", codec)
    found = (_json if "json" in suffix else _csv)(text, suffix)
    yield from ((line, item) for line, item in found if line not in bad or not isinstance(item, dict))


def _decode(raw: bytes) -> tuple[str, list[int], str]:
    """文字コードを決める（`words.toml` の codecs の順）。(文字列, 文字にできない行, 文字コードの名前) を返す。"""
    tried = list[tuple[str, list[int], str]]()
    for name, codec, mark in _WORDS["codecs"]:
        if raw.startswith(bytes(mark)):
            text, shown = (raw.decode(codec, how) for how in ("replace", "backslashreplace"))
            lines = list(zip(text.split("\n"), shown.split("\n"), strict=True))
            bad = [number for number, (line, other) in enumerate(lines, 1) if line != other]
            tried.append((text, bad, name))
            # 読める日本語の行の方が多ければ、その文字コードの一部が壊れたもの。ほかの文字コードと見ると全部が化ける。
            if mark or sum(not line.isascii() for line, _ in lines) >= 2 * len(bad):
                break
    return min(tried, key=lambda found: len(found[1]))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("一つの { } に同じキーが二つあります")
    return made


def _parse(line: int, text: str) -> tuple[int, Any]:
    """JSON の一件。読めなければ (失敗した行, ("json", 理由))。"""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # NaN や、対にならないサロゲートを断る
        return line, value if isinstance(value, dict) else ("not-object",)
    except (ValueError, RecursionError) as error:
        what = getattr(error, "msg", str(error).partition(":")[0])
        said = _WORDS["json"].get(type(error).__name__) or _WORDS["json"].get(what, what)
        return line + getattr(error, "lineno", 1) - 1, ("json", said)


def _json(text: str, suffix: str) -> Iterator[tuple[int, Any]]:
    """JSONL の行か、JSON の配列の要素を、始まりの行とともに一つずつ返す。"""
    text = re.sub("\r\n?", "\n", text)
    if suffix == ".jsonl" and not re.match(r"\s*\[[ \t]*\n", text):
        found = enumerate(text.split("\n"), 1)  # splitlines は、文の中の U+2028 でも切るので使わない
        yield from (_parse(number, line.removeprefix("\ufeff")) for number, line in found if line.strip())
    elif suffix == ".jsonl" or not text.lstrip().startswith("["):
        yield text.count("\n", 0, len(text) - len(text.lstrip())) + 1, ("suffix",)
    else:
        at, count, decoder = text.find("[") + 1, -1, json.JSONDecoder()
        with suppress(ValueError, RecursionError):
            count = len(json.loads(text))
        if count < 0:
            yield _parse(1, text)
        for _ in range(count):
            start = next(re.compile(r"[\s,]*").finditer(text, at)).end()
            at = decoder.raw_decode(text, start)[1]
            yield _parse(text.count("\n", 0, start) + 1, text[start:at])


def _csv(text: str, suffix: str) -> Iterator[tuple[int, Any]]:
    """見出しの下の行を、列名 → 値にして、始まりの行とともに一つずつ返す。"""
    header, start, first = list[str](), 1, text.partition("\n")[0]
    # Excel の「Unicode テキスト」は、名前が .csv でもタブで区切る。
    tab = suffix == ".tsv" or ("\t" in first and "," not in first)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",", strict=True)
    try:
        for cells in reader:
            if cells and not header:
                header = [name.strip() for name in cells]
                if wrong := {_show(name) or "（空）" for name in header if not name or header.count(name) > 1}:
                    yield start, ("header", "、".join(sorted(wrong)))
                    return
            elif cells and len(cells) != len(header):
                yield start, ("ragged", len(cells), len(header))
            elif cells:
                row: dict[str, Any] = dict(zip(header, cells, strict=True))
                with suppress(ValueError, RecursionError):  # 表計算の欄に JSON で入れた会話
                    row |= {name: json.loads(cell) for name, cell in row.items() if cell.startswith('[{"role"')}
                yield start, row
            start = reader.line_num + 1
    except csv.Error:
        yield start, ("quote",)


def _show(value: Any) -> str:
    """値を画面に出せる短い形にする。見出しの無い CSV では個人情報が列名に来るので、数字とメールは伏せる。"""
    return re.sub(r"\d", "*", re.sub(r"[^\s@＠,]+[@＠]\S*", "***@***", str(value)))[:60]


def _understand(line: int, found: dict[str, Any]) -> Row:
    """一件の意味と、形と役の問題。正式な列名がそのままあれば、別名より先に採る。"""
    names = {normalize("NFKC", column).strip().lower(): value for column, value in reversed(found.items())}
    data = {_CANONICAL.get(name, name): value for name, value in names.items()} | found
    forms = _WORDS["forms"].items()
    fits = (form for form, kinds in forms if all(key in data or kind.endswith("?") for key, kind in kinds.items()))
    if (form := next(fits, None)) is None:
        code = next(code for code, rule in TABLE["shapes"].items() if data.keys() >= set(rule["columns"]))
        return Row(line, data, "不明", [(code, _show("、".join(found)))])
    told, texts, faults = dict[str, Any](), list[tuple[str, str]](), dict[str, Any]()
    for key, kind in _WORDS["forms"][form].items():
        value: Any = data.get(key)
        role, several = kind.rstrip("*?"), isinstance(value, list) and kind.endswith("*")
        places = [f"{key} の {number} 番目" for number in range(1, len(value) + 1)] if several else [key]
        try:
            given = value if several or not role else [{"role": role, "content": value}]
            turns = [] if kind.endswith("?") and value in (None, "") else _TURNS.validate_python(given)
            told[key] = [(turn.role, turn.content) for turn in turns]
            texts += zip(places, (turn.content for turn in turns), strict=False)
        except ValidationError as error:
            for wrong in error.errors(include_url=False, include_context=False):
                seen, value, at = wrong["type"], wrong["input"], wrong["loc"]
                place = places[int(at[0])] if at else key
                code = "empty" if (seen, value) == ("string_type", None) else _SEEN[seen]
                faults.setdefault(place, (code, place, _show(value)))
    if faults:
        return Row(line, data, form, list(faults.values()))
    said = [turn for key, turns in told.items() if key != "rejected" for turn in turns]
    if form == "instruction":  # input は、空行をはさんで指示につなぐ
        said = [*told["system"], ("user", "\n\n".join(text for role, text in said if role == "user")), *told["output"]]
    worse = told["prompt"] + told["rejected"] if form == "preference" else []
    orders = ["".join(role[0] for role, _ in chat) for chat in (said, worse)]
    codes = [code for code, rule in TABLE["roles"].items() if any(re.search(rule["pattern"], o) for o in orders)]
    codes += ["repeated-turn"] if len(set(_plain(said))) < len(said) else []
    codes += ["same-choice"] if _plain(worse) == _plain(said) else []
    return Row(line, data, form, [(code,) for code in codes], said, worse, texts)


def _plain(said: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """同じ文かを比べるための形（NFKC にし、空白の並びを一つにする）。"""
    return tuple((role, " ".join(normalize("NFKC", text).split())) for role, text in said)


def _see(text: str) -> Iterator[tuple[str, ...]]:
    """文の中に見えるもの: (表の鍵, 見つけた並び, 幅を直した並び)。個人情報は、検査数字も見て、伏せる。"""
    plain, personal = text.translate(_PLAIN), list[tuple[str, str]]()
    for code, rule in TABLE["personal"].items():
        for found in re.finditer(rule["pattern"], plain):
            digits = re.sub(r"\D", "", found[0].replace("(0)", "").replace("+81", "0"))
            values = [int(digit) for digit in reversed(digits)]
            # カードの検査数字は ISO/IEC 7812-1、個人番号の検査数字は平成26年総務省令第85号 第5条。
            luhn = sum(sum(divmod(n * (1 + i % 2), 10)) for i, n in enumerate(values)) % 10
            rest = sum(p * (n + 1 if n <= 6 else n - 5) for n, p in enumerate(values[1:], 1)) % 11
            fits = {"card": luhn == 0, "my-number": values[:1] == [0 if rest <= 1 else 11 - rest]}
            if fits.get(code, True) and re.fullmatch(rule.get("digits", ".*"), digits):
                plain = plain.replace(found[0], " ")
                personal.append((code, re.sub(r"\w", "*", found[0])))
    with suppress(UnicodeError):  # UTF-8 を cp932 で開いたものは、逆にたどると日本語に戻る
        if re.search("[ぁ-んァ-ヶ一-鿿]", back := text.encode("cp932").decode()) and back != text:
            text = "\ufffd"
    for code, rule in TABLE["texts"].items():
        if runs := [found[found.lastindex or 0] for found in re.finditer(rule["pattern"], text)]:
            shown = "…" if personal else "、".join(runs)[:40]
            yield code, shown, normalise_width(shown)
            if code == "mojibake":
                return
    yield from personal


def check_file(source: str | Path) -> Report:
    """データを検査する。壊れた行は、結果の `problems` に行の順で入る。開けない、一行も無いときは `WorkshopError`。"""
    report, first = Report(source), dict[Any, int]()
    for row in report.rows:
        for place, text in row.texts:
            for code, *values in _see(text):
                report.add(row.line, code, place, *values)
        answer = normalise_width(row.said[-1][1]).strip() if row.said else ""
        # 採点と同じ読み手で、正解が自分の試験に通るかを確かめる。
        if missed := [word for word in _figures(row, answer) if not states(answer, word)] if answer else []:
            shown = "、".join(missed)[:40]
            report.add(row.line, "keyword", "…" if list(_see(shown)) else shown)
        said, worse = _plain(row.said), _plain(row.worse)
        if said and (said, worse) in first:
            report.add(row.line, "duplicate", first[said, worse])
        elif said and not worse and first.setdefault(said[:-1], row.line) != row.line:
            report.add(row.line, "conflict", first[said[:-1]])
        first.setdefault((said, worse), row.line)
    backwards = report.rows[::-1]  # 列・形・ライセンス → 初めて出た行
    columns = {name: row.line for row in backwards for name in row.data}
    forms = {row.form: row.line for row in backwards if row.form != "不明"}
    licences = {str(row.data["licence"] or ""): row.line for row in backwards if "licence" in row.data}
    (main, _), *others = Counter(row.form for row in report.rows if row.form in forms).most_common() or [("", 0)]
    for form, count in others:
        report.add(forms[form], "mixed-format", main, form, count)
    for code, rule in TABLE["columns"].items():
        if lines := [columns[name] for name in rule["columns"] if name in columns]:
            report.add(lines[0], code)
    for value, line in licences.items():
        if re.search(_RULES["licence"]["pattern"], value.strip().lower().replace(" ", "-")):
            report.add(line, "licence", _show(value))
    if not licences and not any(re.match(r"README\.md$|LICEN", path.name) for path in report.path.parent.iterdir()):
        report.add(0, "no-licence")
    report.problems.sort(key=lambda problem: problem.line)
    return report


def read_own(path: str | Path) -> list[Example]:
    """実行が使う行。同じ `fact_id` の行は同じ事実。読めない行があれば、最初の一つの行番号を示す `WorkshopError`。"""
    report = Report(path)
    for wrong in report.problems:
        if wrong.level == "error":
            remedy = f"{wrong.remedy}（make check で全体を調べられます）"
            raise WorkshopError(wrong.message, remedy, f"{report.path}:{wrong.line} 行目")
    return [_example(row) for row in report.rows]


def _example(row: Row) -> Example:
    said = [{"role": role, "content": normalise_width(text)} for role, text in row.said]
    system = said.pop(0)["content"] if said[0]["role"] == "system" else OWN_SYSTEM
    *history, asked, told = said
    question, answer = asked["content"].strip(), told["content"].strip()
    fact = stable_order(normalise_width(str(row.data.get("fact") or answer)))
    return Example(f"own-{fact[:10]}", "as_is", question, answer, _figures(row, answer), system, tuple(history))


def _figures(row: Row, answer: str) -> tuple[str, ...]:
    """正解に必ず入る語: 列に書かれたもの、無ければ答えの中の数値、それも無ければ答えの全文。"""
    given = row.data.get("figures") or ()
    words = given if isinstance(given, (list, tuple)) else split_items(normalise_width(str(given)))
    return tuple(map(str, words)) or key_figures(answer)


def own_split(path: str | Path, profile: Profile) -> Split:
    """自分のデータを、作り付けのデータと同じ形に分け、何件を教えるかを表示する。

    事実の 1 割（少なくとも 1 件）は教えない（unseen）。残りは、言い回しを一つ far に残し、足りない例は前置きで
    増やす。near と dev は、学習に出ない前置きを付けたもの。事実が 3 件に満たなければ `WorkshopError`。
    """
    groups: dict[str, dict[str, Example]] = defaultdict(dict)
    for row in read_own(path):
        groups[row.fact_id].setdefault(row.question, row)
    facts = [list(groups[fact].values()) for fact in sorted(groups)]
    if len(facts) < 3:
        what = f"事実が {len(facts)} 件しかなく、学習とテストに分けられません"
        raise WorkshopError(what, "答えの違う行を 3 件以上にしてください", path)
    hidden, budget = max(1, len(facts) // 10), profile.train_facts * min(profile.train_forms, len(TRAIN_FORMS))
    taught = facts[:-hidden][:budget]
    if len(taught) + hidden < len(facts):
        print(f"教える事実は、予算の {budget} 件だけを使います。")
    print(f"事実 {len(facts)} 件のうち {len(taught)} 件を教え、{hidden} 件は教えません（unseen）。")
    if any(len(rows) == 1 for rows in taught):
        print("言い回しが一つだけの事実は、far も前置きで代えます。尋ね方を書き足すほど、点は信用できます。")
    lang = "ja" if re.search("[ぁ-んァ-ヶ一-龠]", "".join(row.question for rows in taught for row in rows)) else "en"
    count = max(2, min(len(TRAIN_FORMS), budget // len(taught)))
    train = [example for rows in taught for example in _training(rows, count, _WORDS["wrappers"][lang])]
    dev_wrapper, (near_wrapper, far_wrapper) = _WORDS["wrappers_dev"][lang], _WORDS["wrappers_test"][lang]
    dev = [_wrap(rows[0], "wrapped_dev", dev_wrapper) for rows in taught[:16]]  # 途中で何度も測るので、16 例まで
    near = [_wrap(rows[0], "wrapped_test", near_wrapper) for rows in taught]
    last = {True: ("own_test", "{}"), False: ("wrapped_test", far_wrapper)}
    far = [_wrap(rows[-1], *last[len(rows) > 1]) for rows in taught]
    unseen = [_wrap(row, "own_test") for rows in facts[-hidden:] for row in rows]
    # 回答不能な質問は、みなも堂のデータから、店と関係のない話題だけを借りる。
    system = taught[0][0].system
    asks = ([replace(e, system=system) for e in part] for part in make_unanswerable(lang, "out_of_domain")[:2])
    return Split(train, dev, near, far, unseen, *asks)


def _wrap(row: Example, form: str, wrapper: str = "{}") -> Example:
    return replace(row, form=form, question=wrapper.format(row.question))


def _training(rows: list[Example], count: int, wrappers: list[str]) -> list[Example]:
    known = rows[:-1] or rows
    wrapped = [_wrap(row, "wrapped", wrapper) for wrapper in wrappers for row in known]
    return known + wrapped[: max(0, count - len(known))]


def main() -> None:
    """コマンドの入口（`python -m lib.data.own ファイルかフォルダ`）。エラーの問題が一つでもあれば終了コード 1。"""
    with command_line():
        report = check_file(" ".join(sys.argv[1:]))
        print(report.text())
    raise SystemExit(1 if report.count("error") else 0)


if __name__ == "__main__":
    main()
