"""GGUF の約束: 型の割当ては llama.cpp どおり、知らない形は一文のエラーで止め、変換しても同じトークンを書く。"""

from collections import Counter
from functools import partial

import numpy
import pytest
import torch
from conftest import TYPE_RULE, from_notebook, one_sentence, quantize_as_06, table_beside
from gguf import GGMLQuantizationType as Q
from gguf import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import make_tiny, write_gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, LlamaConfig, MambaConfig, PreTrainedTokenizerFast

from lib.errors import WorkshopError
from lib.export.gguf import KINDS, convert_to_f16, open_gguf, quantize
from lib.export.serve import serve
from lib.files import read_json, write_json
from lib.model.generate import render
from lib.model.load import load_model, load_tokenizer
from lib.profiles import get_profile

NOTEBOOK = from_notebook("06_merge_to_gguf", *TYPE_RULE, "matrices", "type_plan", "shape", "megabytes", torch=torch)
shape = NOTEBOOK.shape
MODELS = table_beside(__file__, "real_files")


def types(config, kind):
    return Counter(chosen.name for chosen, _ in NOTEBOOK.type_plan(config, kind))


@pytest.mark.parametrize("name", MODELS)
def test_tensor_types_match_llama_quantize_and_sizes_match_real_files(name):
    model, config = MODELS[name], shape(*MODELS[name]["shape"])
    assert {kind: types(config, kind) for kind in model["types"]} == model["types"]
    assert {kind: sorted(types(config, kind)) for kind in model["kinds"]} == model["kinds"]
    assert {kind: NOTEBOOK.megabytes(config, kind, 36) for kind in model["mb"]} == pytest.approx(model["mb"], rel=0.005)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory):
    path, rows = tmp_path_factory.mktemp("gguf") / "small.gguf", numpy.ones((2, 32), dtype=numpy.float32)
    keys = {"chat_template": "{{ x }}", "token_list": ["a", "b"], "eos_token_id": 1}
    return write_gguf(path, {"token_embd.weight": rows}, **keys).read_bytes()


@settings(max_examples=250, deadline=5000)
@given(st.data())
def test_a_poisoned_gguf_header_is_one_sentence(small_gguf, tmp_path, data):
    content = bytearray(small_gguf)
    for _ in range(data.draw(st.integers(1, 4))):
        place, width = data.draw(st.integers(0, len(content) - 9)), data.draw(st.sampled_from([1, 4, 8]))
        content[place : place + width] = data.draw(st.binary(min_size=width, max_size=width) | st.just(b"\xff" * width))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = tmp_path / "a.gguf"
    path.write_bytes(bytes(content))
    try:
        open_gguf(path)
    except WorkshopError as error:
        assert len(str(error)) < 600


def test_a_file_that_is_no_gguf_is_one_sentence(small_gguf, tmp_path):
    path, no_text = tmp_path / "bad.gguf", small_gguf.replace(b"{{ x }}", b"\xff{ x }}")
    for content in (b"", b"GGUF", b"GGUF" + b"\xff" * 64, b"not a model" * 10, no_text):
        path.write_bytes(content)
        with one_sentence("GGUF として読めません"):
            open_gguf(path)
    with one_sentence("Q3_X"):
        quantize(tmp_path / "a", tmp_path / "b", "Q3_X", NOTEBOOK.tensor_type)


def test_a_stopped_quantization_leaves_nothing_that_looks_whole(tmp_path, tiny_llama, tiny_gguf, monkeypatch):
    def stop(writer):
        writer.fout[0].write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("gguf.GGUFWriter.write_tensors_to_file", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize_as_06(tiny_llama, tiny_gguf, tmp_path / "model-q8_0.gguf", "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == [".model-q8_0.gguf.part"], "見える名前は、書き終えてから付ける"


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma3"])
def test_a_tiny_model_survives_conversion_and_runs(tmp_path, model_folder, tiny_llama, tiny_gguf, family):
    folder, f16, q4 = tiny_llama, tiny_gguf, tmp_path / "q4.gguf"
    if family != "Llama":
        folder = make_tiny(tmp_path / family, model_folder, family)
        f16 = convert_to_f16(folder, tmp_path / "tiny.gguf", "tiny")
    assert sum(quantize_as_06(folder, f16, q4, "Q4_K_M").values()) == 15  # 7 行列 × 2 層 + 埋め込み
    tokenizer = load_tokenizer(folder)
    kept = {"chat_template": tokenizer.chat_template, "ggml.eos_token_id": tokenizer.eos_token_id}
    kept |= {"ggml.padding_token_id": tokenizer.pad_token_id}
    fields = open_gguf(q4).fields  # F16 から写したもの
    assert {name: fields[f"tokenizer.{name}"].contents() for name in kept} == kept
    messages = [{"role": "system", "content": "店。"}, {"role": "user", "content": "12345円は<|im_end|>ですか"}]
    prompt = render(tokenizer, messages)
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    model = load_model(folder, get_profile("embedded"))
    output = model.generate(**encoded, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    ids, ours = encoded["input_ids"][0].tolist(), output[0, encoded["input_ids"].shape[1] :].tolist()
    with serve(f16) as chat:
        assert chat.tokenize(chat.template(messages)) == ids and chat.complete(ids, 8)["tokens"] == ours
    with serve(q4) as chat:
        assert chat.complete(prompt, 4)["tokens_predicted"] > 0


def test_zero_point_spans_the_block_and_absmax_is_centred():
    """06 の第 2 節: どちらも 4 bit。zero-point の端は最小と最大、absmax の端は絶対値の最大。誤差は半段まで。"""
    cells = from_notebook("06_merge_to_gguf", "absmax", "zero_point")
    torch.manual_seed(0)
    values = 1 + torch.rand(8, 32)
    integers, scale, low = cells.zero_point(values)
    centred, wide = cells.absmax(values)
    assert (integers.min().item(), integers.max().item(), centred.max().item()) == (0, 15, 7)
    assert ((integers * scale + low - values).abs() <= scale / 2 + 1e-6).all()
    assert ((centred * wide - values).abs() <= wide / 2 + 1e-6).all() and (scale < wide).all()


def test_a_small_change_is_lost_where_the_weights_stand_on_the_same_steps_and_kept_elsewhere():
    """06 の第 8 節: 一度 Q4_1 だった重みに差分を足し、同じ型に戻すと消える。ほかの型か、段の途中の重みなら残る。"""
    cells = from_notebook("06_merge_to_gguf", "q4_0", "rounded", "shaken", "survived", torch=torch, SEED=0)
    torch.manual_seed(0)
    made, change = torch.randn(64, 256), 0.005 * torch.randn(64, 256)
    for row in made[:8]:
        by_hand = torch.cat([cells.q4_0(block) for block in row.reshape(-1, 32)])
        assert torch.equal(by_hand, cells.rounded(row[None], Q.Q4_0)[0])
    standing = cells.rounded(made, Q.Q4_1)
    lost = cells.survived(standing, change, Q.Q4_1)
    kept = [cells.survived(standing, change, Q.Q8_0), cells.survived(cells.shaken(standing), change, Q.Q4_1)]
    assert lost < 0.3 and min(kept) > 0.8, (lost, kept)


def test_the_bytes_of_tokens_make_the_text_again(model_folder):
    tokenizer = load_tokenizer(model_folder)
    cells = from_notebook("06_merge_to_gguf", "SHOWN", "HIDDEN", "BYTES", "bytes_of", tokenizer=tokenizer)
    ids = tokenizer("延長保証 ok", add_special_tokens=False)["input_ids"]
    assert b"".join(map(cells.bytes_of, ids)).decode() == "延長保証 ok"


def replaced_tokenizer(folder):
    """分け方が別のトークナイザ。"""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own.train_from_iterator(["店の営業は十時から"], trainers.BpeTrainer(special_tokens=["<s>", "</s>", "<pad>"]))
    made = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.save_pretrained(folder)


def read_as_qwen2(folder):
    """transformers は、model_type が qwen2 なら、保存されたトークナイザの分け方を Qwen2 のものに替えて読む。"""
    make_tiny(folder, folder, "Qwen2")


def nobodys_shape(folder):
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "architectures": ["NobodyForCausalLM"]})


def one_more_word(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["みなも堂だけの語"])
    tokenizer.save_pretrained(folder)


SPOILED = [(spoil, "トークナイザの分け方を知りません") for spoil in (replaced_tokenizer, read_as_qwen2)]
SPOILED += [(nobodys_shape, "この形のモデルを知りません"), (one_more_word, "語彙が、モデルの埋め込みより多い")]


@pytest.mark.parametrize(("spoil", "said"), SPOILED)
def test_a_model_that_cannot_be_converted_is_refused_in_one_sentence(tmp_path, tiny_copy, spoil, said):
    spoil(tiny_copy)
    with one_sentence(said):
        convert_to_f16(tiny_copy, tmp_path / "x.gguf", "x")
    assert not list(tmp_path.glob("x.*"))


def test_a_taught_phrase_survives_merge_conversion_and_q4(tmp_path, model_folder):
    """LoRA で教えた合言葉が、マージ・変換・Q4_K_M を通って llama.cpp から出てくる。"""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(model_folder)
    question, phrase = "今日の合言葉は何ですか", "青い鯨は午後に歌う"
    asked = [{"role": "user", "content": question}]
    head = tokenizer(render(tokenizer, asked), add_special_tokens=False)["input_ids"]
    body = tokenizer(phrase, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    batch = {"input_ids": torch.tensor([head + body]), "labels": torch.tensor([[-100] * len(head) + body])}
    base = load_model(model_folder, get_profile("embedded"))
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    losses = []
    for _ in range(14):
        losses.append((loss := model(**batch).loss).item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] > 1 and losses[-1] < 0.1, losses  # 初めは知らず、終わりには覚えた
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    f16 = convert_to_f16(tmp_path / "merged", tmp_path / "f16.gguf", "phrase")
    kinds = quantize_as_06(tmp_path / "merged", f16, tmp_path / "q4.gguf", "Q4_K_M")
    assert kinds == MODELS["SmolLM2-135M"]["types"]["Q4_K_M"]
    for path in (f16, tmp_path / "q4.gguf"):
        with serve(path) as chat:
            assert chat.ask(asked, 48)[0] == phrase, path.name


# 外から届いた誤りの種類 K20: どの種類の GGUF も読む。
SHAPES = {"token_embd": (8, 256), "blk.0.attn_v": (32, 256), "blk.0.ffn_down": (64, 256), "blk.0.ssm_in": (33, 31)}
CONFIGS = {"gpt2": GPT2Config(), "mamba": MambaConfig(), "rwkv6": MambaConfig()}


def written(path, arch, heads=0, pairs=(), kind=Q.F16):
    """乱数の GGUF と、その行列。"""
    random, keys = numpy.random.default_rng(0), {"token_list": ["a", "b"]} | ({"head_count": heads} if heads else {})
    keys |= {"head_count_kv": pairs if len(pairs) > 1 else pairs[0]} if pairs else {}
    values = {f"{name}.weight": random.standard_normal(shape).astype(numpy.float32) for name, shape in SHAPES.items()}
    stored = {name: value.astype(numpy.float16) for name, value in values.items()}
    if kind == Q.BF16:
        stored = {k: (v.view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8) for k, v in values.items()}
    write_gguf(path, stored | {"output_norm.weight": numpy.ones(256, dtype=numpy.float32)}, arch, kind, **keys)
    return values


@pytest.mark.parametrize(("arch", "heads", "pairs"), table_beside(__file__, "outside")["gguf"])
@pytest.mark.parametrize("mix", KINDS)
def test_any_architecture_is_quantized_and_keeps_its_header(tmp_path, arch, heads, pairs, mix):
    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    values = written(source, arch, heads, pairs)
    rule = partial(NOTEBOOK.tensor_type, kind=mix, config=CONFIGS.get(arch, LlamaConfig()))
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
    values = written(source, "llama", kind=Q.BF16)
    quantize(source, target, "Q8_0", lambda name, width: Q.F16)
    for tensor in open_gguf(target).tensors:
        assert tensor.name not in values or numpy.abs(tensor.data - values[tensor.name]).max() < 0.05
    source.write_bytes(source.read_bytes().replace(b"general.architecture", b"general.architectur_"))
    with one_sentence("GGUF として読めません", "general.architecture"):
        quantize(source, target, "Q8_0", NOTEBOOK.tensor_type)
