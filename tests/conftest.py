"""テストの共通の準備。"""

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

# 使う人の outputs/ には何も残さない。make compare（RUN を渡す）だけが、そこを読む。
if not os.environ.get("RUN") and "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["WORKSHOP_OUTPUTS"] = tempfile.mkdtemp(prefix="workshop-outputs-")
# どの機械でも同じ精度で比べる（機械が決めるところは test_precision が確かめる）。
os.environ.setdefault("WORKSHOP_PRECISION", "float32")

from lib.data.facts import DATA
from lib.errors import WorkshopError
from lib.files import REPOSITORY, read_json
from lib.profiles import get_profile
from lib.run import OUTPUTS
from lib.score.exam import PARTS

# tmp_path を例ごとに作り直さないことと、遅い機械は、失敗としない。
_ALLOWED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile("tests", deadline=None, suppress_health_check=_ALLOWED)
settings.load_profile("tests")
_LONGEST = ("test_notebooks", "test_notebooks_alone", "test_rehearse", "test_learning")
_LONGEST += ("test_export", "test_llamacpp", "test_resume", "test_guard")
"""長いものから始める。二つのプロセスで分けて走らせるとき、最後に一つだけが残らないように。"""
_STARTED = time.time()
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
    """重さ（lib の行・ファイル・依存）と、smoke の秒と、画面を確かめなかったことを、終わりに出す。"""
    say = terminalreporter.write_line
    record = OUTPUTS / "pytest-smoke" / "stages.json"
    if record.exists() and record.stat().st_mtime > _STARTED:
        seconds = "  ".join(f"{name} {stage['seconds']:.0f}" for name, stage in read_json(record).items())
        say(f"smoke の所要（秒）: {seconds}")
    texts = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "lib").rglob("*.py")]
    needs = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = sum(len(text.splitlines()) for text in texts)
    say(f"lib: {lines:,} 行、{sum(map(bool, texts))} ファイル、依存 {len(needs)} 個")
    unseen = [report for report in terminalreporter.stats.get("skipped", []) if "Chromium" in str(report.longrepr)]
    if unseen:
        say(f"⚠ Chromium が無いので、画面のテスト {len(unseen)} 件を飛ばしました（.ci/run は入れてから走らせます）")


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


def start(*arguments):
    """smoke プロファイルの実行を始める。"""
    command = [sys.executable, "-m", "lib.execute", "--profile", "smoke", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=REPOSITORY, **pipes)


def ran(*arguments, timeout=600):
    """smoke プロファイルの実行を終わりまで待つ。(終了コード, 画面の出力)"""
    process = start(*arguments)
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def python(*arguments, given=None, **environment):
    """別の Python を、いまの環境変数に environment を足して走らせ、終わりまで待つ。given は、標準入力に渡す字。"""
    pipes = {"capture_output": True, "encoding": "utf-8", "input": given, "env": {**os.environ, **environment}}
    return subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, timeout=600, **pipes)


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
        rows = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in content]
        content = "\n".join(rows)
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@contextmanager
def one_sentence(*words):
    """中が、これらの語を含む一文の WorkshopError で止まることを確かめる。"""
    with pytest.raises(WorkshopError) as error:
        yield
    text = str(error.value)
    assert "Traceback" not in text and "\n" not in text and len(text) < 600
    assert all(word in text for word in words), text


@pytest.fixture(scope="session")
def model_folder():
    """埋め込みモデルの重み（実物）。無ければ取得する。"""
    from lib.model.load import resolve

    return resolve(get_profile("embedded"))


def make_tiny(folder, model_folder, family="Llama", width=64):
    """本物のトークナイザを持つ、2 層の乱数のモデルを作る。配管の検査にだけ使う。"""
    import torch
    import transformers

    from lib.model.load import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer(model_folder)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": width // 4}
    heads["query_pre_attn_scalar"] = width // 4  # Gemma だけが読む。llama.cpp は、頭の幅で割ると決めている
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "bos", "pad")}
    config = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")(
        hidden_size=width, intermediate_size=2 * width, vocab_size=len(tokenizer), tie_word_embeddings=True,
        **heads, **ids,
    )  # fmt: skip
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, model_folder):
    """乱数の Llama のフォルダ。"""
    return make_tiny(tmp_path_factory.mktemp("tiny"), model_folder)


@pytest.fixture
def tiny_copy(tmp_path, tiny_llama):
    """壊してよい、乱数の Llama のフォルダ。"""
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory, tiny_llama):
    """乱数の Llama の F16 の GGUF。"""
    from lib.export.gguf import convert_to_f16

    return convert_to_f16(tiny_llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "tiny")


def quantize_as_06(folder, f16, target, kind):
    """`folder` の重みから作った F16 の GGUF を、06 の規則で量子化する。"""
    from transformers import AutoConfig

    from lib.export.gguf import quantize

    rule = from_notebook("06_merge_to_gguf", "BASE", "FALLS_TO", "more_bits", "mixed", "tensor_type").tensor_type
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
        "spread", "question_of", "make_pairs", "written_pairs", FOLDER=DATA,
    )  # fmt: skip
    ranked = from_notebook(
        "05_preference", "ENDS", "POLITE_END", "is_rude", "WRONG", "MADE_UP", "VAGUE", "RUDE", "fault", "GOODNESS",
        "pair", "agreed", "rank_pairs", "pairs_by_hand",
    )  # fmt: skip
    return SimpleNamespace(**vars(made) | vars(ranked))


def _defines(node):
    """その文が最上位で定義する名前。"""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [name for target in targets for name in getattr(target, "elts", [target])]
    return {name.id for name in names if isinstance(name, ast.Name)}
