"""自分のデータ: どのファイルの、どの行を、何として読むか。どこがおかしいか、どう分けるか。

検査（`make check DATA=`）が通した行は、実行が必ず読める。元のファイルは書き替えない。言う文は `data/own/checks.toml`。
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
from typing import Any
from unicodedata import normalize

from pyarrow import parquet

from lib.data.facts import (
    DATA,
    TRAIN_FORMS,
    Example,
    Split,
    language,
    make_unanswerable,
    normalise_question,
    stable_order,
)
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
_CANONICAL = {alias: name for name, aliases in _WORDS["aliases"].items() for alias in aliases}
_FORMS = [(form, kinds, {key for key in kinds if kinds[key][-1:] != "?"}) for form, kinds in _WORDS["forms"]]
# 全角の数字と記号、横棒の異体を半角にそろえてから個人情報を探す。字数は変えない。
_PLAIN = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20} | dict.fromkeys(map(ord, "‐‑‒–—―−ー"), 0x2D)
Problem = namedtuple("Problem", "line level code message remedy")
"""問題一つ。`line` は 1 から数えた行（ファイル全体なら 0）、`level` は `MARKS` の鍵、`code` は表の鍵。"""
Row = namedtuple("Row", "line data form faults said worse texts unused", defaults=((), (), (), ()))
"""一件の意味。`data` は列名 → 値、`faults` は (表の鍵, 値 ...) の列、`said` は学ぶ会話の (役, 文)、`worse` は悪い
答えの会話、`texts` は (場所, 文)、`unused` は使わない "列=値"。文を取り出せなければ、会話は空。"""


class Report:
    """一つのファイルを読んだ結果。`rows` は読めた件、`problems` は問題。開けない、一行も無いときは `WorkshopError`。"""

    def __init__(self, source: str | Path) -> None:
        if (path := find_data(source)) is None:
            raise WorkshopError("データのファイルがありません", "場所と名前を確かめてください", source)
        self.path, self.rows, self.problems = path, list[Row](), list[Problem]()
        verdicts = Counter[str]()  # 採否の列。書いてあれば、「採用」の行だけを使う
        for line, found in _read(path):
            row = _understand(line, found) if isinstance(found, dict) else Row(line, {}, "", [found])
            verdict = _WORDS["verdicts"].get(str(row.data.get("verdict", "採用") or "").strip(), "不明")
            verdicts[verdict] += 1
            self.rows += [row] if verdict == "採用" and row.data else []
            for fault in {"採用": row.faults, "不明": [("verdict",)]}.get(verdict, ()):
                self.add(line, *fault)
        if left := verdicts["不採用"] + verdicts["未記入"]:
            self.add(0, "not-taken", left, verdicts["未記入"])
        if not self.rows and not self.count("error"):
            raise WorkshopError("データの行が一つもありません", "中身と、採否の列を確かめてください", path)

    def add(self, line: int, code: str, *values: Any) -> None:
        """表の問題を一つ足す。"""
        rule = _RULES[code]
        new = Problem(line, rule["level"], code, rule["says"].format(*values), rule["remedy"].format(*values))
        if code not in TABLE["shapes"] or new[1:] not in [old[1:] for old in self.problems]:  # 形の問題は、一度だけ言う
            self.problems.append(new)

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
    except (OSError, ValueError, NotImplementedError):  # pyarrow の例外は、どれかの子
        raise WorkshopError(f"{suffix} として読めません", "権限を確かめ、CSV で保存し直してください", path) from None
    text, bad, codec = decode(raw)
    if not text.strip():
        raise WorkshopError("ファイルが空です", "中身を確かめてください", path)
    if len(re.findall(r"[\0-\x08\x0e-\x1a\x1c-\x1f]", text[:4096])) > len(text[:4096]) // 20:
        raise WorkshopError("テキストではありません", "Excel なら「CSV UTF-8」で保存し直してください", path)
    yield from ((line, ("encoding",)) for line in bad)
    if codec != "UTF-8" and (codec != "BOM つきの UTF-8" or "json" in suffix):
        yield 0, ("not-utf8", codec)
    found = (_json if "json" in suffix else _csv)(text, suffix)
    yield from ((line, item) for line, item in found if line not in bad or not isinstance(item, dict))


def decode(raw: bytes) -> tuple[str, list[int], str]:
    """文字コードを決める（`words.toml` の codecs の順）。(文字列, 文字にできない行, 文字コードの名前) を返す。"""
    tried = list[tuple[str, list[int], str]]()
    for name, codec, mark in _WORDS["codecs"]:
        if re.match(mark.encode("latin-1"), raw):
            text, shown = (raw.decode(codec, how) for how in ("replace", "backslashreplace"))
            lines = list(zip(text.split("\n"), shown.split("\n"), strict=True))
            bad = [number for number, (line, other) in enumerate(lines, 1) if line != other]
            tried.append((text.lstrip("\ufeff"), bad, name))
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
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # NaN や、対にならないサロゲートは受け付けない
        return line, value if isinstance(value, dict) else ("not-object",)
    except (ValueError, RecursionError) as error:
        what = getattr(error, "msg", str(error).partition(":")[0])
        said = _WORDS["json"].get(type(error).__name__) or _WORDS["json"].get(what, what)
        return line + getattr(error, "lineno", 1) - 1, ("json", said)


def _json(text: str, suffix: str) -> Iterator[tuple[int, Any]]:
    """JSONL の行か、JSON の配列の要素を、始まりの行とともに一つずつ返す。"""
    text = re.sub("\r\n?", "\n", text)
    if suffix == ".jsonl" and not re.match(r"\s*[\[{][ \t]*\n", text):
        found = enumerate(text.split("\n"), 1)  # splitlines は、文の中の U+2028 でも切るので使わない
        yield from (_parse(number, line) for number, line in found if line.strip())
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
    """見出し（形の分かる最初の行）の下の行を、列名 → 値にして、始まりの行とともに一つずつ返す。"""
    for mark in sorted("|;\t,", key=text.partition("\n")[0].count):  # 形の分かる見出しが無ければ、最も多い区切り
        rows, start = list[tuple[int, list[str]]](), 1
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        try:
            for cells in reader:
                rows += [(start, cells)] if "".join(cells).strip() else []
                start = reader.line_num + 1
        except csv.Error:
            rows.append((start, []))
        if heads := [n for n, (_, cells) in enumerate(rows[:10]) if _form(dict.fromkeys(cells, ""))[1]]:
            break
    (start, header), *body = rows[heads[0] if heads else 0 :] or [(1, ["x"])]
    inside = ["".join(cell for _, cells in body for cell in cells[n : n + 1]) for n in range(len(header))]
    # 名前の無い列は、どの行でも空か番号（pandas の索引）なら、無いものとする。
    used = {n: name.strip() for n, name in enumerate(header) if name.strip() or re.search(r"[^\d\s]", inside[n])}
    if wrong := {_show(name) or "（空）" for name in used.values() if not name or [*used.values()].count(name) > 1}:
        yield start, ("header", "、".join(sorted(wrong)))
    for start, cells in () if wrong else body if header else rows:
        if not cells:
            yield start, ("quote",)
        elif len(cells) <= max(used) or "".join(cells[len(header) :]).strip():
            yield start, ("ragged", len(cells), len(header))
        else:
            yield start, {name: cells[n] for n, name in used.items()}


def _show(value: Any) -> str:
    """値を画面に出せる短い形にする。見出しの無い CSV では個人情報が列名に来るので、数字とメールは伏せる。"""
    return re.sub(r"\d", "*", re.sub(r"[^\s@＠,]+[@＠]\S*", "***@***", str(value)))[:60]


def _form(found: dict[str, Any]) -> tuple[str, dict[str, str], dict[str, Any]]:
    """形の名前（どれでもなければ「不明」）、その列の役、列名（正式な名にしたもの）→ 値。値が null の列は、後で見る。"""
    columns = sorted(reversed(found.items()), key=lambda item: item[0] in _WORDS["aliases"])  # 正式な列名を先に採る
    data = {_CANONICAL.get(c if c in _CANONICAL else normalise_question(c), c): value for c, value in columns}
    tried = ({name for name, value in data.items() if value is not None}, data.keys())
    fits = ((form, kinds, data) for names in tried for form, kinds, need in _FORMS if need <= names)
    return next(fits, ("不明", {}, data))


def _turns(value: Any, role: str) -> list[dict[str, Any]]:
    """列の値を発言の並びにする。文字列の中の JSON も読み、欄と役の別名、null の欄、文だけの部分の並びをそろえる。"""
    with suppress(ValueError, TypeError, RecursionError):
        value = json.loads(value) if re.match(r'\s*\[\s*\{\s*"(?:role|from|content|value)"', value) else value
    if role and not (isinstance(value, list) and all(isinstance(said, dict) for said in value)):
        value = [{"role": role, "content": value}]
    turns = list[dict[str, Any]]()
    for said in value if isinstance(value, list) else ():
        known = said.items() if isinstance(said, dict) else {"role": said}.items()
        turn = {"content": ""} | {_WORDS["turns"].get(key, key): part for key, part in known if part is not None}
        with suppress(TypeError, KeyError):
            turn["content"] = "".join(part["text"] for part in turn["content"])
        turns.append(turn | {"role": _WORDS["roles"].get(str(turn.get("role")), turn.get("role"))})
    return turns


def _understand(line: int, found: dict[str, Any]) -> Row:
    """一件の意味と、形と役の問題。"""
    form, kinds, data = _form(found)
    told, texts, faults = defaultdict[str, list[Any]](list), list[tuple[str, str]](), list[tuple[Any, ...]]()
    seen = [(name, value) for name, value in data.items() if name not in kinds]
    for key, kind in kinds.items():
        skip = kind.endswith("?") and data.get(key) in (None, "")
        turns = [] if skip else _turns(data[key], kind.rstrip("?"))
        faults += [] if turns or skip else [("no-turns" if data[key] == [] else "not-list", key)]
        for n, turn in enumerate(turns, 1):
            place, speaker, text = f"{key} の {n} 番目" if len(turns) > 1 else key, turn["role"], turn["content"]
            if speaker not in ("system", "user", "assistant"):
                faults.append(("role", place, _show(speaker)))
            elif not isinstance(text, str) or not text.strip():
                faults.append(("empty" if isinstance(text, str) else "not-text", place))
            told[key].append((speaker, text))
            texts.append((place, text))
            seen += turn.items() if len(turn) > 2 or faults else ()
    unused = [f"{key}={value}"[:200] for key, value in seen if value not in (None, "", [], {})]
    for code, rule in TABLE["shapes"].items():
        fits = form == "不明" and data.keys() >= set(rule.get("columns", ["不明"]))
        if fits or any(re.match(rule.get("pattern", "$^"), mark) for mark in unused):
            return Row(line, data, "不明", [(code, _show("、".join(found)))])
    if faults:
        return Row(line, data, form, faults)
    known = [turn for key, kind in kinds.items() if kind[:1] in ("s", "u") for turn in told[key]]
    if told["input"]:  # input は、空行をはさんで質問につなぐ
        known = [*told["system"], ("user", "\n\n".join(text for role, text in known if role == "user"))]
    ends = [told[key] for key, kind in kinds.items() if kind in ("", "assistant")]
    said, worse = [*(end if set(known) <= set(end) else known + end for end in ends), []][:2]
    orders = ["".join(role[0] for role, _ in chat) for chat in (said, worse)]
    codes = [code for code, rule in TABLE["roles"].items() if any(re.search(rule["pattern"], o) for o in orders)]
    codes += ["repeated-turn"] if len(set(_plain(said))) < len(said) else []
    codes += ["same-choice"] if _plain(worse) == _plain(said) else []
    return Row(line, data, form, [(code,) for code in codes], said, worse, texts, unused)


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
        if missed := [word for word in _figures(row, answer) if not states(answer, word)] if answer else []:
            shown = "、".join(missed)[:40]
            report.add(row.line, "keyword", "…" if list(_see(shown)) else shown)
        said, worse = _plain(row.said), _plain(row.worse)
        if said and (said, worse) in first:
            report.add(row.line, "duplicate", first[said, worse])
        elif said and not worse and first.setdefault(said[:-1], row.line) != row.line:
            report.add(row.line, "conflict", first[said[:-1]])
        first.setdefault((said, worse), row.line)
    unused = [(row.line, mark) for row in report.rows for mark in row.unused]
    for code, rule in TABLE["columns"].items():
        if found := [(line, mark.partition("=")[0]) for line, mark in unused if re.match(rule["pattern"], mark)]:
            report.add(found[0][0], code, _show("、".join(dict.fromkeys(name for _, name in found))), len(dict(found)))
    papers = [path for path in report.path.parent.iterdir() if re.match(r"README\.md$|LICEN", path.name)]
    if not papers and not any("licence" in row.data for row in report.rows):
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
    examples = list[Example]()
    for row in report.rows:
        *history, asked, told = [{"role": role, "content": normalise_width(text)} for role, text in row.said]
        system = history.pop(0)["content"] if history and history[0]["role"] == "system" else OWN_SYSTEM
        question, answer = asked["content"].strip(), told["content"].strip()
        fact = "own-" + stable_order(normalise_width(str(row.data.get("fact") or answer)))[:10]
        examples.append(Example(fact, "as_is", question, answer, _figures(row, answer), system, tuple(history)))
    return examples


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
    lang = language([row for rows in taught for row in rows])
    count = max(2, min(len(TRAIN_FORMS), budget // len(taught)))
    train = list[Example]()
    for known in (rows[:-1] or rows for rows in taught):
        wrapped = [_wrap(row, "wrapped", wrapper) for wrapper in _WORDS["wrappers"][lang] for row in known]
        train += known + wrapped[: max(0, count - len(known))]
    dev_wrapper, (near_wrapper, far_wrapper) = _WORDS["wrappers_dev"][lang], _WORDS["wrappers_test"][lang]
    dev = [_wrap(rows[0], "wrapped_dev", dev_wrapper) for rows in taught[:16]]  # 途中で何度も測るので、16 例まで
    near = [_wrap(rows[0], "wrapped_test", near_wrapper) for rows in taught]
    far = [_wrap(r[-1], "own_test") if r[1:] else _wrap(r[-1], "wrapped_test", far_wrapper) for r in taught]
    unseen = [_wrap(row, "own_test") for rows in facts[-hidden:] for row in rows]
    # 回答不能な質問は、みなも堂のデータから、店と関係のない話題だけを借りる。
    asks = [[replace(e, system=train[0].system) for e in part] for part in make_unanswerable(lang, "out_of_domain")[:2]]
    return Split(train, dev, near, far, unseen, *asks)


def _wrap(row: Example, form: str, wrapper: str = "{}") -> Example:
    return replace(row, form=form, question=wrapper.format(row.question))


def main() -> None:
    """コマンドの入口（`python -m lib.data.own ファイルかフォルダ`）。エラーの問題が一つでもあれば終了コード 1。"""
    with command_line():
        report = check_file(" ".join(sys.argv[1:]))
        print(report.text())
    raise SystemExit(1 if report.count("error") else 0)


if __name__ == "__main__":
    main()
