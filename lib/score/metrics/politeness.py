"""敬語の割合。"""

from lib.score import evaluating
from lib.score import japanese as politeness


class Politeness(evaluating.TextMetric):
    """答えの文は丁寧か。正解は見ない（ほかの採点器と同じ呼び方ができるように、受け取るだけ）。"""

    SUMMARY = "答えの文のうち、丁寧体 polite・尊敬語 respectful・謙譲語 humble の割合（0–1）と、文の数 sentences。"
    BLIND_SPOT = politeness.BLIND_SPOT
    CITATION = "文化審議会答申「敬語の指針」（2007）"

    def _compute(self, predictions, references):
        return politeness.shares(predictions)
