"""実演の予算と、記録への切り替え。学習の設定には触れない（ノートブックにある）。"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lib.errors import WorkshopError
from lib.files import read_json
from lib.talk.plan import RECORDING


class Demo(TrainerCallback):
    """予算の中で実演し、遅い・失敗した・止めたときは記録に替える。時計は、最初の `attempt` で動き出す。"""

    def __init__(self, seconds: float, answering: float = 0.0) -> None:
        """`seconds` は学習を始めてから答えを見せるまでの予算、`answering` は答えるのにかかる見込み（どちらも秒）。"""
        self.seconds, self.answering = seconds, answering
        self.reason = ""  # 記録に替えた理由。空なら実演のまま
        self._start: float | None = None
        self._taken = self._first = 0.0  # 終わるまでの秒、最初のステップが終わるまでの秒

    def elapsed(self) -> float:
        """実演を始めてからの秒。"""
        return 0.0 if self._start is None else time.monotonic() - self._start

    def switch(self, reason: str = "発表者が切り替えた") -> None:
        """記録に替える。二度目からは、初めの理由を残す。"""
        self.reason = self.reason or reason

    def attempt(self, work: Callable[[], Any]) -> Any:
        """実演の一部を行い、結果を返す。記録に替わっていれば何もせず None。失敗しても、理由を出して発表は続ける。"""
        self._start = time.monotonic() if self._start is None else self._start
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
        """`attempt` を別のスレッドで行う。カーネルは、待つだけのセルの間なら、バーのボタンも中断（■）もすぐに読む。"""
        task = asyncio.ensure_future(asyncio.to_thread(self.attempt, work))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=0.2)  # ときどき起きないと、中断に気付かない
        except asyncio.CancelledError:  # 中断。学習は、次のステップの終わりで止まる
            self.switch("発表者が止めた")
        return await task

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """予算に収まりそうにないか、発表者が切り替えたら、学習を止める。"""
        done, elapsed = state.global_step, self.elapsed()
        self._first = elapsed if done == 1 else self._first  # 二つの学習を続けるときは、それぞれの
        pace = (elapsed - self._first) / (done - 1) if done > 1 else elapsed
        total = elapsed + pace * (state.max_steps - done) + self.answering
        if elapsed > self.seconds or (done >= 3 and total > self.seconds):  # 初めの見込みは、用意が混じって大きい
            self.switch(f"見込み {total:.0f} 秒が、予算の {self.seconds:g} 秒を超えた")
        control.should_training_stop |= bool(self.reason)

    def result(self, rows: Any, recording: Path = RECORDING, **more: Any) -> dict[str, Any]:
        """見せるもの。実演の行 `rows` と `more`（学習の記録など）か、記録。`label` に、どちらかを必ず書く。"""
        if rows is None or self.reason:
            if not recording.exists():
                what = f"実演ができず（{self.reason}）、記録もまだありません"
                raise WorkshopError(what, "make rehearse MACHINE=… で記録を作ってください", recording)
            found = read_json(recording)
            label = f"記録済み（{found['date']}、{found['machine']}、{found['seconds']:.0f} 秒）"
            return {**found, "live": False, "label": label, "reason": self.reason}
        # 通し稽古の結果は、スライドのファイルに残って別の日に開かれる。「いま」とは書かない。
        when = f"通し稽古、{time.strftime('%Y-%m-%d')}" if os.environ.get("WORKSHOP_HEADLESS") else "この機械でいま"
        label = f"実演（{when}、{self._taken:.0f} 秒）"
        return {"seconds": round(self._taken, 1), "rows": rows, **more, "live": True, "label": label, "reason": ""}
