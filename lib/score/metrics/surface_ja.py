"""正解の文との、文字と語の一致度。`evaluate.load(このファイルのパス)` で読む。計算はノートブック 07 が見せる。"""

from collections import Counter
from statistics import fmean
from types import SimpleNamespace
from unicodedata import normalize

import evaluate
import sacrebleu
from datasets import Features, Value
from rapidfuzz import fuzz
from rouge_score import rouge_scorer

from lib.text.words import words

WHAT = """BLEU・chrF（全体で 0–100）、ROUGE の F 値・文字の F1・完全一致（平均、0–1）。文字の F1 と完全一致は
llm-jp-eval と JSQuAD の二通り。どれも似かただけを見るので、一字違いの年も、打ち消しも見えない。"""
SOURCE = "Papineni 2002, Lin 2004, Popović 2015, Post 2018, Kurihara 2022 (JGLUE), Han 2024 (llm-jp-eval)"


class SurfaceJa(evaluate.Metric):
    """正解の文と、どれだけ似ているか。"""

    def _info(self):
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description=WHAT, citation=SOURCE, inputs_description="", features=features)

    def _compute(self, predictions, references):
        if not predictions:  # 平均が無い
            return dict.fromkeys(self._compute([""], [""]), float("nan"))
        pairs = list(zip(predictions, references, strict=True))
        said, gold = ([" ".join(words(text)) for text in texts] for texts in (predictions, references))
        scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=SimpleNamespace(tokenize=words))
        rouge = [scorer.score(reference, answer) for answer, reference in pairs]
        plain = [[normalize("NFKC", text.strip().split("\n\n")[0]).strip() for text in pair] for pair in pairs]
        squad = [[" ".join(text.lower().rstrip("。").split()) for text in pair] for pair in pairs]
        return {
            "bleu_fugashi": sacrebleu.corpus_bleu(said, [gold], tokenize="none", force=True).score,
            "bleu_ja_mecab": sacrebleu.corpus_bleu(predictions, [references], tokenize="ja-mecab", force=True).score,
            "chrf": sacrebleu.corpus_chrf(predictions, [references]).score,
            **{kind: fmean(score[kind].fmeasure for score in rouge) for kind in rouge[0]},
            "exact_match": fmean(a == b for a, b in plain),
            "char_f1": fmean(fuzz.token_sort_ratio(a, b) / 100 for a, b in plain),
            "jsquad_exact_match": fmean(a == b for a, b in squad),
            "jsquad_f1": fmean(a == b or 2 * (Counter(a) & Counter(b)).total() / len(a + b) for a, b in squad),
        }
