"""字の並びの chrF。"""

from lib.score import evaluating, surface


class ChrfJa(evaluating.TextMetric):
    """正解の文と、どれだけ字の並びが重なるか。"""

    SUMMARY = "全体での chrF（0–100、字の 1〜6 連）。語に分けない。"
    BLIND_SPOT = surface.BLIND_SPOTS["chrf"]
    CITATION = "Popović (2015), chrF"

    def _compute(self, predictions, references):
        return {"chrf": surface.chrf(predictions, references)}
