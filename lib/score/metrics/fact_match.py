"""事実の一致。この教材の主役。"""

from datasets import List, Value

from lib.score import evaluating
from lib.text import quantities as matching


class FactMatch(evaluating.TextMetric):
    """正解の数値と語を言ったか。"""

    SUMMARY = "正解の数値と語だけを言った答えの割合 fact_match と、正解に無い数値を言った割合 made_up（0–1）。"
    BLIND_SPOT = matching.BLIND_SPOT
    REFERENCE = List(Value("string"))

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references, strict=True))
        return {
            "fact_match": sum(matching.matches(said, gold) for said, gold in pairs) / len(pairs),
            "made_up": sum(bool(matching.unexpected(said, gold)) for said, gold in pairs) / len(pairs),
        }
