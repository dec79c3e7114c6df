"""設定ごとの結果は一度だけ計算し、どこから来た数字かを必ず言う。"""

import shutil
from dataclasses import replace

import pytest
from maintain.record import record_experiments

import lib.run
from lib.files import REPOSITORY, read_json
from lib.run import key_of, measured, open_run

SETTINGS = {"rank": 16, "targets": ["q_proj", "v_proj"], "seed": 0}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(lib.run, "EXPERIMENTS", tmp_path / "experiments")
    monkeypatch.setattr(lib.run, "RECORDED", tmp_path / "recorded.json")
    return tmp_path


def never(settings):
    raise AssertionError("計算してはいけない")


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
    full = replace(run, profile=replace(run.profile, experiments=True))
    measured(full, SETTINGS, lambda settings: {"near": 0.25})
    record_experiments()
    shutil.rmtree(lib.run.EXPERIMENTS)
    played = measured(run, SETTINGS, never)
    assert played.result == {"near": 0.25} and played.origin.startswith("録画（20") and "スレッド" in played.origin


def test_every_recorded_point_still_belongs_to_its_settings():
    """録画の鍵は設定の指紋。設定を手で書き換えた録画は、ここで赤くなる。"""
    recorded = read_json(REPOSITORY / "data" / "recorded" / "experiments.json")
    assert recorded and all(key == key_of(row["settings"]) for key, row in recorded.items())
    assert all({"result", "date", "machine", "versions"} <= set(row) for row in recorded.values())
