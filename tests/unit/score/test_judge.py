"""評価用 LLM（07 の関数）の偏りは数字に出る。鍵はどこにも出ない。"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import from_notebook

from lib.errors import WorkshopError
from lib.text.words import nfkc

FOUND = from_notebook(
    "07_evaluation", "read_choice", "ask_judge", "judge", "compare", re=re, nfkc=nfkc, WorkshopError=WorkshopError
)
WRONG = [{"question": f"問い{n}", "reference": "690円", "answer": f"{n}円", "correct": False} for n in range(10)]
RIGHT = [{**row, "answer": "690円です", "correct": True} for row in WRONG]


def fair(question, a, b):
    assert "正解: 690円" in question
    return "A" if a == "690円です" else "B" if b == "690円です" else ""


def test_a_fair_judge_agrees_with_the_rule_and_one_that_always_takes_the_first_is_exposed():
    assert FOUND.compare(fair, WRONG, RIGHT) == [{"win": 1.0, "same": True, "agrees": True}] * 10
    assert FOUND.compare(fair, RIGHT, WRONG) == [{"win": 0.0, "same": True, "agrees": True}] * 10
    assert FOUND.compare(lambda *_: "A", WRONG, RIGHT) == [{"win": 0.5, "same": False, "agrees": False}] * 10
    assert FOUND.compare(lambda *_: "A", WRONG, WRONG) == [{"win": 0.5, "same": False}] * 10


def test_only_a_clear_choice_counts():
    clear = {"A": "A", "答えは B です。": "B", "Ｂ": "B", " b です": "B"}
    for said in (*clear, "引き分け", "A と B は同じ", "Apple", "", "I see a tie"):
        assert FOUND.read_choice(said) == clear.get(said, ""), said


@pytest.fixture
def endpoint(monkeypatch):
    """127.0.0.1 の、OpenAI 互換の口。"""
    seen = {"reply": {"choices": [{"message": {"content": " b です"}}]}}

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            seen["path"], seen["key"] = self.path, self.headers["Authorization"]
            seen["body"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(seen.get("status", 200))
            self.end_headers()
            self.wfile.write(json.dumps(seen["reply"]).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/v1/"
    for name, value in (("KEY", "himitsu"), ("MODEL", "m"), ("URL", address)):
        monkeypatch.setenv(f"WORKSHOP_JUDGE_{name}", value)
    yield seen
    server.shutdown()
    server.server_close()


def test_the_judge_speaks_the_openai_protocol_and_hides_its_key(endpoint, capsys):
    assert FOUND.judge("質問", "一", "二") == "B"
    assert endpoint["path"] == "/v1/chat/completions" and endpoint["key"] == "Bearer himitsu"
    assert "一" in endpoint["body"]["messages"][0]["content"] and endpoint["body"]["model"] == "m"
    assert "himitsu" not in json.dumps(endpoint["body"]) + capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"WORKSHOP_JUDGE_URL": "http://127.0.0.1:9/v1"}, "URLError"),  # 誰も待っていない口
        ({"WORKSHOP_JUDGE_URL": "宛先の無い字"}, "ValueError"),
        ({"WORKSHOP_JUDGE_KEY": "himitsu\n"}, "ValueError"),
        ({"status": 401}, "401"),
        ({"reply": {"error": "himitsu"}}, "KeyError"),
        ({"reply": []}, "TypeError"),
    ],
)
def test_a_judge_that_does_not_answer_is_one_sentence_without_the_key(endpoint, monkeypatch, change, told):
    for name in filter(str.isupper, change):
        monkeypatch.setenv(name, change[name])
    endpoint |= change
    with pytest.raises(WorkshopError, match=f"審判が答えません（{told}）") as error:
        FOUND.judge("質問", "一", "二")
    assert "himitsu" not in str(error.value) and error.value.__suppress_context__
