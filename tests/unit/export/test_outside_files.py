"""外から届いた誤りの種類 K20・K21: どの種類の GGUF も、Ollama の受け取るどの書き方も読む。入力は outside.toml。"""

from functools import partial

import numpy
import pytest
from conftest import TYPE_RULE, from_notebook, one_sentence, table_beside
from gguf import GGMLQuantizationType, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_gguf
from transformers import GPT2Config, LlamaConfig, MambaConfig

from lib.export.gguf import KINDS as MIXES
from lib.export.gguf import open_gguf, quantize
from lib.export.serve import modelfile, read_modelfile

KINDS = table_beside(__file__, "outside")
CELLS = from_notebook("06_merge_to_gguf", *TYPE_RULE, "run_go", "GO", "render_template")
SHAPES = {"token_embd": (8, 256), "blk.0.attn_v": (32, 256), "blk.0.ffn_down": (64, 256), "blk.0.ssm_in": (33, 31)}
CONFIGS = {"gpt2": GPT2Config(), "mamba": MambaConfig(), "rwkv6": MambaConfig()}


def written(path, arch, heads=0, pairs=(), kind=GGMLQuantizationType.F16):
    """乱数の GGUF と、その行列。"""
    random, keys = numpy.random.default_rng(0), {"token_list": ["a", "b"]} | ({"head_count": heads} if heads else {})
    keys |= {"head_count_kv": pairs if len(pairs) > 1 else pairs[0]} if pairs else {}
    values = {f"{name}.weight": random.standard_normal(shape).astype(numpy.float32) for name, shape in SHAPES.items()}
    stored = {name: value.astype(numpy.float16) for name, value in values.items()}
    if kind == GGMLQuantizationType.BF16:
        stored = {k: (v.view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8) for k, v in values.items()}
    write_gguf(path, stored | {"output_norm.weight": numpy.ones(256, dtype=numpy.float32)}, arch, kind, **keys)
    return values


@pytest.mark.parametrize(("arch", "heads", "pairs"), KINDS["gguf"])
@pytest.mark.parametrize("mix", MIXES)
def test_any_architecture_is_quantized_and_keeps_its_header(tmp_path, arch, heads, pairs, mix):
    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    values = written(source, arch, heads, pairs)
    rule = partial(CELLS.tensor_type, kind=mix, config=CONFIGS.get(arch, LlamaConfig()))
    assert sum(quantize(source, target, mix, rule).values()) == len(SHAPES)
    before, after = (
        {name: field.contents() for name, field in open_gguf(path).fields.items() if not name.startswith("GGUF.")}
        for path in (source, target)
    )
    assert before == {name: after[name] for name in before} and after.keys() - before.keys() == {
        "general.file_type", "general.quantization_version",
    }  # fmt: skip
    for tensor in open_gguf(target).tensors:
        if tensor.name in values and tensor.tensor_type.name not in ("Q2_K", "Q3_K"):
            assert numpy.abs(dequantize(tensor.data, tensor.tensor_type) - values[tensor.name]).mean() < 0.1


def test_a_bf16_file_is_read_as_numbers_and_a_file_without_its_name_is_one_sentence(tmp_path):
    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    values = written(source, "llama", kind=GGMLQuantizationType.BF16)
    quantize(source, target, "Q8_0", lambda name, width: GGMLQuantizationType.F16)
    for tensor in open_gguf(target).tensors:
        assert tensor.name not in values or numpy.abs(tensor.data - values[tensor.name]).max() < 0.05
    source.write_bytes(source.read_bytes().replace(b"general.architecture", b"general.architectur_"))
    with one_sentence("GGUF として読めません", "general.architecture"):
        quantize(source, target, "Q8_0", CELLS.tensor_type)


WRITTEN = modelfile("umbrella.gguf", "{{ range .Messages }}{{ .Content }}{{ end }}", "窓口です。", ["<|im_end|>"], 2048)


@pytest.mark.parametrize(("old", "new", "changed"), KINDS["modelfile"])
def test_any_spelling_that_ollama_takes_is_read_and_nothing_is_lost(old, new, changed):
    assert old in WRITTEN
    changed = {**changed, **({"stops": tuple(changed["stops"])} if "stops" in changed else {})}
    assert read_modelfile(WRITTEN.replace(old, new)) == read_modelfile(WRITTEN)._replace(**changed)


@pytest.mark.parametrize(("old", "new", "said"), KINDS["refused"])
def test_a_line_that_ollama_refuses_is_named(old, new, said):
    assert old in WRITTEN
    with one_sentence("Modelfile", said):
        read_modelfile(WRITTEN.replace(old, new))


def spelled(data, name, key, value):
    """同じ命令の、別の書き方。key は、PARAMETER と MESSAGE の二つめの語。"""
    bare = [""] if value and value == value.strip() and "\n" not in value else []
    quote, blank = data.draw(st.sampled_from(['"""', '"', *bare])), data.draw(st.sampled_from([" ", "  ", "\t"]))
    name = "".join(data.draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in name)
    return f"{blank * data.draw(st.integers(0, 1))}{name}{key}{blank}{quote}{value}{quote}{blank}"


NAMES = ("from", "system", "template", "license", "adapter", "parameter", "message")
plain = st.text(alphabet="店の窓口AB<|>./{} \n#", max_size=12)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(NAMES), plain), max_size=6), st.data())
def test_a_modelfile_in_any_spelling_reads_the_same(more, data):
    needed = [("from", "./m.gguf"), ("template", data.draw(plain)), ("system", data.draw(plain))]
    lines, wanted = [], {}
    for name, value in data.draw(st.permutations(needed + more)):
        key = {"parameter": " top_k", "message": " user"}.get(name, "")
        wanted.setdefault(name.upper() + key, []).append(value)
        lines += data.draw(st.sampled_from([[], [""], ['# 注釈 """']])) + [spelled(data, name, key, value)]
    lines += ["PARAMETER num_ctx 64", "PARAMETER temperature 0.5", "PARAMETER stop <|e|>"]
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    found = read_modelfile(data.draw(st.sampled_from(["", "\ufeff"])) + end.join([*lines, ""]))
    one = {name: wanted[name].pop() for name in ("FROM", "TEMPLATE", "SYSTEM")}
    assert (found.source, found.template, found.system) == tuple(one.values())
    assert (found.stops, found.num_ctx, found.temperature) == (("<|e|>",), 64, 0.5)
    assert found.others == {name: values for name, values in wanted.items() if values}


@pytest.mark.parametrize(("template", "said"), KINDS["templates"])
def test_an_older_template_and_a_typo_are_named(template, said):
    with one_sentence(said):
        if CELLS.render_template(template, [{"role": "user", "content": "何本"}]) is None:
            pytest.skip("この機械には Go の template の wheel が無い")
