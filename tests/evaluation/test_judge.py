"""A model as judge of what the rules cannot read, behind an endpoint that the test serves."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from tests.evaluation.cases.published import load
from tests.evaluation.rows import answer
from vold_nemo.config import ConfigError, JudgeConfig
from vold_nemo.evaluation.answer_row import AnswerRow
from vold_nemo.evaluation.judge import judge_rows


class Endpoint(BaseHTTPRequestHandler):
    """Says RIGHT where the response holds the reference answer; remembers what it was asked."""

    asked: ClassVar[list] = []
    status = 200

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append((self.path, self.headers.get("Authorization"), body))
        text = body["messages"][1]["content"]
        truth = text.split("Reference answer:\n")[1].split("\n")[0]
        said = "RIGHT" if truth in text.split("Response:\n")[1] else "WRONG"
        reply = json.dumps({"choices": [{"message": {"content": f"<think>WRONG?</think>{said}"}}]}).encode()
        self.send_response(type(self).status)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    Endpoint.asked, Endpoint.status = [], 200
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def unread(text: str, name: str) -> AnswerRow:
    return answer(False, set="mme", id=name, truth="Yes", text=text, extracted=None)


def test_the_judge_reads_what_the_rules_cannot_asks_once_and_shows_its_key_to_nobody(
    endpoint, folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    questions = {"mme": load(folder, "mme")}
    names = [q.id for q in questions["mme"]]
    config = JudgeConfig(url=endpoint, model="m", key_variable="MY_KEY", retries=0)
    rows = [unread("I should say Yes, certainly", names[0]), unread("Hardly.", names[1]), unread("", names[2])]
    rows.append(replace(unread("Yes", names[0]), extracted="yes", reward=1.0))
    judge_rows(rows, questions, config, tmp_path / "judge.jsonl")
    assert [(row.reward, row.judge, row.rule_reward) for row in rows] == [
        (1.0, "right", 0.0), (0.0, "wrong", 0.0), (0.0, "none", 0.0), (1.0, None, None)]  # fmt: skip
    assert len(Endpoint.asked) == 2 and Endpoint.asked[0][:2] == ("/v1/chat/completions", "Bearer sk-secret")
    judge_rows([unread("Hardly.", names[1])], questions, config, tmp_path / "judge.jsonl")
    assert len(Endpoint.asked) == 2, "the verdict is in the cache"
    assert "secret" not in (tmp_path / "judge.jsonl").read_text() + caplog.text
    Endpoint.status = 401
    with pytest.raises(ConfigError) as error:
        judge_rows([unread("Perhaps.", names[1])], questions, config, tmp_path / "judge.jsonl")
    assert "secret" not in str(error.value) and "MY_KEY" in str(error.value)
    Endpoint.status = 500
    row_ = unread("Perhaps.", names[1])
    judge_rows([row_], questions, config, tmp_path / "judge.jsonl")
    assert (row_.judge, row_.reward) == ("failed", 0.0)
