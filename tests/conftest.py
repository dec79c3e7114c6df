"""テストの共通の準備。"""

import pytest

from lib.profiles import get_profile


@pytest.fixture(scope="session")
def model_folder():
    """埋め込みモデルの重み（実物）。無ければ取得する。"""
    from lib.models import resolve

    return resolve(get_profile("embedded"))


@pytest.fixture
def tiny_model(tmp_path, model_folder):
    """本物のトークナイザを持つ、幅 64・2 層の乱数のモデルを作る関数。配管の検査にだけ使う。"""
    import torch
    import transformers

    from lib.models import load_tokenizer

    def make(family: str = "Llama", width: int = 64):
        torch.manual_seed(0)
        tokenizer = load_tokenizer(model_folder)
        kind = f"{family}Text" if family == "Gemma3" else family
        config = getattr(transformers, f"{kind}Config")(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=width // 4,
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        folder = tmp_path / f"tiny-{family}"
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def tiny_llama(tiny_model):
    """乱数の Llama のフォルダ。"""
    return tiny_model("Llama")
