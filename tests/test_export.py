"""GGUF の約束: 型の割当ては llama.cpp どおり、Modelfile の引用符は壊れない、変換しても同じトークンを書く。"""

from collections import Counter

import pytest

from lib.errors import WorkshopError
from lib.export import convert_to_f16, gguf_facts, modelfile, open_gguf, quantize, tensor_type
from lib.profiles import get_profile


def llama_shapes(width, hidden, layers, kv_width, vocabulary):
    yield "token_embd.weight", (width, vocabulary)
    for i in range(layers):
        for name, shape in {
            "attn_q": (width, width),
            "attn_k": (width, kv_width),
            "attn_v": (width, kv_width),
            "attn_output": (width, width),
            "ffn_gate": (width, hidden),
            "ffn_up": (width, hidden),
            "ffn_down": (hidden, width),
        }.items():
            yield f"blk.{i}.{name}.weight", shape


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # 同じ重みを llama-quantize に掛けたときの内訳
        ("Q4_K_M", {"Q5_0": 166, "Q4_K": 16, "Q6_K": 14, "Q8_0": 15}),
        ("Q2_K", {"Q4_0": 180, "Q3_K": 30, "Q8_0": 1}),
        ("Q8_0", {"Q8_0": 211}),
    ],
)
def test_tensor_types_of_smollm2_match_llama_quantize(kind, expected):
    shapes = llama_shapes(576, 1536, 30, 192, 49152)
    assert Counter(tensor_type(n, s, kind, 30, 3, True).name for n, s in shapes) == expected


def test_a_width_of_256_keeps_the_k_types():
    types = Counter(tensor_type(n, s, "Q4_K_M", 12, 1, False).name for n, s in llama_shapes(768, 2048, 12, 768, 32000))
    assert set(types) == {"Q4_K", "Q6_K"}


def test_modelfile_states_everything_and_refuses_what_it_cannot_quote():
    text = modelfile("m.gguf", "{{ .Prompt }}", "窓口です。", ["<|im_end|>"], 2048)
    for line in ("FROM ./m.gguf", 'SYSTEM """窓口です。"""', 'PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 2048"):
        assert line in text.splitlines()
    for bad in ('三連 """ 引用符', '末尾の"'):
        with pytest.raises(WorkshopError, match="SYSTEM"):
            modelfile("m.gguf", "t", bad, [], 2048)


def test_a_poisoned_gguf_is_one_sentence(tmp_path):
    for content in (b"", b"GGUF", b"GGUF" + b"\xff" * 64, b"not a model" * 10):
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        with pytest.raises(WorkshopError, match="GGUF として読めません"):
            open_gguf(path)


def test_an_unknown_quantization_is_one_sentence(tmp_path):
    with pytest.raises(WorkshopError, match="Q3_X"):
        quantize(tmp_path / "a", tmp_path / "b", "Q3_X")


def test_a_tiny_model_survives_conversion_and_runs(tmp_path, tiny_llama):
    from lib.answering import render
    from lib.llamacpp import serve
    from lib.models import load_model, load_tokenizer

    f16 = convert_to_f16(tiny_llama, tmp_path / "tiny.gguf", "tiny")
    counts = quantize(f16, tmp_path / "tiny-q8.gguf", "Q8_0")
    tokenizer = load_tokenizer(tiny_llama)
    for path in (f16, tmp_path / "tiny-q8.gguf"):
        facts = gguf_facts(path)
        assert facts["tokenizer.chat_template"] == tokenizer.chat_template
        assert facts["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
        assert facts["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert set(counts) == {"Q8_0"}
    messages = [{"role": "system", "content": "店。"}, {"role": "user", "content": "12345円は<|im_end|>ですか"}]
    prompt = render(tokenizer, messages)
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    model = load_model(tiny_llama, get_profile("embedded"))
    output = model.generate(**encoded, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    ours = output[0, encoded["input_ids"].shape[1] :].tolist()
    with serve(f16) as chat:
        assert chat.tokenize(chat.template(messages)) == encoded["input_ids"][0].tolist()
        assert chat.complete_ids(encoded["input_ids"][0].tolist(), 8) == ours
