"""日本語の ROUGE。"""

from lib.score import evaluating, surface


class RougeJa(evaluating.TextMetric):
    """正解の文の語を、どれだけ言ったか。"""

    SUMMARY = "ROUGE-1・2・L の F 値の平均（0–1）。語は fugashi（UniDic）で分け、記号は除く。"
    BLIND_SPOT = surface.BLIND_SPOTS["rouge"]
    CITATION = "Lin (2004), ROUGE"

    def _compute(self, predictions, references):
        return surface.rouge(predictions, references)
