"""採点器を `evaluate` の形で、このリポジトリの中から読む。ハブは要らない。"""

from pathlib import Path
from typing import Any

import evaluate
from datasets import Features, Value

from lib.errors import WorkshopError

FOLDER = Path(__file__).parent / "metrics"


class TextMetric(evaluate.Metric):
    """答えと正解の文を比べる採点器の土台。`lib/score/metrics/` の一つ一つが、これを継ぐ。

    Attributes:
        SUMMARY: 何を測るか、結果の鍵と単位。
        BLIND_SPOT: 何が見えないか。`description` の最後の文になる。
        CITATION: 出どころ。
        REFERENCE: 正解の型。数値や語の一致では、文ではなく語の列。
    """

    SUMMARY = ""
    BLIND_SPOT = ""
    CITATION = ""
    REFERENCE: Any = Value("string")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{self.SUMMARY}{self.BLIND_SPOT}",
            citation=self.CITATION,
            inputs_description="predictions: 答えの列。references: 正解の列（同じ長さ、同じ順）。",
            features=Features({"predictions": Value("string"), "references": self.REFERENCE}),
        )


def metric_names() -> list[str]:
    """読める採点器の名前。"""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def load_metric(name: str) -> evaluate.Metric:
    """採点器を読む。`load_metric("bleu_ja").compute(predictions=…, references=…)` と使う。

    Raises:
        WorkshopError: その名前の採点器が無いとき。
    """
    if name not in metric_names():
        raise WorkshopError(f"採点器 {name} はありません", f"{'・'.join(metric_names())} から選んでください", FOLDER)
    return evaluate.load(str(FOLDER / f"{name}.py"))
