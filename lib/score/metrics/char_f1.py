"""文字の F1。"""

from statistics import fmean

from lib.score import evaluating, surface


class CharF1(evaluating.TextMetric):
    """正解の文と、どれだけ字が重なるか。"""

    SUMMARY = "字の重なり（0–1）。llm-jp-eval の char_f1（順も見る）と、JSQuAD の jsquad_f1（順は見ない）の二通り。"
    BLIND_SPOT = surface.BLIND_SPOTS["char_f1"]
    CITATION = "Han et al. (2024), llm-jp-eval; Kurihara et al. (2022), JGLUE"

    def _compute(self, predictions, references):
        return {
            "char_f1": fmean(map(surface.char_f1, predictions, references)),
            "jsquad_f1": fmean(map(surface.jsquad_f1, predictions, references)),
        }
