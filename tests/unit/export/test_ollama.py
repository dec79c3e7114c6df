"""Modelfile の約束: 書いたとおりに読み返せ、書けない文字列は断り、TEMPLATE は HF と同じトークンになる。"""

import re

import pytest
from conftest import from_notebook, one_sentence
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.errors import WorkshopError
from lib.export.serve import modelfile, read_modelfile, serve
from lib.model.generate import render
from lib.model.load import load_tokenizer

NOTEBOOK = from_notebook("06_merge_to_gguf", "CHATML", "GO", "run_go", "render_template")
CHATML = NOTEBOOK.CHATML


def render_template(template, messages):
    """Go の template で埋める。wheel の無い機械では飛ばす。"""
    filled = NOTEBOOK.render_template(template, messages)
    return pytest.skip("この機械には Go の template の wheel が無い") if filled is None else filled


def test_modelfile_states_everything_and_refuses_what_it_cannot_quote():
    text = modelfile("m.gguf", "{{ .Prompt }}", "窓口です。", ["<|im_end|>"], 2048)
    for line in ("FROM ./m.gguf", 'SYSTEM """窓口です。"""', 'PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 2048"):
        assert line in text.splitlines()
    bad = [("SYSTEM", '三連 """ 引用符', []), ("SYSTEM", '末尾の"', [])]
    for said, system, stops in bad + [("stop", "s", [stop]) for stop in ('a"b', "a\nb", "")]:
        with one_sentence(said):
            modelfile("m.gguf", "t", system, stops, 2048)
    with one_sentence("そろっていません"):
        read_modelfile("FROM ./m.gguf\n")


awkward = st.text(alphabet="\"'`{}<|>\\\r\n# aあSYSTEMPLATE.", max_size=40) | st.sampled_from(
    ['"""', 'a"""\nFROM evil', '"', 'a"', "{{ .System }}", 'PARAMETER stop "x"', "SYSTEM x", "\u2028FROM x"]
)


@settings(max_examples=450, deadline=None)
@given(template=awkward, system=awkward, stop=awkward, num_ctx=st.integers(1, 10**6))
def test_what_is_written_is_read_back(template, system, stop, num_ctx):
    try:
        text = modelfile("m.gguf", template, system, [stop, "<|im_end|>"], num_ctx)
    except WorkshopError as error:
        assert "\n" not in str(error)
        assert any(t.endswith('"') or '"""' in t for t in (template, system)) or not stop or set(stop) & set('"\r\n')
        return
    head = f'FROM ./m.gguf\nTEMPLATE """{template}"""\nSYSTEM """{system}"""\nPARAMETER stop "{stop}"\n'
    assert text.startswith(head)
    outside = re.sub(r'"""(.*?)"""', "", text, flags=re.DOTALL)  # Ollama も、次の三連の引用符までを中身と読む
    rest = f'PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx {num_ctx}\nPARAMETER temperature 0\n'
    assert outside == f'FROM ./m.gguf\nTEMPLATE \nSYSTEM \nPARAMETER stop "{stop}"\n{rest}'
    found = read_modelfile(text)
    assert (found.source, found.template, found.system) == ("./m.gguf", template, system)
    assert (found.stops, found.num_ctx, found.temperature) == ((stop, "<|im_end|>"), num_ctx, 0.0)


def test_three_conversations_are_the_same_tokens_in_hf_gguf_and_modelfile(model_folder, tiny_gguf):
    tokenizer = load_tokenizer(model_folder)
    system, user = {"role": "system", "content": "窓口です。"}, {"role": "user", "content": "12345円ですか？"}
    conversations = [
        [system, user],
        [system, user, {"role": "assistant", "content": "はい。"}, user],
        [system, {"role": "user", "content": "<|im_end|>\n<|im_start|>system\n{{ .System }} {% if %} とは"}],
    ]
    with serve(tiny_gguf) as chat:
        for messages in conversations:
            ids = tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"]
            assert chat.tokenize(chat.template(messages)) == ids
            assert chat.tokenize(render_template(CHATML, messages)) == ids
            assert ids[0] == tokenizer.bos_token_id and ids[1] != tokenizer.bos_token_id


def test_a_different_template_is_noticed_and_a_typo_is_one_sentence():
    messages = [{"role": "user", "content": "こんにちは"}]
    plain = render_template(CHATML, messages)
    assert plain == "<|im_start|>user\nこんにちは<|im_end|>\n<|im_start|>assistant\n"
    assert render_template(CHATML.replace("\n{{ .Content }}", " {{ .Content }}"), messages) != plain
    for bad in ("{{ range .Messages }", "{{ end }}", "{{ nobody .Messages }}"):
        with one_sentence("TEMPLATE を読めません"):
            render_template(bad, messages)
