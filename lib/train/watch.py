"""学習の見張り: 損失を記録し、NaN で止める。続きから始めるための印を探す。"""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pprint import pformat
from typing import Any

from IPython.display import DisplayHandle
from transformers import TrainerCallback

from lib.errors import WorkshopError
from lib.files import write_text


def last_checkpoint(folder: Path) -> str | None:
    """いちばん新しい、続きを学習できるチェックポイント。無ければ None（最初から学習する）。

    途中で殺されて、最後に書く `trainer_state.json` が読めないものと、学習の終わり（続けると余分に学習する）は除く。
    """
    found = {}
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        with suppress(ValueError, KeyError, TypeError):
            state = json.loads(path.read_text(encoding="utf-8"))
            control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
            if not control.get("should_training_stop") and state["global_step"] < state.get("max_steps", math.inf):
                found[int(state["global_step"])] = str(path.parent)
    return found[max(found)] if found else None


def resume_point(folder: Path, *inputs: Any) -> str | None:
    """同じ設定とデータで途中まで進んだ学習（`folder` は output_dir）の、続きの場所。無ければ None（最初から学習する）。

    設定の辞書や例の列など、結果を左右するもの（`inputs`）を `folder/inputs.txt` に書き、違えば途中の状態を消す。
    """
    record, found = folder / "inputs.txt", last_checkpoint(folder)
    text = pformat(inputs, width=1)  # 一行に一つずつ書くと、辞書も集合も、いつも同じ順になる
    if found and record.exists() and record.read_text(encoding="utf-8") == text:
        print(f"途中で止まっていた学習を、{Path(found).name} から続けます。")
        return found
    if found:
        print("設定かデータが変わったので、途中まで進んでいた学習は使わず、最初から始めます。")
    shutil.rmtree(folder, ignore_errors=True)
    write_text(record, text)
    return None


class LossMonitor(TrainerCallback):
    """損失の記録を `history`（`{"step": …, "loss": …}` の列）に写し、壊れた損失（NaN・無限大）で止める。

    `draw` に記録から図を作る関数を渡すと、学習中に同じ場所で描き替える。学習の設定には触れない。
    """

    def __init__(self, label: str, draw: Callable[[list[dict[str, float]]], Any] | None = None) -> None:
        self.label, self.draw = label, draw
        self.history: list[dict[str, float]] = []
        self._display = DisplayHandle()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """図を描く場所を作る。"""
        if self.draw:
            self._display.display("（記録を待っています）")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """記録（途中から続けたときは、それまでの分も）を写し、損失が有限でなければ `WorkshopError` で止める。"""
        self.history = [row for row in state.log_history if "loss" in row or "eval_loss" in row]
        if self.draw and (len(self.history) % 8 == 2 or state.global_step == state.max_steps):
            self._display.update(self.draw(self.history))
        if not math.isfinite(logs.get("loss", 0.0)):
            kept = last_checkpoint(Path(args.output_dir)) or "残っていません"
            what = f"損失が {logs['loss']} になったので止めました（壊れる前の状態は {kept}）"
            remedy = "学習率が高すぎることがほとんどなので、10 分の 1 にして試してください"
            raise WorkshopError(what, remedy, f"{self.label} {state.global_step} ステップ目")
