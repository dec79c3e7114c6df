"""配備の門番: 学習したモデルが学習前を上回ると示せなければ、終了コード 1 で終わる。

使い方: `python -m lib.show.gate --run embedded --model SFT --better near --not-worse general`
"""

import argparse
from collections.abc import Sequence

from lib.errors import WorkshopError, command_line
from lib.run import reopen
from lib.score.exam import PARTS, gain
from lib.show.summary import BASE, Rows, load_results


def judge(
    results: dict[str, Rows], model: str, better: Sequence[str], not_worse: Sequence[str]
) -> list[tuple[str, str, bool]]:
    """条件ごとに（部分、判定の言葉、通ったか）を返す。言葉も合否も、平均ではなく 95% 区間から決める。

    Args:
        results: モデル → 採点の行。
        model: 調べるモデル。
        better: 学習前より良いと示せなければならない部分。
        not_worse: 学習前より悪いと示されてはならない部分。

    Raises:
        WorkshopError: モデルか部分の名前が無いとき。
    """
    if model not in results or model == BASE:
        found = "、".join(name for name in results if name != BASE)
        raise WorkshopError(f"モデル「{model}」の採点がありません", f"--model は次から選んでください: {found}")
    verdicts = []
    for part in [*better, *not_worse]:
        if part not in PARTS:
            raise WorkshopError(f"部分「{part}」はありません", f"次から選んでください: {', '.join(PARTS)}")
        gap = gain(results[BASE], results[model], part)
        passed = gap.low > 0 if part in better else gap.high >= 0
        verdicts.append((part, f"{gap.verdict()} {gap.as_percent()}", passed))
    return verdicts


def main() -> None:
    """コマンドの入口。通れば 0、通らなければ 1。"""
    parser = argparse.ArgumentParser(description="学習したモデルが学習前を上回ったかで、終了コードを決める")
    parser.add_argument("--run", default="embedded")
    parser.add_argument("--model", default="SFT")
    parser.add_argument("--better", nargs="+", default=["near"], help=f"上がったと示せること（{', '.join(PARTS)}）")
    parser.add_argument("--not-worse", nargs="*", default=[], help="下がったと示されないこと")
    options = parser.parse_args()
    with command_line():
        verdicts = judge(load_results(reopen(options.run)), options.model, options.better, options.not_worse)
        for part, said, passed in verdicts:
            print(f"{'○' if passed else '×'} {PARTS[part]}: {said}")
        if not all(passed for *_, passed in verdicts):
            raise WorkshopError(f"{options.model} は、配備の条件を満たしません", "上の × の部分を直してください")
    print(f"{options.model} は、配備の条件をすべて満たしました。")


if __name__ == "__main__":
    main()
