"""A language model as verifier of what the rules cannot read, behind an endpoint that the test serves."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from vold_nemo.config import ConfigError, JudgeConfig, RewardConfig
from vold_nemo.rewards import Scorer, diagnose
from vold_nemo.rewards.alarms import require_verdicts


class Endpoint(BaseHTTPRequestHandler):
    """Says RIGHT where the response holds the reference answer; remembers what it was asked, and how many at a time."""

    asked: ClassVar[list] = []
    status, open_, most = 200, 0, 0
    together = threading.Condition()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with type(self).together:
            type(self).open_ += 1
            type(self).most = max(self.most, self.open_)
            type(self).together.notify_all()
            type(self).together.wait_for(lambda: self.open_ > 1, timeout=0.05)
        text = body["messages"][1]["content"]
        type(self).asked.append((self.path, self.headers.get("Authorization"), text))
        truth = text.split("Reference answer:\n")[1].split("\n")[0]
        said = "RIGHT" if truth in text.split("Response:\n")[1] else "WRONG"
        reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(type(self).status)
        self.end_headers()
        self.wfile.write(reply)
        type(self).open_ -= 1

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    Endpoint.asked, Endpoint.status, Endpoint.open_, Endpoint.most = [], 200, 0, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def scorer_of(url, tmp_path, verifier="judge(boxed)", **settings):
    judge = JudgeConfig(**{"url": url, "model": "m", "retries": 0, "key_variable": "MY_KEY", **settings})
    return Scorer(RewardConfig(verifier, judge=judge), cache=tmp_path / "judge.jsonl")


ANSWERS = [
    (r"\boxed{7}", "7", None, "3 + 4?"), (r"\boxed{8}", "7", None, "3 + 4?"), ("It is 7, surely", "7", None, "3 + 4?"),
    ("It is 7, surely", "7", None, "3 + 4?"), ("It is 8", "7", None, "3 + 4?"), ("", "7", None, "3 + 4?"),
]  # fmt: skip


def test_what_the_rule_reads_is_its_own_and_the_rest_is_asked_together_once_and_kept(url, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    verdicts = scorer_of(url, tmp_path).score(ANSWERS)
    assert [verdict.reward for verdict in verdicts] == [1, 0, 1, 1, 0, 0]
    assert [verdict.reason for verdict in verdicts] == [
        "equal", "differs", *["judge: right (no box)"] * 2, "judge: wrong (no box)", "judge: none (no box)",
    ]  # fmt: skip
    assert len(Endpoint.asked) == 2 and Endpoint.most == 2
    path, key, text = Endpoint.asked[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer sk-secret") and "Question:\n3 + 4?" in text
    assert scorer_of(url, tmp_path).score(ANSWERS) == verdicts
    assert len(Endpoint.asked) == 2, "the verdicts are in the cache"
    assert "secret" not in (tmp_path / "judge.jsonl").read_text()
    said = diagnose(verdicts, ["judge(boxed)"] * 6)["reward"]["by_verifier"]["judge(boxed)"]
    assert said["judged"] == pytest.approx(4 / 6)


def test_every_answer_is_asked_about_where_that_is_wanted(url, tmp_path):
    verdicts = scorer_of(url, tmp_path, reads="all").score(ANSWERS[:2])
    assert [verdict.reason for verdict in verdicts] == ["judge: right (equal)", "judge: wrong (differs)"]


def test_a_judge_that_does_not_answer_is_an_error_and_no_wrong_answer(url, tmp_path):
    Endpoint.status = 500
    answers = [(f"It is {i}", "7", None, "?") for i in range(40)]
    verdicts = scorer_of(url, tmp_path, parallel=2).score(answers)
    assert {(verdict.reward, verdict.trouble) for verdict in verdicts} == {(0.0, "error")}
    assert len(Endpoint.asked) < 10, "an endpoint that is gone is not asked again and again"
    with pytest.raises(ConfigError, match="the judge did not answer"):
        require_verdicts("step 1", [verdict.trouble for verdict in verdicts], [verdict.reason for verdict in verdicts])


def test_a_judge_that_refuses_the_key_stops_the_run_and_the_key_is_not_shown(url, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    Endpoint.status = 401
    with pytest.raises(ConfigError) as error:
        scorer_of(url, tmp_path).score(ANSWERS[2:3])
    assert error.value.key == "reward.judge.url" and "MY_KEY" in str(error.value) and "secret" not in str(error.value)


def test_it_is_off_until_an_endpoint_is_given_and_stands_alone():
    for verifier in ("judge", "judge(numeric)"):
        with pytest.raises(ConfigError, match=r"reward\.judge"):
            Scorer(RewardConfig(verifier)).check([None])
    with pytest.raises(ConfigError, match="judge alone"):
        Scorer(RewardConfig("0.5*judge+0.5*boxed"))
    Scorer(RewardConfig("boxed")).check([None])
