"""完全一致。"""

from statistics import fmean

from lib.score import evaluating, surface


class ExactMatchJa(evaluating.TextMetric):
    """正解の文と同じか。"""

    SUMMARY = "正解と同じ文の割合（0–1）。前処理は二通り: llm-jp-eval の exact_match と、JSQuAD の jsquad_exact_match。"
    BLIND_SPOT = surface.BLIND_SPOTS["exact_match"]
    CITATION = "Han et al. (2024), llm-jp-eval; Kurihara et al. (2022), JGLUE"

    def _compute(self, predictions, references):
        return {
            "exact_match": fmean(map(surface.exact_match, predictions, references)),
            "jsquad_exact_match": fmean(map(surface.jsquad_exact_match, predictions, references)),
        }
