"""実演の予算と、録画への切り替え。学習の設定には触れない（ノートブックにある）。"""

import asyncio
import html
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from IPython.display import HTML
from transformers import TrainerCallback

from lib.data.facts import Example
from lib.errors import WorkshopError
from lib.files import read_json, write_json
from lib.model.load import fastest_threads
from lib.run import Run, versions
from lib.score.answers import is_correct
from lib.show.plots import GREEN, RED
from lib.talk.plan import RECORDING

_STEPS_TO_JUDGE = 3  # 最初の歩は用意が混じって遅い。その後の歩の速さで見込みを立てるので、これだけ待つ


class Demo(TrainerCallback):
    """予算の中で実演し、遅い・失敗した・止めたときは録画に替える。

    時計は最初の `attempt` で動き出す。学習の途中でも、予算に収まらないと分かった時点で止める。

    Attributes:
        seconds: 学習を始めてから答えを見せるまでの予算（秒）。
        answering: 答えるのにかかる見込み（秒）。学習前に答えさせた時間を使う。
        reason: 録画に替えた理由。空なら実演のまま。
    """

    def __init__(self, seconds: float, answering: float = 0.0) -> None:
        self.seconds, self.answering, self.reason = seconds, answering, ""
        self._start: float | None = None
        self._taken = 0.0
        self._first = 0.0  # 最初の歩が終わるまでの秒

    def elapsed(self) -> float:
        """実演を始めてからの秒。"""
        return 0.0 if self._start is None else time.monotonic() - self._start

    def switch(self, reason: str = "発表者が切り替えた") -> None:
        """録画に替える。二度目からは、初めの理由を残す。"""
        self.reason = self.reason or reason

    def attempt(self, work: Callable[[], Any]) -> Any:
        """実演の一部を行い、結果を返す。録画に替わっていれば何もせず None。

        どんな失敗でも発表は続ける。理由は画面に出る。
        """
        if self._start is None:
            self._start = time.monotonic()
        if self.reason:
            return None
        try:
            result = work()
        except KeyboardInterrupt:
            self.switch("発表者が止めた")
        except Exception as error:
            self.switch(f"失敗した（{type(error).__name__}: {str(error)[:120]}）")
        self._taken = self.elapsed()
        if self._taken > self.seconds:
            self.switch(f"予算の {self.seconds:g} 秒を超えた")
        return None if self.reason else result

    async def live(self, work: Callable[[], Any]) -> Any:
        """`attempt` を別のスレッドで行う。その間、セルは待つだけなので、バーのボタンも中断（■）もすぐに効く。

        カーネルは、セルが計算している間はボタンの知らせを読まない（ipykernel 7.4 では、待つだけのセルなら読む）。
        """
        task = asyncio.ensure_future(asyncio.to_thread(self.attempt, work))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=0.2)  # ときどき起きないと、中断に気付かない
        except asyncio.CancelledError:  # 中断。学習は、次の歩の終わりで止まる
            self.switch("発表者が止めた")
        return await task

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """予算に収まりそうにないか、発表者が切り替えたら、学習を止める。"""
        done, elapsed = state.global_step, self.elapsed()
        self._first = self._first or elapsed
        pace = (elapsed - self._first) / (done - 1) if done > 1 else elapsed
        total = elapsed + pace * (state.max_steps - done) + self.answering
        if elapsed > self.seconds or (done >= _STEPS_TO_JUDGE and total > self.seconds):
            self.switch(f"見込み {total:.0f} 秒が、予算の {self.seconds:g} 秒を超えた")
        if self.reason:
            control.should_training_stop = True

    def result(
        self,
        examples: Sequence[Example],
        parts: Sequence[str],
        before: Sequence[str],
        after: Sequence[str] | None,
        history: Sequence[Mapping[str, float]],
        parameters: int,
        recording: Path = RECORDING,
    ) -> dict[str, Any]:
        """見せるもの。`label` に実演か録画かを必ず書く。

        Args:
            examples: 尋ねた質問。
            parts: それぞれの質問が何の試験か（見出し）。
            before: 学習前の答え。
            after: 学習後の答え。録画に替わっていれば None。
            history: 学習の記録。
            parameters: 学習したパラメータの数。
            recording: 録画の場所。

        Raises:
            WorkshopError: 録画に替わったのに、録画が無いとき。
        """
        if after is None or self.reason:
            if not recording.exists():
                raise WorkshopError(
                    f"実演ができず（{self.reason}）、録画もまだありません",
                    "make rehearse MACHINE=… で録画を作ってください",
                    recording,
                )
            found = read_json(recording)
            label = f"録画（{found['date']}、{found['machine']}、{found['seconds']:.0f} 秒）"
            return {**found, "live": False, "label": label, "reason": self.reason}
        rows = [
            {"part": part, "question": e.question, "reference": e.answer, "before": old, "after": new,
             "before_ok": is_correct(e, old), "after_ok": is_correct(e, new)}
            for e, part, old, new in zip(examples, parts, before, after, strict=True)
        ]  # fmt: skip
        taken = {"seconds": round(self._taken, 1), "parameters": parameters, "rows": rows, "history": list(history)}
        # 通し稽古の結果は、スライドのファイルに残って別の日に開かれる。「いま」とは書かない。
        when = f"通し稽古、{time.strftime('%Y-%m-%d')}" if os.environ.get("WORKSHOP_HEADLESS") else "この機械でいま"
        return {**taken, "live": True, "label": f"実演（{when}、{self._taken:.0f} 秒）", "reason": ""}


def banner(result: Mapping[str, Any]) -> HTML:
    """実演か録画かを、遠くからでも分かる色で示す。"""
    colour = GREEN if result["live"] else RED
    text = html.escape(f"{result['label']}　{result['reason']}")
    return HTML(f'<p style="background:{colour};color:#fff;padding:4px 12px;font-weight:bold">{text}</p>')


def keep(run: Run, result: Mapping[str, Any]) -> None:
    """実演の結果を、実行のフォルダに残す（`make rehearse` が読む）。"""
    write_json(run.stage("00_talk") / "demo.json", dict(result))


def record(run: Run, machine: str, target: Path = RECORDING) -> Path:
    """その場で計算した実演を、録画として残す。機械の速さも添える（`make check` が見込みに使う）。

    Raises:
        WorkshopError: その実行が録画を見せただけのとき。
    """
    found = read_json(run.folder / "00_talk" / "demo.json")
    if not found["live"]:
        raise WorkshopError(
            f"実演ではなく録画が出た実行（{found['reason']}）なので、録画にできません",
            "ほかの重い処理を止めて、もう一度実行してください",
            run.folder,
        )
    threads, rate = fastest_threads()
    kept = {key: found[key] for key in ("seconds", "parameters", "rows", "history")}
    head = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "threads": threads, "gflops": round(rate)}
    return write_json(target, {**head, "profile": run.profile.name, "seed": run.seed, "versions": versions(), **kept})
