"""実演の予算: 間に合わないと分かれば記録に替わり、記録にはいつも「記録済み」と書く。下見も。"""

import asyncio
import sys
import time
import urllib.error
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from conftest import from_notebook, one_sentence
from jupyter_client.manager import start_new_kernel
from maintain.record import record_talk, right_by_stage

from lib.data.facts import Example
from lib.files import REPOSITORY, read_json, write_json
from lib.profiles import MODELS, get_profile
from lib.run import open_run
from lib.show.plots import GREEN, RED
from lib.talk import demo as demo_module
from lib.talk import rehearse as venue
from lib.talk.demo import Demo
from lib.talk.plan import RECORDING, load_plan

ASKED = [Example("f", "request", "名入れは何日ですか。", "名入れは16日です。", ("16日",))]
ROWS = [
    {
        "part": "言い換え（近い）",
        "question": "名入れは何日ですか。",
        "before": "？" * 99,
        "role": "？" * 95 + " I don't have that information.",
        "after": "16日です。",
    }
]
ROWS[0] |= {"before_ok": False, "role_ok": False, "ten_ok": False, "after_ok": True}


@pytest.fixture
def clock(monkeypatch):
    """手で進める時計。"""
    now = [0.0]
    monkeypatch.setattr(demo_module.time, "monotonic", lambda: now[0])
    return now


def step(demo, number, total=10):
    control = SimpleNamespace(should_training_stop=False)
    demo.on_step_end(None, SimpleNamespace(global_step=number, max_steps=total), control)
    return control.should_training_stop


def shown(demo, rows, **more):
    return demo.result(rows, history=[{"step": 1, "loss": 0.5}], parameters=3, cost={}, **more)


def test_the_answers_are_judged_by_their_figures():
    near, unseen = "言い換え（近い）", "未学習の事実"
    said = {"ten": ["17日です。", "？"], "after": ["16日です。", "17日です。"]}
    stages = {"before": "学習前", "role": "役割の指示", "ten": "10 例", "after": "98 例"}
    trainers = {stages[key]: SimpleNamespace(model=SimpleNamespace(eval=lambda key=key: key)) for key in said}
    given = {"asked": ASKED * 2, "parts": [near, unseen], "before": ["？", "16日です。"], "roled": ["？", "？"]}
    given |= {"STAGES": stages, "trainers": trainers, "tokenizer": None, "short": None}
    given["answer"] = lambda model, *_: said[model]
    made = from_notebook("00_talk", "answers_of", **given, said={"before": given["before"], "role": given["roled"]})
    assert "after" not in made.answers_of("ten")[0]
    first, second = made.answers_of("after")
    assert [first[f"{key}_ok"] for key in stages] == [False, False, False, True]
    assert [second[f"{key}_ok"] for key in stages] == [True, False, False, False]
    assert first["part"] == near and first["reference"] == "名入れは16日です。" and first["after"] == "16日です。"


def test_a_demo_in_time_shows_what_this_machine_computed(clock, monkeypatch):
    monkeypatch.delenv("WORKSHOP_HEADLESS", raising=False)
    demo = Demo(40, answering=2)
    demo.attempt(lambda: clock.__setitem__(0, 30))
    after = demo.attempt(lambda: clock.__setitem__(0, 32) or ROWS)
    result = shown(demo, after)
    assert result["live"] and result["label"] == "実演（この機械でいま、32 秒）" and not demo.reason
    assert result["rows"] == ROWS and result["parameters"] == 3 and result["seconds"] == 32
    monkeypatch.setenv("WORKSHOP_HEADLESS", "1")
    assert shown(demo, after)["label"].startswith("実演（通し稽古、20"), "スライドは、別の日に開かれる"


# 初めだけ遅い: 12 + 9 × 2 + 2 = 32 秒（平均の速さで見込むと 55 秒になる）。
# 15 秒で 3 ステップ: 10 ステップなら 50 秒 + 2 秒。二つ目までは、まだ判断しない。
@pytest.mark.parametrize(("steps", "stops"), [([3] * 10, False), ([12, 2, 2], False), ([5, 5, 5], True)])
def test_training_stops_early_only_when_it_cannot_finish(clock, steps, stops):
    demo = Demo(40, answering=2)

    def train():
        for number, seconds in enumerate(steps, start=1):
            clock[0] += seconds
            assert step(demo, number) == (stops and number == 3)

    demo.attempt(train)
    assert ("見込み 52 秒" in demo.reason) if stops else not demo.reason


def test_the_pace_of_the_second_training_is_its_own(clock):
    """続けて二つ学習する。初めの学習の秒は、二つ目の 1 ステップの見込みに混じらない。"""
    demo, stopped = Demo(40), []

    def train(steps, seconds):
        for number in range(1, steps + 1):
            clock[0] += seconds
            stopped.append(step(demo, number, steps))

    demo.attempt(lambda: train(6, 2))  # 12 秒
    demo.attempt(lambda: train(20, 1))  # 20 秒。混ぜて見込むと、3 ステップめで 12 + 6.5 × 17 秒になる
    assert not any(stopped) and not demo.reason


ENDINGS = [(KeyboardInterrupt(), "発表者が止めた"), (MemoryError("足りない"), "MemoryError: 足りない")]
ENDINGS += [(41, "40 秒を超えた"), ("", "発表者が切り替えた")]  # 間に合わなかった答えは、実演として見せない


@pytest.mark.parametrize(("ending", "reason"), ENDINGS)
def test_a_failed_late_or_switched_demo_goes_on_with_the_recording(clock, ending, reason):
    demo = Demo(40)

    def work():
        if isinstance(ending, BaseException):
            raise ending
        clock[0] = ending
        return ROWS

    if ending == "":
        demo.switch()
        assert step(demo, 1), "押した後は、次のステップで学習が止まる"
    assert demo.attempt(work) is None and reason in demo.reason
    demo.switch("別の理由")
    assert demo.attempt(lambda: pytest.fail("記録に替わった後は、何も計算しない")) is None
    found, recorded = shown(demo, None), read_json(RECORDING)
    assert not found["live"] and reason in found["reason"] and found["rows"] == recorded["rows"]
    assert found["label"].startswith(f"記録済み（{recorded['date']}、{recorded['machine']}")
    banner = from_notebook("00_talk", "banner").banner
    assert "記録済み" in banner(found).data and reason in banner(found).data
    assert RED in banner(found).data and GREEN in banner({**found, "live": True}).data


@pytest.mark.parametrize("clicked", [True, False])
def test_a_click_stops_the_demo_while_it_computes(clicked):
    """学習が計算している間も、待っているセルの側で押した知らせが届き、次のステップで止まる。"""
    demo, steps = Demo(40), []

    def train():
        for number in range(1, 100):
            time.sleep(0.01)
            steps.append(number)
            if step(demo, number, total=100):
                return "途中"
        return "最後まで"

    async def cell():
        waiting = asyncio.ensure_future(demo.live(train))
        while len(steps) < 3:
            await asyncio.sleep(0.01)
        if clicked:
            demo.switch()
        return await waiting

    assert asyncio.run(cell()) == (None if clicked else "最後まで")
    assert 3 <= len(steps) < 50 and demo.reason == "発表者が切り替えた" if clicked else len(steps) == 99


def test_only_the_late_training_comes_from_the_recording(clock):
    """10 例が間に合い、98 例が間に合わなかったら、10 例までは実演の答えが残り、見出しがそう言う。"""
    with_ten, demo, recorded = from_notebook("00_talk", "with_ten").with_ten, Demo(40), read_json(RECORDING)["rows"]
    live = [
        {key: row[key] for key in ("part", "question", "reference")} | {"ten": "いま", "ten_ok": 0} for row in recorded
    ]
    demo.attempt(lambda: clock.__setitem__(0, 41))
    found = with_ten(shown(demo, None), live)
    assert found["label"].startswith("記録済み（") and found["label"].endswith("98 例だけ。ほかは実演")
    assert not found["live"]
    assert {row["ten"] for row in found["rows"]} == {"いま"}
    assert [row["after"] for row in found["rows"]] == [row["after"] for row in recorded]
    assert with_ten(shown(demo, None), None)["rows"] == recorded, "10 例も間に合わなければ、全部が記録"
    assert with_ten(shown(demo, None), [{"question": "別のデータ"}])["rows"] == recorded
    assert with_ten(shown(Demo(40), ROWS), live)["rows"] == ROWS, "間に合えば、実演のまま"


WAITING = """
import time
from lib.talk.demo import Demo
demo = Demo(100)

def train():
    print("始めた", flush=True)
    while not demo.reason and demo.elapsed() < 30:
        time.sleep(0.1)

await demo.live(train)
print(demo.reason)
"""


def test_a_real_kernel_notices_the_interrupt_at_once():
    """本物のカーネルで、待っているだけのセルを中断（■）すると、計算の終わりを待たずに記録に替わる。"""
    manager, client = start_new_kernel(cwd=str(REPOSITORY), startup_timeout=120)
    said, pressed = [], []

    def hear(message):
        said.append(message["content"].get("text", ""))
        if "始めた" in said[-1]:
            pressed.append(time.monotonic())
            manager.interrupt_kernel()

    try:
        ended = client.execute_interactive(WAITING, timeout=200, output_hook=hear)
        assert ended["content"]["status"] == "ok" and "発表者が止めた" in "".join(said)
        assert time.monotonic() - pressed[0] < 20
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_only_a_live_demo_becomes_a_recording(tmp_path):
    run, demo = open_run("talk", outputs=tmp_path), Demo(40)
    many = [{**ROWS[0], "part": part} for part in ("言い換え（近い）", "未学習の事実", "言い換え（遠い）")]
    write_json(run.stage("00_talk") / "demo.json", shown(demo, demo.attempt(lambda: many)))
    kept = read_json(record_talk(run, "試しの機械", tmp_path / "talk.json"))
    assert kept["machine"] == "試しの機械" and kept["gflops"] > 0 and kept["rows"][0]["after"] == "16日です。"
    assert {"date", "threads", "versions", "seconds", "parameters", "history", "seed", "cost"} <= set(kept)
    assert kept["seeds"] == {
        "0": {"near": {"before": 0, "role": 0, "ten": 0, "after": 1}, "far": kept["seeds"]["0"]["far"]}
    }
    assert kept["rows"][0]["role"] == ROWS[0]["role"], "見せる行は、全文を残す（控えたかどうかを、そこから決める）"
    assert len(kept["rows"][2]["before"]) == 20
    demo.switch()
    with one_sentence("make rehearse MACHINE="):
        shown(demo, None, recording=tmp_path / "none.json")
    write_json(run.stage("00_talk") / "demo.json", shown(demo, None))
    with one_sentence("記録にできません"):
        record_talk(run, "試しの機械", tmp_path / "talk.json")


def test_the_recording_in_git_is_a_small_live_demo():
    recorded = read_json(RECORDING)
    assert RECORDING.stat().st_size < 20_000 and recorded["profile"] == "talk"
    near = [row for row in recorded["rows"] if row["part"] == "言い換え（近い）"]
    assert len(near) == 14 and not any(row["before_ok"] for row in near) and sum(row["after_ok"] for row in near) >= 12
    assert sorted(recorded["seeds"]) == ["0", "1", "2"] and recorded["seeds"]["0"] == right_by_stage(recorded["rows"])


@pytest.fixture
def preflight_says(monkeypatch, tmp_path):
    """下見が、検査の名前 → (重さ, 言葉) のとおりに言うかを見る。行列積は測らず、記録した機械と同じ速さとする。"""
    monkeypatch.setenv("WORKSHOP_CACHE", str(tmp_path))
    monkeypatch.setattr(venue, "race", lambda: (1, read_json(RECORDING)["gflops"], 1.0))

    def compare(**expected):
        found = {finding.check: finding for finding in venue.findings(get_profile("talk"))}
        for name, (level, word) in expected.items():
            assert found[name].level == level and word in str(found[name]), name

    return compare


def test_preflight_sees_what_is_missing(preflight_says, monkeypatch, tmp_path):
    monkeypatch.setattr(venue.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    monkeypatch.setattr(venue.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    monkeypatch.setattr(venue.urllib.request, "urlopen", Mock(side_effect=urllib.error.URLError("届かない")))
    lacking = {"モデル": ("fatal", "make fetch"), "変換器": ("warning", "make fetch"), "空き容量": ("fatal", "1.0 GB")}
    lacking |= {"空きメモリ": ("warning", "1.0 GiB"), "回線": ("warning", "つながりません"), "llama.cpp": ("ok", "")}
    preflight_says(部品=("ok", ""), フォント=("ok", ""), 実演=("ok", ""), **lacking)
    assert not list(tmp_path.iterdir()), "下見は何も取得しない"


def test_wrong_versions_and_broken_parts_are_named(preflight_says, monkeypatch, tmp_path):
    model = tmp_path / f"smollm2-135m-{MODELS['smollm2-135m'].wheel['sha256'][:12]}"
    write_json(model / "manifest.json", {"sha256": {"model.safetensors": "0"}})
    monkeypatch.setattr(venue, "distributions", lambda name: [SimpleNamespace(version="0.0.1")])
    monkeypatch.setattr(venue, "findfont", lambda name: "DejaVuSans.ttf")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    broken = {"部品": ("fatal", "torch 0.0.1"), "llama.cpp": ("warning", "")}
    preflight_says(モデル=("fatal", "欠けているか壊れています"), フォント=("fatal", ""), **broken)
    monkeypatch.setattr(venue, "distributions", lambda name: [])
    preflight_says(部品=("fatal", "torch が無い"))


@pytest.mark.parametrize(("faster", "level"), [(1, "ok"), (100, "ok"), (0.01, "warning")])
def test_the_estimate_scales_with_the_speed_of_this_machine(faster, level):
    recorded, budget = read_json(RECORDING), load_plan()["demo_seconds"]
    found = venue.estimate(recorded["gflops"] * faster)
    assert f"およそ {recorded['seconds'] / faster:.0f} 秒" in found.found and f"{budget:g} 秒" in found.found
    assert found.level == level and ("記録に替わりそう" in found.remedy) == (level == "warning")
