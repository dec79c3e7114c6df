"""学習の見張り: 損失の記録、残り時間、NaN で止める。続きから始めるための印を探す。"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from IPython.display import DisplayHandle
from transformers import TrainerCallback

from lib.errors import WorkshopError
from lib.workspace import Run


def last_checkpoint(folder: Path) -> str | None:
    """最後まで書かれた、いちばん新しいチェックポイント。無ければ None（最初から学習する）。

    Trainer はチェックポイントを直接その場所に書き、`trainer_state.json` を最後に書く。途中で kill -9 されると
    重みだけの半端なフォルダが残るので、番号ではなく、この最後のファイルが読めるかで選ぶ。
    """

    def step(path: Path) -> int:
        try:
            return int(json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
        except (OSError, ValueError, KeyError):
            return -1

    found = max(folder.glob("checkpoint-*"), key=step, default=None)
    return str(found) if found and step(found) >= 0 else None


class LossMonitor(TrainerCallback):
    """損失を記録し、進み具合を外へ知らせ、損失が壊れたら止める。

    学習の設定には一切触れない（設定はノートブックにある）。

    Attributes:
        history: `{"step": 手順, "loss": 損失, ...}` の列。
        draw: 記録から図を作る関数。渡すと、学習中に同じ場所で図を描き替える。
    """

    def __init__(self, run: Run, label: str, draw: Callable[[list[dict[str, float]]], Any] | None = None) -> None:
        self.run, self.label, self.draw = run, label, draw
        self._display = DisplayHandle()
        self.history: list[dict[str, float]] = []
        self._start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """時計を始める。"""
        self._start = time.monotonic()
        if self.draw:
            self._display.display("（記録を待っています）")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """残り時間を見積もって知らせる。"""
        elapsed = time.monotonic() - self._start
        left = elapsed / state.global_step * (state.max_steps - state.global_step)
        self.run.report_progress(state.global_step, state.max_steps, f"{self.label}: 残り約 {left:.0f} 秒")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """記録を写し、損失が NaN・無限大なら止める。

        Raises:
            WorkshopError: 損失が有限でないとき。
        """
        logs = logs or {}
        if "loss" not in logs and "eval_loss" not in logs:
            return
        self.history.append({"step": state.global_step, **{k: float(v) for k, v in logs.items()}})
        if self.draw and (len(self.history) % 4 == 2 or state.global_step == state.max_steps):
            self._display.update(self.draw(self.history))
        if not math.isfinite(float(logs.get("loss", 0.0))):
            kept = last_checkpoint(Path(args.output_dir))
            raise WorkshopError(
                f"損失が {logs['loss']} になったので止めました（壊れる前の状態は {kept or '残っていません'}）",
                "学習率が高すぎることがほとんどなので、10 分の 1 にして試してください",
                f"{self.label} {state.global_step} ステップ目",
            )
