"""評価: どのモデルにも同じ質問を同じ条件で解かせ、表にし、差を判定する（07 が同じ計算を見せる）。"""

import math
import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pandas

from lib.data.facts import DATA, Example, general_questions, language, read_examples
from lib.errors import WorkshopError
from lib.files import write_json, write_text
from lib.model.generate import answer_prompts, render
from lib.profiles import Profile
from lib.run import Run
from lib.score.answers import Interval, score_rows, wilson

Rows = Sequence[dict[str, Any]]
Exam = dict[str, list[Example]]  # 評価の問題。`PARTS` の鍵 → 問題の列
_TABLES = tomllib.loads((DATA / "exam.toml").read_text(encoding="utf-8"))
BASE = "学習前"
FILES, PARTS, GATE, STEPS, ANSWERS = (_TABLES[key] for key in ("files", "parts", "gate", "steps", "answers"))


def build_exam(run: Run) -> Exam:
    """02 が書いた評価データと、一般の質問から、評価の問題を作る。"""
    parts = {part: read_examples(run.folder / "02_dataset" / f"{name}.jsonl") for part, name in FILES.items()}
    # 忘却は、学習と同じシステム文の下で見る（自分のデータでは、システム文が違う）。
    system = parts["near"][0].system
    for part, level in {"general": "easy", "ordinary": "ordinary"}.items():
        parts[part] = [replace(e, system=system) for e in general_questions(language(parts["near"]), level)]
    return {part: examples[: run.profile.exam_questions or None] for part, examples in parts.items()}


def take(exam: Exam, model: Any, tokenizer: Any, profile: Profile, name: str, prompt: Any = Example.prompt) -> Rows:
    """モデルに全問を解かせ、採点した行を返す。`prompt` は、問題を入力の `messages` にする関数。"""
    prompts = [render(tokenizer, prompt(example)) for examples in exam.values() for example in examples]
    answers = iter(answer_prompts(model, tokenizer, prompts, profile))
    scored = (score_rows(asked, [next(answers) for _ in asked], name, part) for part, asked in exam.items())
    return [row for rows in scored for row in rows]


def share(rows: Rows, part: str, key: str = "correct") -> Interval:
    """ある部分の割合と 95% 区間（key は "correct" / "made_up" / "refused"）。幅は、独立な事実の数で決める。"""
    chosen = [row for row in rows if row["part"] == part]
    facts = len({row["fact"] for row in chosen})
    return wilson(facts * sum(bool(row[key]) for row in chosen) / max(len(chosen), 1), facts)


@dataclass(frozen=True)
class Change:
    """同じ質問への正誤の差（後 − 前）。groups は、事実ごとの、質問ごとの差（−1・0・1）。p は `verdicts` が入れる。"""

    groups: list[list[int]]
    unit: str = "事実"
    p: float = math.nan
    corrected: float = math.nan

    def __str__(self) -> str:
        totals, size = list(map(sum, self.groups)), f"{len(self.groups)} {self.unit}"
        if len(totals) < 2:
            return f"{size}では、検定できない"
        if not any(totals):
            return f"{size}とも正答の数が同じ" + "、差は示せない" * (not math.isnan(self.p))
        better, worse = sum(total > 0 for total in totals), sum(total < 0 for total in totals)
        counts = f"{better} {self.unit}で良化・{worse} {self.unit}で悪化（{size}）"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p + 1e-9:.2g}"
        more = f"（補正後 {self.corrected:.2g}）" if self.p <= 0.05 < self.corrected else ""
        return counts if math.isnan(self.p) else f"{counts}、{p}{more}、{self.word()}"

    def word(self) -> str:
        """「上がった」「下がった」「差は示せない」（補正後の p が 0.05 以下のときだけ、向きを言う）。"""
        shown = "上がった" if sum(map(sum, self.groups)) > 0 else "下がった"
        return shown if self.corrected <= 0.05 else "差は示せない"

    def interval(self, rounds: int = 2000) -> Interval:
        """正答率の差と、その大きさの 95% 区間。事実を単位に再標本化する（Efron & Tibshirani 1993、13 章）。"""
        generator = random.Random(0)  # 報告のたびに区間が揺れないよう固定する
        draws = [self.groups, *(generator.choices(self.groups, k=len(self.groups)) for _ in range(rounds))]
        value, *means = (sum(map(sum, drawn)) / (sum(map(len, drawn)) or math.nan) for drawn in draws)
        means.sort()
        return Interval(value, means[int(0.025 * rounds)], means[int(0.975 * rounds) - 1])

    def size(self) -> str:
        """「+25.0 ポイント [+6.2, +50.0]」の形。どの事実でも同じ差なら、区間を作らず、そのとおりに言う。"""
        if not self.groups:
            return "–"
        value, low, high = (100 * end for end in vars(self.interval()).values())
        around = f" [{low:+.1f}, {high:+.1f}]" if low < high else f"（{len(self.groups)} {self.unit}とも）"
        return f"{value:+.1f} ポイント{around}"


def difference(before: Rows, after: Rows, part: str, key: str = "correct") -> Change:
    """二つの評価の、ある部分（空白区切りで複数）の差。made_up は、減れば良化。質問が一つでも違えば WorkshopError。"""
    old, new = ({row["question"]: row for row in rows if row["part"] in part.split()} for rows in (before, after))
    if odd := sorted(old.keys() ^ new.keys(), key=str):
        what = f"{PARTS.get(part, part)}: 片方の評価にしか無い質問が {len(odd)} 問あるので、比べられません"
        raise WorkshopError(what, "同じ評価データで、両方を測り直してください", f"例: {odd[0]}")
    groups: dict[str, list[int]] = {}
    for question, row in old.items():
        change = int(new[question][key]) - int(row[key])
        groups.setdefault(row["fact"], []).append(-change if key == "made_up" else change)
    return Change(list(groups.values()), _TABLES["units"].get(part.split()[0], "事実"))


def sign_flip(groups: Sequence[Sequence[int]]) -> float:
    """両側の p（0–1）: 事実ごとに前後を入れ替える 2ⁿ 通りで、合計が実際以上に偏る割合（Pagano & Tritchler 1983）。"""
    ways = {0: 1}  # 合計 → その合計になる入れ替え方の数
    for total in map(sum, groups):
        ends = {start + step for start in ways for step in (total, -total)}
        ways = {end: ways.get(end - total, 0) + ways.get(end + total, 0) for end in ends}
    found = abs(sum(map(sum, groups)))
    return sum(count for end, count in ways.items() if abs(end) >= found) / 2 ** len(groups)


def verdicts(family: Mapping[Any, Change]) -> dict[Any, Change]:
    """前もって決めた一つの表の判定（6 つまで）。一つでも誤って差を言う割合を 5% 以下に抑える（Holm 1979）。"""
    assert len(family) <= 6, "一つの表の判定は 6 つまで"
    p = {key: sign_flip(change.groups) for key, change in family.items()}
    ordered = sorted(p, key=lambda key: p[key])
    steps = accumulate((min(1.0, (len(p) - place) * p[key]) for place, key in enumerate(ordered)), max)
    corrected = dict(zip(ordered, steps, strict=True))
    return {key: replace(change, p=p[key], corrected=corrected[key]) for key, change in family.items()}


def model_verdicts(results: Mapping[str, Rows]) -> dict[Any, Change]:
    """07 と報告の判定。隣り合うモデル（学習前 → SFT → SFT + DPO）の near・far・general で、鍵は（前, 後, 部分）。"""
    keys = [(a, b, part) for a, b in pairwise(results) for part in ("near", "far", "general")]
    return verdicts({(a, b, part): difference(results[a], results[b], part) for a, b, part in keys})


def release(ours: Mapping[str, Rows], against: Mapping[str, Rows] | None = None) -> dict[str, dict[str, Any]]:
    """リリースゲート（条件は data/exam.toml）。比べたもの → 見るもの → (判定, 赤か)。答えが無ければ、そこは空。"""
    found: dict[str, dict[str, Any]] = {}
    for new, (stage, keys) in STEPS.items():
        old, theirs, title = (stage, ours, f"{stage} → {new}") if against is None else (new, against, new)
        there, found[title] = keys if old in theirs and new in ours else (), {}
        family = verdicts({key: difference(theirs[old], ours[new], *GATE[key][1:3]) for key in there})
        for key, change in family.items():
            most = GATE[key][3] if theirs is ours else 0
            bad = change.word() == "下がった" and -100 * change.interval().value > most
            found[title][key] = change, bad or ((old, key) == (BASE, "near") and change.word() != "上がった")
    return found


def save_rows(folder: Path, name: str, rows: Rows) -> None:
    """採点の表を CSV（Excel で開ける BOM 付き）と JSON に書く。"""
    write_text(folder / f"{name}.csv", "\ufeff" + pandas.DataFrame(rows).to_csv(index=False, lineterminator="\r\n"))
    write_json(folder / f"{name}.json", list(rows))
