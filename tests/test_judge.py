"""審査役の偏りは数字に出る。票は失われない。鍵はどこにも出ない。"""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lib.errors import WorkshopError
from lib.judge import TIE, Ballot, ask_from_environment, compare, read_choice

WRONG = [{"question": f"問い{n}", "reference": "690円", "answer": f"{n}円", "correct": False} for n in range(10)]
RIGHT = [{**row, "answer": "690円です", "correct": True} for row in WRONG]


def fair(text):
    return "A" if "答え A: 690円です" in text else "B" if "答え B: 690円です" in text else TIE


def test_a_fair_judge_is_consistent_and_agrees_with_the_rule():
    found = compare(fair, WRONG, RIGHT)
    assert found.win == 1.0 and found.consistency.value == 1.0 and found.agreement.value == 1.0
    assert compare(fair, RIGHT, WRONG).win == 0.0


def test_a_judge_that_always_takes_the_first_is_exposed():
    found = compare(lambda text: "A", WRONG, RIGHT)
    assert found.win == 0.5 and found.consistency.value == 0.0 and found.agreement.value == 0.0
    assert compare(lambda text: "A", WRONG, WRONG).agreement is None


@pytest.mark.parametrize(
    "said, read",
    [
        ("A", "A"),
        ("答えは B です。", "B"),
        ("Ｂ", "B"),
        ("引き分け", TIE),
        ("A と B は同じ", TIE),
        ("Apple", TIE),
        ("", TIE),
    ],
)
def test_only_a_clear_choice_counts(said, read):
    assert read_choice(said) == read


class Server(BaseHTTPRequestHandler):
    status = 200

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == "Bearer secret-key" and body["temperature"] == 0
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": "B"}}]}).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WORKSHOP_JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("WORKSHOP_JUDGE_KEY", "secret-key")
    yield server
    server.shutdown()
    server.server_close()


def test_any_openai_compatible_endpoint_can_judge(endpoint):
    assert ask_from_environment()("どちら？") == "B"


def test_a_judge_that_fails_is_one_sentence_without_the_key(endpoint, monkeypatch):
    monkeypatch.setattr(Server, "status", 401)
    with pytest.raises(WorkshopError, match="401") as told:
        ask_from_environment()("どちら？")
    assert "secret-key" not in str(told.value)


def test_no_judge_is_needed(monkeypatch):
    monkeypatch.delenv("WORKSHOP_JUDGE_URL", raising=False)
    assert ask_from_environment() is None


def test_votes_are_blind_kept_and_counted(tmp_path):
    rows = [(f"問い{n}", "前の答え", "後の答え") for n in range(40)]
    ballot = Ballot(("学習前", "SFT"), rows, tmp_path / "votes.json")
    lefts = {ballot.sides(n)[0] for n in range(40)}
    assert lefts == {"前の答え", "後の答え"}  # いつも同じ側に置かない
    while (number := ballot.next()) is not None and number < 30:
        ballot.vote(number, "左" if ballot.sides(number)[0] == "後の答え" else "右")
    again = Ballot(("学習前", "SFT"), rows, tmp_path / "votes.json")  # 途中で閉じても、続きから
    assert again.next() == 30 and again.win_rate().value == 1.0 and again.win_rate().low < 1.0
    again.vote(30, TIE)
    assert again.win_rate() == ballot.win_rate()
