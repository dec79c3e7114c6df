"""学習の見張り: 損失の記録、残り時間、NaN で止める。続きから始めるための印を探す。"""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from IPython.display import DisplayHandle
from transformers import TrainerCallback

from lib.errors import WorkshopError
from lib.files import write_text
from lib.run import Run


def last_checkpoint(folder: Path) -> str | None:
    """最後まで書かれ、学習の終わりではない、いちばん新しいチェックポイント。無ければ None（最初から学習する）。

    Trainer はチェックポイントを直接その場所に書き、`trainer_state.json` を最後に書く。途中で kill -9 されると
    重みだけの半端なフォルダが残るので、番号ではなく、この最後のファイルが読めるかで選ぶ。
    終わり（最後のステップか、早期終了）から続けると、Trainer はもう 1 ステップ学習してしまう。
    """

    def step(path: Path) -> int:
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
            over = control.get("should_training_stop") or state["global_step"] >= state.get("max_steps", math.inf)
            return -2 if over else int(state["global_step"])
        except (OSError, ValueError, KeyError):
            return -1

    found = max(folder.glob("checkpoint-*"), key=step, default=None)
    return str(found) if found and step(found) >= 0 else None


def resume_point(folder: Path, *inputs: Any) -> str | None:
    """同じ設定とデータで途中まで進んだ学習があれば、その続きの場所。無ければ None（最初から学習する）。

    設定を変えたのに前の続きから始めると、どちらの設定の結果でもないものができる。
    そこで inputs を `folder/inputs.json` に控え、違っていたら途中の状態を消す。

    Args:
        folder: Trainer の `output_dir`。
        inputs: 結果を左右するもの（設定の辞書、例の列など）。順序も比べる。
    """
    record = folder / "inputs.json"
    text = json.dumps(inputs, ensure_ascii=False, sort_keys=True, default=_plain)
    found = last_checkpoint(folder)
    if found and record.exists() and record.read_text(encoding="utf-8") == text:
        print(f"途中で止まっていた学習を、{Path(found).name} から続けます。")
        return found
    if found:
        print("設定かデータが変わったので、途中まで進んでいた学習は使わず、最初から始めます。")
    shutil.rmtree(folder, ignore_errors=True)
    write_text(record, text)
    return None


def _plain(value: Any) -> Any:
    """JSON にならない値を、実行のたびに変わらない形にする（集合の並びは毎回違う）。"""
    return sorted(value) if isinstance(value, set) else asdict(value) if is_dataclass(value) else str(value)  # type: ignore[arg-type]


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
        self._start, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """時計を始める。途中から続けるときは、それまでの記録を引き継ぐ。"""
        self._start, self._first = time.monotonic(), state.global_step
        self.history = [row for row in state.log_history if "loss" in row or "eval_loss" in row]
        if self.draw:
            self._display.display("（記録を待っています）")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """残り時間を見積もって知らせる。"""
        elapsed = time.monotonic() - self._start
        left = elapsed / (state.global_step - self._first) * (state.max_steps - state.global_step)
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
        if self.draw and (len(self.history) % 8 == 2 or state.global_step == state.max_steps):
            self._display.update(self.draw(self.history))
        if not math.isfinite(float(logs.get("loss", 0.0))):
            kept = last_checkpoint(Path(args.output_dir))
            raise WorkshopError(
                f"損失が {logs['loss']} になったので止めました（壊れる前の状態は {kept or '残っていません'}）",
                "学習率が高すぎることがほとんどなので、10 分の 1 にして試してください",
                f"{self.label} {state.global_step} ステップ目",
            )
