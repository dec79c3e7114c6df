"""事実の一致（規則は `lib.text.quantities`）を `evaluate` の形に包む。`evaluate.load(このファイルのパス)` で読む。"""

import evaluate
from datasets import Features, List, Value

from lib.text import quantities

WHAT = """正解の数値と語だけを言った回答の割合 fact_match と、正解に無い数値を言った割合 made_up（0–1）。
「690円ではない」の打ち消し、何の数か、以上か未満か、文の良し悪しは見えない。"""


class FactMatch(evaluate.Metric):
    """正解の数値と語を言ったか。references は、問いごとの、必ず言うべき数値や語の列。"""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": List(Value("string"))})
        return evaluate.MetricInfo(description=WHAT, citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        right = list(map(quantities.matches, predictions, references))
        made_up = [bool(quantities.unexpected(said, gold)) for said, gold in zip(predictions, references, strict=True)]
        total = len(right) or float("nan")  # 答えが一つも無ければ nan
        return {"fact_match": sum(right) / total, "made_up": sum(made_up) / total}
