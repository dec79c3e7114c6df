"""テストの共通の準備。"""

import pytest

from lib.profiles import get_profile


@pytest.fixture(scope="session")
def model_folder():
    """埋め込みモデルの重み（実物）。無ければ取得する。"""
    from lib.models import resolve

    return resolve(get_profile("embedded"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, model_folder):
    """本物のトークナイザを持つ、幅 64・2 層の乱数の Llama。配管の検査にだけ使う。"""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lib.models import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(model_folder)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
