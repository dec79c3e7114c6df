"""テストの共通の準備。"""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

# 使う人の outputs/ には何も残さない。make compare（RUN を渡す）だけが、そこを読む。
if not os.environ.get("RUN") and "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["WORKSHOP_OUTPUTS"] = tempfile.mkdtemp(prefix="workshop-outputs-")
# どの機械でも同じ精度で比べる（機械が決めるところは test_precision が確かめる）。
os.environ.setdefault("WORKSHOP_PRECISION", "float32")
os.environ.pop("WORKSHOP_MODEL_DIR", None)

from lib.data.facts import DATA
from lib.errors import WorkshopError
from lib.files import REPOSITORY
from lib.profiles import get_profile
from lib.run import OUTPUTS
from lib.score.exam import PARTS

# tmp_path を例ごとに作り直さないことと、遅い機械は、失敗としない。
_ALLOWED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile("tests", deadline=None, suppress_health_check=_ALLOWED)
settings.load_profile("tests")
_LONGEST = ("test_notebooks_alone", "test_notebooks", "test_rehearse", "test_export", "test_llamacpp")
_LONGEST += ("test_qlora", "test_hostile", "test_guard", "test_widgets_browser", "test_resume")
"""長いものから始める。二つのプロセスで分けて走らせるとき、最後に一つだけが残らないように。"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# 音もなく外へ出る機能（部品の更新、同期など）を切る。切らないと「外へ出ない」を確かめられない。
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_QUIET += ["--disable-component-update", "--disable-sync"]


def pytest_collection_modifyitems(items):
    """ファイルの中の順はそのままに、長いファイルを先頭へ。"""
    order = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_unconfigure(config):
    """二つに分けた子も使う場所なので、親だけが片付ける。"""
    if not hasattr(config, "workerinput") and OUTPUTS.name.startswith("workshop-outputs-"):
        shutil.rmtree(OUTPUTS, ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """重さ（lib の行・ファイル・依存）と、画面を確かめなかったことを、終わりに出す。"""
    say = terminalreporter.write_line
    texts = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "lib").rglob("*.py")]
    needs = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = sum(len(text.splitlines()) for text in texts)
    say(f"lib: {lines:,} 行、{sum(map(bool, texts))} ファイル、依存 {len(needs)} 個")
    remedies = {"Chromium": ".ci/run は入れてから走らせます"}
    remedies["lm_eval"] = "pip install -c constraints.txt -e '.[benchmark]'"
    for part, remedy in remedies.items():
        if unseen := [row for row in terminalreporter.stats.get("skipped", []) if part in str(row.longrepr)]:
            say(f"⚠ {part} が無いので、テスト {len(unseen)} 件を飛ばしました（{remedy}）")


@pytest.fixture
def window():
    """本物の Chromium の、1280×720 の画面。Chromium が無ければ飛ばす。"""
    if CHROMIUM is None:
        pytest.skip("Chromium が無いので、画面は確かめません")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright が入っていません")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=_QUIET)
        yield browser.new_page(viewport={"width": 1280, "height": 720})
        browser.close()


@pytest.fixture
def endpoint():
    """127.0.0.1 の、OpenAI 互換の口。`wait` 秒待って `status` で `reply` を返し、来た頼みを `seen` に残す。"""
    state = SimpleNamespace(status=200, reply="", wait=0, seen=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.seen.append((self.path, self.headers["Authorization"], body))
            time.sleep(state.wait)
            self.send_response(state.status)
            self.end_headers()
            said = {"choices": [{"message": {"content": state.reply}}]} if isinstance(state.reply, str) else state.reply
            self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # 待たずに切られたときの、サーバ側の失敗は見せない
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}/v1/"
        yield state
        server.shutdown()


SMOKE = ("-m", "lib.execute", "--profile", "smoke")


def start(*arguments, **environment):
    """smoke プロファイルの実行を、いまの環境変数に environment を足して始める。"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    command = [sys.executable, *SMOKE, *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **environment}, **pipes)


def execute(*arguments, **environment):
    """smoke プロファイルの実行を、このプロセスの中で終わりまで走らせる（torch を読み直さない）。"""
    from lib.execute import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in {"WORKSHOP_RUN_HELD": "", "WORKSHOP_HEADLESS": "1", **environment}.items():
            patch.setenv(name, value)  # main が書き換えるので、終わったら戻す
        patch.setattr(sys, "argv", [*SMOKE[1:], *arguments])
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def python(*arguments, given=None, timeout=600, **environment):
    """別の Python を、いまの環境変数に environment を足して走らせ、終わりまで待つ。given は、標準入力に渡す字。"""
    pipes = {"capture_output": True, "encoding": "utf-8", "input": given, "env": {**os.environ, **environment}}
    return subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, timeout=timeout, **pipes)


def refused(done, *words):
    """別の Python が、これらの語を含む一文で止まったことを確かめる。"""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def table_beside(file, name):
    """テスト `file` の隣に置いた表（`name`.toml）。"""
    return tomllib.loads(Path(file).with_name(f"{name}.toml").read_text(encoding="utf-8"))


def write_data(folder, name, content):
    """データのファイルを書く。列は JSONL にし、列の中の文字列は、壊れた行としてそのまま置く。"""
    if isinstance(content, list):
        content = "\n".join([row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in content])
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@contextmanager
def one_sentence(*words):
    """中が、これらの語を含む一文の WorkshopError で止まることを確かめる。"""
    with pytest.raises(WorkshopError) as error:
        yield error
    text = str(error.value)
    assert "Traceback" not in text and "\n" not in text and len(text) < 600
    assert all(word in text for word in words), text


@pytest.fixture(scope="session")
def model_folder():
    """埋め込みモデルの重み（実物）。無ければ取得する。"""
    from lib.model.load import resolve

    return resolve(get_profile("embedded"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, model_folder):
    """乱数の Llama のフォルダ。"""
    from tiny import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny"), model_folder)


@pytest.fixture(scope="session")
def short_model(tmp_path_factory, model_folder):
    """本物の重みの、初めの 2 層だけのモデルを使わせる環境変数。学習の効果を問わない、通しの実行のため。"""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, model = tmp_path_factory.mktemp("short"), AutoModelForCausalLM.from_pretrained(model_folder)
    model.config.num_hidden_layers = len(model.model.layers[:2])
    model.model.layers = model.model.layers[:2]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return {"WORKSHOP_MODEL_DIR": str(folder)}


@pytest.fixture
def tiny_copy(tmp_path, tiny_llama):
    """壊してよい、乱数の Llama のフォルダ。"""
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory, tiny_llama):
    """乱数の Llama の F16 の GGUF。"""
    from lib.export.gguf import convert_to_f16

    return convert_to_f16(tiny_llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "tiny")


TYPE_RULE = ("BASE", "FALLS_TO", "more_bits", "heads_per_pair", "mixed", "tensor_type")


def quantize_as_06(folder, f16, target, kind):
    """`folder` の重みから作った F16 の GGUF を、06 の規則で量子化する。"""
    from transformers import AutoConfig

    from lib.export.gguf import quantize

    rule = from_notebook("06_merge_to_gguf", *TYPE_RULE).tensor_type
    return quantize(f16, target, kind, partial(rule, kind=kind, config=AutoConfig.from_pretrained(folder)))


def exam_sheet(model, right, **more):
    """採点の行を作る。right は、部分 → 何問に 1 問正答するか（無い部分は全問誤答）。more は、行に足す値。"""
    forms = {"near": "request"}
    return [
        {"model": model, "part": part, "fact": f"fact-{n // 2}", "form": forms.get(part, "other_3"),
         "question": f"{part} の問い {n}", "reference": "690円です。", "answer": "690円です。",
         "correct": bool(right.get(part)) and n % right[part] == 0, "made_up": False, "refused": False, **more}
        for part in PARTS for n in range(24)
    ]  # fmt: skip


def from_notebook(stage, *names, **given):
    """ノートブックの、これらの名前を定義するセルの定義だけを、そこまでの import とともに、上から順に実行して取り出す。

    given は、定義が外から使う、ほかの名前。
    """
    cells = json.loads((REPOSITORY / "notebooks" / f"{stage}.ipynb").read_text(encoding="utf-8"))["cells"]
    space, found = {}, set()

    def run(nodes):
        exec(compile(ast.Module(nodes, []), stage, "exec"), space)

    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        body = ast.parse("".join(cell["source"])).body
        run([node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))])
        space |= given
        run(chosen := [node for node in body if _defines(node) & set(names)])
        found |= {name for node in chosen for name in _defines(node)} & set(names)
    assert found == set(names), f"{stage} に定義がありません: {set(names) - found}"
    return SimpleNamespace(**{name: space[name] for name in names})


def preference_rules():
    """選好ペアの作り方（02）と順位の付け方（05）。ノートブックの関数のまま。"""
    made = from_notebook(
        "02_dataset", "pair", "REASONS", "NEXT", "unit_of", "next_digit", "swap_figure", "wrong_figures", "invented",
        "ORDER", "place_of", "spread", "question_of", "make_pairs", "written_pairs", FOLDER=DATA,
    )  # fmt: skip
    ranked = from_notebook(
        "05_preference", "MANNER", "manner_of", "WRONG", "MADE_UP", "VAGUE", "RUDE", "fault", "GOODNESS",
        "reply", "pair", "agreed", "rank_pairs", "pairs_by_hand",
    )  # fmt: skip
    return SimpleNamespace(**vars(made) | vars(ranked))


def _defines(node):
    """その文が最上位で定義する名前。"""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [name for target in targets for name in getattr(target, "elts", [target])]
    return {name.id for name in names if isinstance(name, ast.Name)}
