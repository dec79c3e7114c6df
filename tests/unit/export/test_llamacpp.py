"""llama.cpp の約束: 何度動かしても何も残らず、測った確率は llama.cpp 自身の値と同じ。"""

import subprocess
import sys
import urllib.error
import urllib.request
from functools import partial
from math import log
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import TYPE_RULE, from_notebook, quantize_as_06
from tiny import make_tiny
from transformers import AutoModelForCausalLM

from lib.export.gguf import convert_to_f16
from lib.export.serve import serve
from lib.files import REPOSITORY

NAMES = ("read", "choices", "divergence_at", "divergence")
READ = from_notebook("06_merge_to_gguf", *NAMES, torch=torch)
MESSAGES = [{"role": "user", "content": "こんにちは"}]
NEXT = {1: 2, 2: 3, 3: 4, 4: 0, 0: 1}


def listening():
    return {c.laddr for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}


def test_twenty_starts_leave_no_process_port_or_thread(tiny_gguf):
    me = psutil.Process()
    with serve(tiny_gguf):  # 1 回目に用意されるもの（スレッドの溜まりなど）は、数に入れない
        pass
    ports, children, threads, files = listening(), me.children(recursive=True), me.num_threads(), me.num_fds()
    for number in range(20):
        with serve(tiny_gguf) as chat:
            assert chat.address.startswith("http://127.0.0.1:")
            assert number % 10 or (listening() > ports and chat.complete("a", 1)["tokens_predicted"] == 1)
    assert listening() == ports and me.children(recursive=True) == children
    assert me.num_threads() <= threads + 2 and me.num_fds() <= files + 2


def test_no_other_page_may_read_the_answers(tiny_gguf):
    with serve(tiny_gguf) as chat:
        for method, path in (("GET", "/v1/models"), ("OPTIONS", "/v1/chat/completions")):
            address, origin = chat.address + path, {"Origin": "https://evil.example"}
            request = urllib.request.Request(address, None, origin, method=method)
            with urllib.request.urlopen(request, timeout=5) as response:
                assert response.headers["Access-Control-Allow-Origin"] not in ("*", "https://evil.example", "null")
                assert response.headers["Access-Control-Allow-Credentials"] != "true"


def test_a_killed_notebook_and_an_error_take_the_server_with_them(tiny_gguf):
    code = "import sys, time\nfrom pathlib import Path\nfrom lib.export.serve import serve\n"
    code += "with serve(Path(sys.argv[1])) as chat:\n    print(chat.address, flush=True)\n    time.sleep(60)\n"
    command = [sys.executable, "-c", code, str(tiny_gguf)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().strip()
    assert urllib.request.urlopen(address + "/health", timeout=5).status == 200
    process.kill()
    process.communicate()
    with pytest.raises(ZeroDivisionError), serve(tiny_gguf) as chat:  # 中で失敗しても止まる
        raise ZeroDivisionError
    for gone in (address, chat.address):
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(gone + "/health", timeout=5)


@pytest.mark.parametrize(("kind", "width", "near"), [("F16", 64, 2e-3), ("Q8_0", 64, 6e-3), ("Q4_K_M", 256, 4e-2)])
def test_the_weights_read_back_give_the_probabilities_of_llama_cpp(tmp_path, model_folder, kind, width, near):
    """transformers は重みだけを戻し、llama.cpp は活性も丸めるので、量子化では少しだけ違ってよい。"""
    folder = make_tiny(tmp_path / "tiny", model_folder, "Qwen3", width)
    path = convert_to_f16(folder, tmp_path / "f16.gguf", "tiny")
    if kind != "F16":
        quantize_as_06(folder, path, path := tmp_path / "q.gguf", kind)
    with serve(path) as chat:
        ids = chat.tokenize("The opening hour of the shop is ten.")
        # 途中の文字で終わる語では、llama.cpp が確率を返さないので、数語を書かせてから最初の確率を見る
        reply = chat.complete(ids, 8, n_probs=20)["completion_probabilities"][0]
    merged = AutoModelForCausalLM.from_pretrained(folder)
    cells = from_notebook("06_merge_to_gguf", *TYPE_RULE, "rounded", "rough", "rewrite", torch=torch, merged=merged)
    model = cells.rewrite(partial(cells.tensor_type, kind=kind, config=merged.config))
    ((ours,), _) = READ.read(model, [(ids, [0])])
    for token in reply["top_logprobs"]:
        assert ours[-1][token["id"]].item() == pytest.approx(token["logprob"], abs=near)


def test_divergence_is_computed_as_promised():
    ours = [torch.tensor([[0.6, 0.3, 0.1], [0.45, 0.44, 0.11]]).log()]
    theirs = [torch.tensor([[0.5, 0.4, 0.1], [0.44, 0.45, 0.11]]).log()]
    kl = [0.6 * log(0.6 / 0.5) + 0.3 * log(0.3 / 0.4), 0.45 * log(0.45 / 0.44) + 0.44 * log(0.44 / 0.45)]
    assert READ.divergence(ours, theirs) == pytest.approx(sum(kl) / 2, abs=1e-6)
    assert READ.divergence(ours, ours) == 0


class Follower:
    """次のトークンが決まっている、偽のモデルと llama.cpp。"""

    device = "cpu"

    def __call__(self, ids):
        rows = [[NEXT[token] for token in row] for row in ids.tolist()]
        return SimpleNamespace(logits=30 * torch.eye(5)[torch.tensor(rows)])

    def complete(self, prompt, limit, **options):
        said = [NEXT[prompt[-1]]]
        while said[-1] and len(said) < limit:  # 0 が終わりの印
            said.append(NEXT[said[-1]])
        return {"tokens": said}


def test_reading_lines_up_with_the_tokens():
    """答えの最初の語は、質問の最後の位置が予測する。llama.cpp にも、答えのどの位置でも（印の後でも）top-1 を聞く。"""
    (table,), perplexity = READ.read(Follower(), [([1, 2, 3], [4, 0])])
    assert table.argmax(-1).tolist() == [4, 0] and perplexity == pytest.approx(1.0)
    for answered in ([4, 0], [4, 2, 3, 0], [0], [1, 1, 1], [4, 0, 3]):
        assert READ.choices(Follower(), [1, 2, 3], answered) == [NEXT[token] for token in [3, *answered[:-1]]]
