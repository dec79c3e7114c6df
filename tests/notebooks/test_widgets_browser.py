"""本物の JupyterLab と本物のブラウザで: スライダーが図を替え、計算の途中でも、記録に替えるボタンが効く。"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from lib.files import REPOSITORY


@pytest.fixture
def lab(tmp_path):
    """ノートブックを一つ置いた JupyterLab の住所。127.0.0.1 だけで、その場限りの合い言葉を付ける。"""
    (tmp_path / "work").mkdir()
    shutil.copy(Path(__file__).with_name("widgets.ipynb"), tmp_path / "work")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = "JUPYTER_CONFIG_DIR JUPYTER_RUNTIME_DIR JUPYTERLAB_WORKSPACES_DIR JUPYTERLAB_SETTINGS_DIR IPYTHONDIR"
    settings = {name: str(tmp_path / name) for name in own.split()}
    tracker = tmp_path / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    # 画面の外のセルも、消さずに置く
    (tracker / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}', encoding="utf-8")
    settings |= {"PYTHONPATH": str(REPOSITORY), "JUPYTER_TOKEN": token}
    settings |= {"PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={tmp_path / 'work'}"], stdout=log, stderr=log, start_new_session=True,
            env={key: value for key, value in os.environ.items() if key != "WORKSHOP_HEADLESS"} | settings,
        )  # fmt: skip
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/widgets.ipynb?reset&token={token}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # サーバが、カーネルも止める
        server.wait(timeout=30)


def test_a_real_browser_moves_the_views_and_stops_the_demo(window, lab, tmp_path):
    window.set_viewport_size({"width": 1280, "height": 1600})
    window.set_default_timeout(90_000)
    window.goto(lab)
    window.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
    window.locator("#jp-main-statusbar", has_text="| Idle").wait_for()  # カーネルが始まる前の「実行」は効かない
    window.get_by_role("menuitem", name="Run", exact=True).click()
    window.get_by_text("Run All Cells", exact=True).click()
    stop = window.get_by_role("button", name="記録に切り替える")
    stop.wait_for()

    # 計算しているセルの間に押す
    window.locator(".jp-InputPrompt", has_text="[*]").first.wait_for()
    stop.click()
    window.get_by_text("記録に替わりました: 発表者が切り替えた").wait_for()
    ended = window.locator(".jp-OutputArea-output", has_text="止まった歩").last
    ended.wait_for()
    assert int(ended.inner_text().split("止まった歩")[1].split()[0]) < 2000
    window.locator(".jp-OutputArea-output", has_text="終わりのセル").wait_for()

    picture, dropdown = window.locator(".widget-html-content img"), window.locator(".widget-dropdown select")
    handle = window.locator(".noUi-handle").first
    for move in (partial(handle.press, "ArrowRight"), partial(dropdown.select_option, "linear")):
        before = picture.get_attribute("src")
        move()
        window.wait_for_function("old => document.querySelector('.widget-html-content img').src !== old", arg=before)
    window.get_by_placeholder("ここに書く").fill("<img src=x>名入れ")
    window.get_by_text("14 文字").wait_for()
    assert picture.count() == 1, "打った文が、絵として読まれました"
    window.screenshot(path=tmp_path / "widgets.png", full_page=True)
