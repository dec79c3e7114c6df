"""学習データの検査と修理。`python -m lib.data.validate FILE` で使う。

形・役の順・空の文・長さ・重複・矛盾・文字化け・個人情報・ライセンスを見て、行と直し方を示す。
"""

import argparse
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib.data.checks import Checker, plain
from lib.data.formats import detect_format, find_file, map_texts, save_rows, scan, turns
from lib.data.textcheck import repair
from lib.data.textfile import Problem, Row
from lib.errors import WorkshopError, command_line
from lib.files import write_json
from lib.model.load import load_tokenizer, resolve
from lib.profiles import get_profile

_MARKS = {"error": "✋ エラー", "warning": "⚠ 警告", "note": "・ 注意"}


@dataclass(frozen=True)
class Report:
    """検査の結果。

    Attributes:
        file: ファイル名。
        rows: 読めた件数。
        formats: 形 → 件数。見分けられない行は「不明」。
        problems: 問題。行の順（ファイル全体のことが先）。
        tokens: 一件のトークン数の min・median・max・total と、上限 limit を超えた件数 over。数えなければ None。
    """

    file: str
    rows: int
    formats: dict[str, int]
    problems: list[Problem]
    tokens: dict[str, int] | None

    def count(self, level: str) -> int:
        """その程度（"error" など）の問題の数。"""
        return sum(problem.level == level for problem in self.problems)

    def table(self, limit: int = 50) -> list[dict[str, Any]]:
        """表の行（程度・行・種類・内容・直し方）。同じ種類は `limit` 件までで、残りは件数だけにする。"""
        totals, seen, rows = Counter(p.code for p in self.problems), Counter[str](), []
        for p in self.problems:
            seen[p.code] += 1
            if seen[p.code] <= limit:
                values = (_MARKS[p.level], p.line or "", p.code, p.message, p.remedy)
            elif seen[p.code] == limit + 1:
                values = (_MARKS[p.level], "", p.code, f"ほかに {totals[p.code] - limit} 件あります", p.remedy)
            else:
                continue
            rows.append(dict(zip(("程度", "行", "種類", "内容", "直し方"), values, strict=True)))
        return rows

    def text(self, limit: int = 50) -> str:
        """画面に出す文。"""
        forms = "、".join(f"{form} {count}" for form, count in self.formats.items())
        counts = f"エラー {self.count('error')}・警告 {self.count('warning')}・注意 {self.count('note')}"
        lines = [f"{self.file}: {self.rows} 件（{forms}）  {counts}", "トークン数: 数えていません"]
        if self.tokens:
            t = self.tokens
            lines[1] = (
                f"トークン数: 最小 {t['min']}・中央 {t['median']}・最大 {t['max']}（{t['limit']} 超 {t['over']} 件）"
            )
        for row in self.table(limit):
            place = f"{row['行']} 行目 " if row["行"] else ""
            lines.append(f"{row['程度']}: {place}[{row['種類']}] {row['内容']}。{row['直し方']}。")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON に書ける形。問題は省かずすべて入る。"""
        counts = {level: self.count(level) for level in _MARKS}
        return {**asdict(self), "counts": counts}


def check_file(source: str | Path, tokenizer: Any = None, max_tokens: int = 256) -> Report:
    """データを検査する。

    Args:
        source: ファイル、データが一つだけのフォルダ、またはハブの名前。
        tokenizer: 長さを数えるトークナイザ。チャットテンプレートの分も数える。無ければ数えない。
        max_tokens: 一件の長さの上限（トークン）。

    Raises:
        WorkshopError: 開けない、または一行も無いとき。壊れた行は例外ではなく `problems` に入る。
    """
    rows, found = scan(source)
    path = find_file(source)
    check = Checker(str(path or source), found)
    samples = [sample for row in rows if (sample := check.row(row)) is not None]
    check.mixture()
    check.repeats(samples)
    check.licence(rows, path)
    tokens = check.tokens(samples, tokenizer, max_tokens) if tokenizer is not None and samples else None
    forms = Counter(form for _, form in check.forms)
    problems = sorted(check.problems, key=lambda problem: problem.line)
    return Report(check.file, len(rows), dict(forms.most_common()), problems, tokens)


@dataclass(frozen=True)
class Change:
    """修理で変えたこと一つ。`line` はもとのファイルの行（全体のことなら 0）。"""

    line: int
    what: str


def fix_file(source: str | Path, target: str | Path) -> list[Change]:
    """決まったやり方で直せるところを直し、別の JSONL（UTF-8）に書く。もとのファイルには触れない。

    直すのは文字コード、戻せる文字化け、見えない文字、半角カナと全角英数字、前後の空白。
    読めない行、空の文のある行、同じ行は除く。答えの矛盾と個人情報には触れない（人が決める）。

    Returns:
        変えたことの一覧。

    Raises:
        WorkshopError: 書き先がすでにある、途中から読めない、残る行が無い、書き込めないとき。
    """
    target = Path(target)
    if target.suffix != ".jsonl":
        raise WorkshopError("修理の結果は JSONL で書きます", "名前を .jsonl で終えてください", target)
    if target.exists() or target.is_symlink():
        raise WorkshopError("書き先がすでにあります", "別の名前にしてください（何も上書きしていません）", target)
    rows, problems = scan(source)
    changes: list[Change] = []
    for problem in problems:
        if problem.code == "stopped":  # 続きを黙って捨てないよう、ここで止める
            raise problem.error()
        dropped = problem.level == "error"
        changes.append(Change(problem.line, f"除いた（{problem.message}）" if dropped else "UTF-8 に直した"))
    kept: list[dict[str, Any]] = []
    seen: dict[Any, int] = {}
    for row in rows:
        data, done, drop = _fix_row(row, seen)
        if drop:
            changes.append(Change(row.line, f"除いた（{drop}）"))
            continue
        kept.append(data)
        changes += [Change(row.line, what) for what in done]
    if not kept:
        raise WorkshopError("直せる行が一つもありません", "もとのデータを作り直してください", source)
    save_rows(target, kept)
    return sorted(changes, key=lambda change: change.line)


def _fix_row(row: Row, seen: dict[Any, int]) -> tuple[dict[str, Any], list[str], str]:
    """一件を直し、(直した行, したこと, 除く理由) を返す。"""
    form = detect_format(row.data)
    if form is None:
        return row.data, [], ""
    done: dict[str, None] = {}

    def change(text: str) -> str:
        new, steps = repair(text)
        done.update(dict.fromkeys(steps))
        return new

    data = map_texts(row.data, form, change)
    said = turns(data, form)
    if any(content is None or content == [] or content == "" for _, _, content in said):
        return data, [], "空の文"
    if all(isinstance(role, str) and isinstance(content, str) for _, role, content in said):
        key = plain([(f"{place} {role}", content) for place, role, content in said])
        if seen.setdefault(key, row.line) != row.line:
            return data, [], f"{seen[key]} 行目と同じ"
    return data, list(done), ""


def _print_fix(source: str, target: str, changes: list[Change], limit: int = 50) -> None:
    for change in changes[:limit]:
        print(f"  {change.line or '全体'}{' 行目' if change.line else ''}: {change.what}")
    if len(changes) > limit:
        print(f"  ほかに {len(changes) - limit} 件")
    print(f"修理: {len(changes)} か所を直して {target} に書きました（{source} はそのままです）")
    left = Counter(problem.code for problem in check_file(target).problems if problem.level != "note")
    if left:
        print("人が決めるもの: " + "、".join(f"{code} {count} 件" for code, count in left.items()))


def _write_report(path: Path, report: Report) -> None:
    try:
        write_json(path, report.to_dict())
    except OSError as error:
        raise WorkshopError(f"書き込めません: {error.strerror}", "空き容量と権限を確かめてください", path) from None


def main(arguments: list[str] | None = None) -> None:
    """コマンドの入口。エラーの問題が一つでもあれば終了コード 1。"""
    parser = argparse.ArgumentParser(description="学習データを検査する")
    parser.add_argument("file", help="JSONL・JSON・CSV・TSV・Parquet、フォルダ、または Hugging Face の owner/name")
    parser.add_argument("--json", help="結果をすべて書く JSON の場所")
    parser.add_argument("--fix", help="直せるところを直して書く JSONL の場所（もとのファイルは変えない）")
    parser.add_argument("--max-tokens", type=int, default=256, help="一件の長さの上限（トークン）")
    parser.add_argument("--no-tokens", action="store_true", help="トークン数を数えない")
    options = parser.parse_args(arguments)
    with command_line():
        source = options.file
        path = find_file(source)
        if options.json and Path(options.json).suffix != ".json":
            raise WorkshopError("--json の書き先が .json ではありません", "名前を .json で終えてください", options.json)
        if options.json and path and Path(options.json).resolve() == path.resolve():
            raise WorkshopError("--json の書き先がもとのファイルです", "別の名前にしてください", options.json)
        tokenizer = None if options.no_tokens else load_tokenizer(resolve(get_profile("embedded")))
        report = check_file(source, tokenizer, options.max_tokens)
        print(report.text())
        if options.json:
            _write_report(Path(options.json), report)
        if options.fix:
            _print_fix(source, options.fix, fix_file(source, options.fix))
    raise SystemExit(1 if report.count("error") else 0)


if __name__ == "__main__":
    main()
