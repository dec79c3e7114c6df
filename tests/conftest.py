"""テストの共通の準備。"""

import pytest

from lib.profiles import get_profile


@pytest.fixture(scope="session")
def model_folder():
    """埋め込みモデルの重み（実物）。無ければ取得する。"""
    from lib.models import resolve

    return resolve(get_profile("embedded"))


def make_tiny(folder, model_folder, family="Llama", width=64):
    """本物のトークナイザを持つ、2 層の乱数のモデルを作る。配管の検査にだけ使う。"""
    import torch
    import transformers

    from lib.models import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(model_folder)
    config = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        query_pre_attn_scalar=width // 4,  # Gemma だけが読む。llama.cpp は、頭の幅で割ると決めている
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, model_folder):
    """乱数の Llama のフォルダ。"""
    return make_tiny(tmp_path_factory.mktemp("tiny"), model_folder)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory, tiny_llama):
    """乱数の Llama の F16 の GGUF。"""
    from lib.export import convert_to_f16

    return convert_to_f16(tiny_llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "tiny")
