"""選好ペア: 規則の順位、審判の二度尋ね、試験の事実を使わないこと。"""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import from_notebook

from lib.data.facts import Example, find_leaks, make_split
from lib.errors import WorkshopError
from lib.profiles import get_profile
from lib.score.answers import is_correct, is_refusal
from lib.score.pairs import MADE_UP, RUDE, VAGUE, WRONG, fault, openai_judge, rank_pairs, written_pairs

FEE = Example("fee", "polite", "送料はいくらですか。", "送料は690円です。", ("690円",))
ASK = Example("na", "unanswerable", "社長は誰ですか。", "申し訳ありませんが、分かりかねます。", ())


@pytest.mark.parametrize(
    ("example", "answer", "expected"),
    [
        (FEE, "送料は690円です。", ""),
        (FEE, "690円になります", ""),
        (FEE, "送料は580円です。", WRONG),
        (FEE, "690円か580円です。", WRONG),
        (FEE, "地域によって変わります。", VAGUE),
        (FEE, "690円。見れば分かるだろ。", RUDE),
        (ASK, "申し訳ありませんが、分かりかねます。", ""),
        (ASK, "山田です。", MADE_UP),
    ],
)
def test_a_fault_has_one_of_four_names(example, answer, expected):
    assert fault(example, answer) == expected


def test_the_best_and_the_worst_answer_become_a_pair():
    samples = [
        ["送料は580円です。", "690円だ", "送料は690円です。", "送料は690円です。"],
        ["山田です。", "分かりかねます。"],
    ]
    rows = rank_pairs([FEE, ASK], samples)
    assert [(r["chosen"][0]["content"], r["rejected"][0]["content"], r["reason"]) for r in rows] == [
        ("送料は690円です。", "送料は580円です。", WRONG),
        ("分かりかねます。", "山田です。", MADE_UP),
    ]


def test_equal_answers_make_no_pair():
    assert rank_pairs([FEE], [["送料は690円です。", "690円です。"]]) == []
    assert rank_pairs([FEE], [["送料は690円です。"] * 4]) == []


def test_a_judge_counts_only_when_both_orders_agree():
    answers = [["送料は690円です。", "はい、送料は690円でございます。"]]

    def likes_long(question, a, b):
        return "A" if len(a) > len(b) else "B"

    def likes_first(question, a, b):
        return "A"

    (row,) = rank_pairs([FEE], answers, likes_long)
    assert row["chosen"][0]["content"].startswith("はい")
    assert rank_pairs([FEE], answers, likes_first) == []
    assert rank_pairs([FEE], answers, lambda *_: "") == []


def test_the_judge_speaks_the_openai_protocol_and_hides_its_key(monkeypatch):
    seen = {}

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            seen["path"], seen["key"] = self.path, self.headers["Authorization"]
            seen["body"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"choices": [{"message": {"content": " b です"}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WORKSHOP_JUDGE_KEY", "himitsu")
    url = f"http://127.0.0.1:{server.server_port}/v1"
    assert openai_judge(url, "m")("質問", "一", "二") == "B"
    assert seen["path"] == "/v1/chat/completions" and seen["key"] == "Bearer himitsu"
    assert "一" in seen["body"]["messages"][0]["content"] and "himitsu" not in json.dumps(seen["body"])
    server.shutdown()
    server.server_close()
    with pytest.raises(WorkshopError, match="審判が答えません") as error:
        openai_judge(url, "m", seconds=1)("質問", "一", "二")
    assert "himitsu" not in str(error.value)


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_written_pairs_never_touch_the_exam(lang):
    split = make_split(get_profile("embedded"), lang)
    rows = written_pairs(split, lang)
    assert set(Counter(row["reason"] for row in rows)) == {WRONG, MADE_UP, VAGUE, RUDE}
    held_out = [e.question for e in split.near + split.far + split.unseen + split.ask_test]
    assert find_leaks([row["prompt"][-1]["content"] for row in rows], held_out) == []
    by_fact = {e.fact_id: e for e in split.train}
    for row in rows:
        good, bad = row["chosen"][0]["content"], row["rejected"][0]["content"]
        if row["reason"] == MADE_UP:
            assert is_refusal(good) and not is_refusal(bad)
        else:
            example = next(e for e in by_fact.values() if all(f in good for f in e.figures))
            assert is_correct(example, good)
            assert fault(example, bad) == row["reason"] or lang == "en"


def test_choices_by_hand_become_pairs():
    made = from_notebook("05_preference", "pairs_by_hand").pairs_by_hand
    first, second = made([(FEE, "一", "二"), (ASK, "三", "四"), (FEE, "五", "六")], {0: "B", 2: "A"})
    sides = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in (first, second)]
    assert sides == [("二", "一"), ("五", "六")] and "人" in first["reason"] and first["prompt"] == FEE.prompt()
    assert set(first) == set(rank_pairs([FEE], [["分かりません", FEE.answer]])[0])
