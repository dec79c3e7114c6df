"""トークナイザ・テンプレート・アダプタ: 使えるものは使い、使えないものは、本当の理由の一文で止める（K17〜K19）。

入力は outside.toml。長い共通の先頭を一度だけ読んでも、答えは変わらない。
"""

from dataclasses import replace
from pathlib import Path

import pytest
import trl
from conftest import one_sentence, table_beside
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from lib.errors import WorkshopError
from lib.files import REPOSITORY
from lib.model import generate as answering
from lib.model.generate import answer_prompts, render
from lib.model.load import _PADS, load_model, load_tokenizer, mismatches
from lib.profiles import get_profile
from lib.train.trainers import encode_pair

KINDS = table_beside(__file__, "outside")
PROMPT = [{"role": "system", "content": "窓口です。"}, {"role": "user", "content": "送料は？"}]
ROW = {"prompt": PROMPT, "chosen": [{"role": "assistant", "content": "690円です。"}]}


def made(special, template="", **roles):
    own = Tokenizer(BPE())
    own.add_special_tokens(list(special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, **{name: mark for name, mark in roles.items() if mark})
    tokenizer.chat_template = template or None
    return tokenizer


def loaded(folder, special, template="", **roles):
    made(special, template, **roles).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize(("special", "eos", "pad", "chosen", "said"), KINDS["pad"])
def test_a_usable_pad_is_found_or_the_true_reason_is_given(tmp_path, special, eos, pad, chosen, said):
    if chosen:
        assert loaded(tmp_path, special, eos_token=eos, pad_token=pad).pad_token == chosen
    else:
        with one_sentence(said):
            loaded(tmp_path, special, eos_token=eos, pad_token=pad)


MARKS = ("<|endoftext|>", "<pad>", "[PAD]", "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|own|>", "<mask>")


@settings(max_examples=120)
@given(st.lists(st.sampled_from(MARKS), min_size=1, unique=True), st.data())
def test_any_vocabulary_gives_a_pad_that_is_not_eos_or_the_true_refusal(tmp_path, special, data):
    eos, pad, bos, used = (data.draw(st.sampled_from(choice)) for choice in (special, ["", *special], special, special))
    free = {mark for mark in special if mark in _PADS or mark != used} - {eos, bos}
    given = {"template": f"{{{{ '{used}' }}}}", "eos_token": eos, "pad_token": pad, "bos_token": bos}
    if pad in ("", eos) and not free:
        with one_sentence("pad と eos が同じ" if pad else "pad が無く"):
            loaded(tmp_path, special, **given)
    else:
        read = loaded(tmp_path, special, **given)
        assert read.pad_token_id != read.eos_token_id and read.pad_token in (free if pad in ("", eos) else {pad})


@pytest.mark.parametrize(("template", "text", "said"), KINDS["render"])
def test_a_template_writes_the_whole_talk_or_says_what_it_refuses(tmp_path, template, text, said):
    tokenizer = loaded(tmp_path, ["<e>", "<pad>"], template, eos_token="<e>")
    if text:
        assert render(tokenizer, PROMPT) == text
    else:
        with one_sentence(said, str(tmp_path), "別のモデル"):
            render(tokenizer, PROMPT)


@pytest.mark.parametrize(("prompt", "answered", "reply"), KINDS["opening"])
def test_what_is_compared_is_exactly_the_answer(monkeypatch, prompt, answered, reply):
    template = "{% for m in messages %}" + f"{{% if m.role == 'assistant' %}}{{{{ {answered!r} }}}}{{% endif %}}"
    template += "{{ m.content }}<E>{% endfor %}{% if add_generation_prompt %}" + f"{{{{ {prompt!r} }}}}{{% endif %}}"
    tokenizer = made(["<E>"], template)
    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", lambda self, texts, **_: {"input_ids": texts})
    if reply:
        assert encode_pair(tokenizer, ROW, "chosen") == [f"窓口です。<E>送料は？<E>{prompt}", reply]
    else:
        with one_sentence("答えが続きません"):
            encode_pair(tokenizer, ROW, "chosen")


REAL = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
"""TRL が持っている、公開されたモデルのテンプレート。"""


def test_every_published_template_gives_the_answer_or_one_sentence(model_folder):
    tokenizer, fits, refused = load_tokenizer(model_folder), [], []
    assert tokenizer.tokenize("12345") == list("12345"), "組み込みのモデルは、数を一桁ずつに分ける"
    for path in REAL:
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        try:
            asked, reply = map(tokenizer.decode, encode_pair(tokenizer, ROW, "chosen"))
        except WorkshopError as error:
            assert "\n" not in str(error)
            refused.append(path.stem)
        else:
            assert "690円です。" in reply and "送料は？" not in reply and "690円" not in asked and "窓口です。" in asked
            fits.append(path.stem)
    assert {"qwen3", "qwen2_5", "llama3", "gemma3", "phi3"} <= set(fits) and len(fits) > len(refused)
    assert {"gemma", "deepseekv3"} <= set(refused)


def base(layers=2, width=64):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads))


def gpt2():
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, **ids))


def tuners():
    """(名前, 設定)。この PEFT が小さなベースに付けられる、すべての種類と、LoRA のいろいろな設定。"""
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        options = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "num_virtual_tokens": 3}
        options = {key: value for key, value in options.items() if key in config.__dataclass_fields__}
        if kind.value not in ("ADAMSS", "XLORA", "FROD"):  # 別の部品か、別のアダプタが必要。FROD は一つに 6 秒
            yield pytest.param(config, options | KINDS["tuners"].get(kind.value, {}), id=kind.value)
    for name, more in KINDS["lora"].items():
        options = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], **more}
        yield pytest.param(LoraConfig, options, id=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("config", "options"), list(tuners()))
def test_every_adapter_that_peft_puts_back_is_accepted_and_refused_on_another_base(tmp_path, config, options):
    get_peft_model(base(), config(**options)).save_pretrained(tmp_path)
    assert mismatches(tmp_path, base()) == []
    put_back = PeftModel.from_pretrained(base(), str(tmp_path))
    assert mismatches(tmp_path, put_back.get_base_model()) == [], "載せた後でも比べられる"
    other = gpt2() if config.__name__ == "UniLoraConfig" else base(layers=3, width=128)  # UniLoRA は、どの幅にも合う
    assert mismatches(tmp_path, other)


@pytest.mark.filterwarnings("ignore")
def test_a_misfit_is_named_with_both_shapes_and_nothing_is_dropped(tmp_path):
    get_peft_model(gpt2(), LoraConfig(task_type="CAUSAL_LM", r=4, fan_in_fan_out=True)).save_pretrained(tmp_path)
    assert mismatches(tmp_path, gpt2()) == [], "Conv1D は、重みが転置されている"
    assert "not found" in mismatches(tmp_path, base())[0]
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name, value = next(iter(tensors.items()))
    for wrong, said in (
        ({**tensors, name.replace("h.0", "h.9"): value.clone()}, "h.9"),
        ({key: tensor for key, tensor in tensors.items() if key != name}, "アダプタでは None"),
        ({**tensors, name: value[:, :-1].clone()}, f"アダプタでは {[4, 31]}、ベースでは {[4, 32]}"),
        ({**tensors, "base_model.model.transformer.wte.weight": value.new_zeros(68, 32)}, "ベースでは [64, 32]"),
    ):
        save_file(wrong, path)
        (found,) = mismatches(tmp_path, gpt2())
        assert said in found
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "NOBODY"}')
    assert mismatches(tmp_path, gpt2())


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
