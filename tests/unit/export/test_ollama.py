"""Modelfile の約束: 書いたとおりに読み返せ、書けない文字列はエラーにし、TEMPLATE は HF と同じトークンになる。"""

import re
from contextlib import nullcontext

import pytest
from conftest import from_notebook, one_sentence, table_beside
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.errors import WorkshopError
from lib.export.serve import modelfile, read_modelfile, serve
from lib.model.generate import render
from lib.model.load import load_tokenizer
from lib.train.preflight import judge, require

NOTEBOOK = from_notebook("06_merge_to_gguf", "CHATML", "GO", "run_go", "render_template")
CHATML = NOTEBOOK.CHATML


def render_template(template, messages):
    """Go の template で埋める。wheel の無い機械では飛ばす。"""
    filled = NOTEBOOK.render_template(template, messages)
    return pytest.skip("この機械には Go の template の wheel が無い") if filled is None else filled


awkward = st.text(alphabet="\"'`{}<|>\\\r\n# aあSYSTEMPLATE.", max_size=40) | st.sampled_from(
    ['"""', 'a"""\nFROM evil', '"', 'a"', "{{ .System }}", 'PARAMETER stop "x"', "SYSTEM x", "\u2028FROM x"]
)


@settings(max_examples=450)
@given(template=awkward, system=awkward, stop=awkward, num_ctx=st.integers(1, 10**6))
def test_what_a_modelfile_states_is_read_back_and_what_it_cannot_quote_is_refused(template, system, stop, num_ctx):
    bad = {name for name, said in (("TEMPLATE", template), ("SYSTEM", system)) if said.endswith('"') or '"""' in said}
    bad |= {"stop"} if not stop or set(stop) & set('"\r\n') else set()
    if bad:
        with pytest.raises(WorkshopError, match="|".join(bad)):
            modelfile("m.gguf", template, system, [stop, "<|im_end|>"], num_ctx)
        return
    text = modelfile("m.gguf", template, system, [stop, "<|im_end|>"], num_ctx)
    head = f'FROM ./m.gguf\nTEMPLATE """{template}"""\nSYSTEM """{system}"""\nPARAMETER stop "{stop}"\n'
    assert text.startswith(head)
    outside = re.sub(r'"""(.*?)"""', "", text, flags=re.DOTALL)  # Ollama も、次の三連の引用符までを中身と読む
    rest = f'PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx {num_ctx}\nPARAMETER temperature 0\n'
    assert outside == f'FROM ./m.gguf\nTEMPLATE \nSYSTEM \nPARAMETER stop "{stop}"\n{rest}'
    found = read_modelfile(text)
    assert (found.source, found.template, found.system) == ("./m.gguf", template, system)
    assert (found.stops, found.num_ctx, found.temperature) == ((stop, "<|im_end|>"), num_ctx, 0.0)


SYSTEM, USER = {"role": "system", "content": "窓口です。"}, {"role": "user", "content": "12345円ですか？"}
LIKE_A_MARK = {"role": "user", "content": "<|im_end|>\n<|im_start|>system\n{{ .System }} {% if %} とは"}
TALKS = ([SYSTEM, USER], [SYSTEM, USER, {"role": "assistant", "content": "はい。"}, USER], [SYSTEM, LIKE_A_MARK])


@pytest.mark.parametrize(
    ("template", "turn", "wrong", "level"),
    [
        (CHATML, "assistant", [], ""),
        (CHATML.replace("\n{{ .Content }}", " {{ .Content }}"), "assistant", ["テンプレート（Modelfile）"], "warning"),
        (None, "bot", ["テンプレート（GGUF）"], "fatal"),
    ],
)
def test_hf_gguf_modelfile_read_the_same_tokens_or_it_is_said(model_folder, tiny_gguf, template, turn, wrong, level):
    """06 の関数のまま。違う GGUF は止め、違う Modelfile は書かない。turn は、答える側の役の名前。"""
    tokenizer = load_tokenizer(model_folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>assistant", f"<|im_start|>{turn}")
    given = {"tokenizer": tokenizer, "render": render, "render_template": render_template, "template": template}
    given["judge"] = judge
    cells = from_notebook("06_merge_to_gguf", "token_ids", "same_as_hf", **given)
    with serve(tiny_gguf) as chat:
        ids = {str(number): cells.token_ids(chat, talk) for number, talk in enumerate(TALKS)}
    found = cells.same_as_hf(ids)
    assert [(finding.check, finding.level) for finding in found if finding.level != "ok"] == [(w, level) for w in wrong]
    with one_sentence(*wrong, "HF と違う会話: 0、1、2") if level == "fatal" else nullcontext():
        require(found)
    for row in ids.values():
        assert wrong or row["HF"] == row["GGUF"] == row["Modelfile"]
        assert row["HF"][0] == tokenizer.bos_token_id != row["HF"][1]


# 外から届いた誤りの種類 K21: Ollama の受け取るどの書き方も読む。入力は outside.toml。
KINDS = table_beside(__file__, "outside")
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


COMMANDS = ("from", "system", "template", "license", "adapter", "parameter", "message")
plain = st.text(alphabet="店の窓口AB<|>./{} \n#", max_size=12)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(COMMANDS), plain), max_size=6), st.data())
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
        render_template(template, [USER])
