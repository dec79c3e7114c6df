"""llama.cpp の約束: 何度動かしても何も残らず、測った確率は llama.cpp 自身の値と同じ。"""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import namedtuple

import numpy as np
import psutil
import pytest
from conftest import from_notebook, make_tiny, quantize_as_06

from lib.errors import WorkshopError
from lib.export.fidelity import Reading, compare, gguf_logits, greedy_same, read
from lib.export.gguf import convert_to_f16
from lib.export.serve import measure, serve
from lib.files import REPOSITORY


def listening():
    return {c.laddr for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}


def test_fifty_starts_leave_no_process_port_or_thread(tiny_gguf):
    me = psutil.Process()
    with serve(tiny_gguf):  # 1 回目に用意されるもの（スレッドの溜まりなど）は、数に入れない
        pass
    ports, children, threads, files = listening(), me.children(recursive=True), me.num_threads(), me.num_fds()
    for number in range(50):
        with serve(tiny_gguf) as chat:
            assert chat.address.startswith("http://127.0.0.1:")
            if number % 10 == 0:
                assert listening() > ports
                assert chat.complete("a", 1)["tokens_predicted"] == 1
    assert listening() == ports and me.children(recursive=True) == children
    assert me.num_threads() <= threads + 2 and me.num_fds() <= files + 2


def test_no_other_page_may_read_the_answers(tiny_gguf):
    with serve(tiny_gguf) as chat:
        for method, path in (("GET", "/v1/models"), ("OPTIONS", "/v1/chat/completions")):
            request = urllib.request.Request(
                chat.address + path, headers={"Origin": "https://evil.example"}, method=method
            )
            with urllib.request.urlopen(request, timeout=5) as response:
                allowed = response.headers.get("Access-Control-Allow-Origin")
                assert allowed not in ("*", "https://evil.example", "null"), allowed
                assert response.headers.get("Access-Control-Allow-Credentials") != "true"


def test_an_error_inside_also_stops_the_server(tiny_gguf):
    with pytest.raises(ZeroDivisionError), serve(tiny_gguf) as chat:
        raise ZeroDivisionError
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(chat.address + "/health", timeout=5)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL が無い")
def test_a_killed_notebook_takes_the_server_with_it(tiny_gguf):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom lib.export.serve import serve\n"
        "with serve(Path(sys.argv[1])) as chat:\n    print(chat.address, flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_gguf)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    address = process.stdout.readline().strip()
    assert urllib.request.urlopen(address + "/health", timeout=5).status == 200
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address + "/health", timeout=5)


Answers = namedtuple("Answers", "answer_tokens")


def test_streaming_gives_the_same_answer(tiny_gguf):
    messages = [{"role": "user", "content": "こんにちは"}]
    with serve(tiny_gguf) as chat:
        pieces = list(
            from_notebook("06_merge_to_gguf", "stream", profile=Answers(12), json=json).stream(chat, messages)
        )
        assert "".join(pieces).strip() == chat.ask(messages, 12)[0] and len(pieces) > 3


@pytest.mark.parametrize(("kind", "width"), [("F16", 64), ("Q8_0", 64), ("Q4_K_M", 256)])
def test_our_logits_are_those_of_llama_cpp(tmp_path, model_folder, kind, width):
    folder = make_tiny(tmp_path / "tiny", model_folder, "Qwen3", width)
    path = convert_to_f16(folder, tmp_path / "f16.gguf", "tiny")
    if kind != "F16":
        quantize_as_06(folder, path, path := tmp_path / "q.gguf", kind)
    with serve(path, hidden=True) as chat:
        ids = chat.tokenize("The opening hour of the shop is ten.")
        ours = gguf_logits(path, chat.hidden)(ids)[-1]
        # 途中の文字で終わる語では、llama.cpp が確率を返さないので、数語を書かせてから最初の確率を見る
        reply = chat.complete(ids, 8, n_probs=20)["completion_probabilities"][0]
    ours = ours - ours.max() - np.log(np.exp(ours - ours.max()).sum())
    for token in reply["top_logprobs"]:
        assert ours[token["id"]] == pytest.approx(token["logprob"], abs=2e-3 if width == 64 else 2e-2)


def test_agreement_and_margin_are_computed_as_promised():
    def logs(*rows):
        return np.log(np.array(rows))

    ours = Reading([logs([0.6, 0.3, 0.1], [0.45, 0.44, 0.11])], 1.0)
    theirs = Reading([logs([0.5, 0.4, 0.1], [0.44, 0.45, 0.11])], 1.0)
    found = compare(ours, theirs)
    assert found.rate == 0.5 and found.total == 2
    (only,) = found.differences
    assert (only.position, only.ours, only.theirs) == (1, 0, 1)
    assert only.margin == pytest.approx(np.log(0.45 / 0.44))
    kl = [0.6 * np.log(0.6 / 0.5) + 0.3 * np.log(0.3 / 0.4), 0.45 * np.log(0.45 / 0.44) + 0.44 * np.log(0.44 / 0.45)]
    assert found.kl == pytest.approx(np.mean(kl)) and compare(ours, ours).kl == 0
    turns = [([7, 8], [0, 0])]
    assert greedy_same(ours, turns) == [True] and greedy_same(theirs, turns) == [False]


def test_reading_lines_up_with_the_tokens():
    """位置を 1 つ間違えると壊れる約束: 答えの最初の語は、質問の最後の位置が予測する。"""
    asked, answered = [1, 2, 3], [4, 0]
    next_of = {1: 2, 2: 3, 3: 4, 4: 0, 0: 1}
    found = read(lambda ids: 30 * np.eye(5)[[next_of[i] for i in ids]], [(asked, answered)])
    assert greedy_same(found, [(asked, answered)]) == [True]
    assert found.perplexity == pytest.approx(1.0)


def test_measuring_in_a_new_process(tiny_gguf, tmp_path):
    found = measure(tiny_gguf)
    assert found.keys() == {"load_seconds", "prompt_per_second", "answer_per_second", "memory_mb"}
    assert all(value > 0 for value in found.values()) and found["memory_mb"] < 1000
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(WorkshopError, match="速さを測れません"):
        measure(tmp_path / "bad.gguf")
