"""長い共通の先頭を一度だけ読んでも、答えは変わらない。"""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from lib.files import REPOSITORY
from lib.model import generate as answering
from lib.model.generate import answer_prompts, render
from lib.model.load import load_model, load_tokenizer
from lib.profiles import get_profile

RULES = "\n".join(f"規則{number}: 品物{number}の送料は{number * 7 + 100}円です。" for number in range(20))
QUESTIONS = ["品物3の送料は？", "品物 12 を送ってもらうと、いくらですか。", "送料", "もし品物7を選んだら何円ですか？"]


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    profile = replace(get_profile("smoke"), answer_batch=3, answer_tokens=12)
    model = load_model(tiny_llama, profile)
    for weight in model.model.layers.parameters():  # 乱数のままでは、最後の字を繰り返すだけになる
        weight.data *= 10 if weight.dim() == 2 else 1
    return model, load_tokenizer(tiny_llama), profile


def test_a_prefix_read_once_gives_the_same_answers(tiny, monkeypatch):
    model, tokenizer, profile = tiny
    system = {"role": "system", "content": RULES}
    prompts = [render(tokenizer, [system, {"role": "user", "content": question}]) for question in QUESTIONS]
    reads, original = [], answering._read
    monkeypatch.setattr(answering, "_read", lambda *given: reads.append(len(given[1])) or original(*given))
    fast = answer_prompts(model, tokenizer, prompts, profile)
    assert len(reads) == 1 and reads[0] > 200  # 一度だけ読んだ
    monkeypatch.setattr(answering, "_WORTH_KEEPING", 10**9)
    slow = answer_prompts(model, tokenizer, prompts, profile)
    assert len(reads) == 1 and fast == slow and len(set(slow)) > 1
    monkeypatch.setattr(answering, "_WORTH_KEEPING", 16)
    answer_prompts(model, tokenizer, QUESTIONS, profile)
    assert len(reads) == 1, "短い先頭は、覚えない"
    # 一つだけでも、同じ問いだけでも、読む語が 1 つは残る
    alone = answer_prompts(model, tokenizer, prompts[:1], profile)
    assert answer_prompts(model, tokenizer, [prompts[0]] * 3, profile) == alone * 3
    assert answer_prompts(model, tokenizer, [], profile) == []


def test_the_gemma_template_gives_the_system_text_to_the_first_question():
    """Gemma の型に system の役は無いので、最初の質問の前に書く。字下げや改行は、テンプレートの外へ出ない。"""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), bos_token="<bos>")
    tokenizer.chat_template = (REPOSITORY / "data" / "templates" / "gemma_chat.jinja").read_text(encoding="utf-8")
    turns = (("system", "窓口です。"), ("user", "送料は？"), ("assistant", "690円。"), ("user", "返品は？\n"))
    assert render(tokenizer, [{"role": role, "content": text} for role, text in turns]) == (
        "<bos><start_of_turn>user\n窓口です。\n\n送料は？<end_of_turn>\n<start_of_turn>model\n690円。<end_of_turn>\n"
        "<start_of_turn>user\n返品は？\n<end_of_turn>\n<start_of_turn>model\n"
    )
