"""日本語の BLEU。"""

from lib.score import evaluating, surface


class BleuJa(evaluating.TextMetric):
    """正解の文と、どれだけ語の並びが重なるか。"""

    SUMMARY = "全体での BLEU（0–100）。語の分け方は二通り: bleu_fugashi（UniDic）と bleu_ja_mecab（IPADIC）。"
    BLIND_SPOT = surface.BLIND_SPOTS["bleu"]
    CITATION = "Papineni et al. (2002); Post (2018), sacrebleu"

    def _compute(self, predictions, references):
        return {
            "bleu_fugashi": surface.bleu(predictions, references),
            "bleu_ja_mecab": surface.bleu(predictions, references, "ja-mecab"),
        }
