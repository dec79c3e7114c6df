"""壊しても気づきにくい所: いつも同じ並び、学習と生成は同じトークン。`make mutate` の表も。"""

import pytest
from conftest import python
from maintain.mutations import MUTATIONS

from lib.data.facts import make_split
from lib.files import REPOSITORY
from lib.model import generate as answering
from lib.model.load import load_model, load_tokenizer
from lib.profiles import get_profile
from lib.train.trainers import encode_pair

PAIRS = [
    {"prompt": [{"role": "user", "content": question}], "chosen": [{"role": "assistant", "content": good}],
     "rejected": [{"role": "assistant", "content": "知らない。"}]}
    for question, good in (("送料は？", "690円です。"), ("返品はいつまでできますか？", "届いてから17日です。"))
]  # fmt: skip


def test_the_order_is_the_same_in_every_process():
    code = "from lib.data.facts import *; from lib.profiles import *; s = make_split(get_profile('embedded'));"
    code += "print([e.question for e in s.train + s.unseen])"
    there = python("-c", code, PYTHONHASHSEED="7")
    split = make_split(get_profile("embedded"))
    assert there.stdout.strip() == str([e.question for e in split.train + split.unseen])


def test_generation_reads_the_tokens_training_wrote(tiny_llama, monkeypatch):
    """生成に渡すトークンが、学習の例の、答えの手前までと同じ。"""
    tokenizer, seen = load_tokenizer(tiny_llama), []
    original = answering._pad_after
    monkeypatch.setattr(answering, "_pad_after", lambda *given: seen.extend(given[1]) or original(*given))
    prompts = [answering.render(tokenizer, pair["prompt"]) for pair in PAIRS]
    answering.answer_prompts(load_model(tiny_llama, get_profile("smoke")), tokenizer, prompts, get_profile("smoke"))
    assert sorted(seen) == sorted(encode_pair(tokenizer, pair, "chosen")[0] for pair in PAIRS)


@pytest.mark.parametrize("one", MUTATIONS, ids=[one["what"] for one in MUTATIONS])
def test_every_mutation_has_its_one_place_and_its_test(one):
    """コードかテストを直したとき、`make mutate` が止まるのを待たずに気づく。"""
    text = (REPOSITORY / one["file"]).read_text(encoding="utf-8")
    assert text.count(one["old"]) == 1 and one["old"] != one["new"]
    module, name = one["test"].split(" -k ")
    source = next((REPOSITORY / "tests").rglob(module)).read_text(encoding="utf-8")
    assert name in source, one["test"]  # -k は、引数の名前（tied など）にも当たる
