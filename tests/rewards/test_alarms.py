"""What a step says about its verdicts, and what is said aloud."""

import json

from tests.pages.test_watch import write_run
from vold_nemo.pages.watch import look, render
from vold_nemo.rewards import Verdict, diagnose
from vold_nemo.rewards.alarms import Bell, alarms, of_keys
from vold_nemo.rewards.key_forms import report_keys

NO_BOX, RIGHT = Verdict(0.0, None, "no box"), Verdict(1.0, "1", "equal")
CRASHED = Verdict(0.0, None, "the verifier crashed (exit 3)", "error")


def step(verdicts, verifiers=None, cut_off=(), longest=8192):
    """As metrics.jsonl has it."""
    found = diagnose(verdicts, verifiers or ["boxed"] * len(verdicts), cut_off)
    mean = sum(verdict.reward for verdict in verdicts) / len(verdicts)
    return json.loads(json.dumps({"step": 12, "reward_mean": mean, "response_tokens": {"max": longest}, **found}))


def test_the_diagnosis_counts_what_was_read_what_hung_and_what_failed():
    errors = [Verdict(0.0, None, f"error: ValueError: {what}", "error") for what in "xy"]
    verdicts = [RIGHT, NO_BOX, Verdict(0.0, "x", "time-out: over 2 s of processor time", "time-out"), CRASHED, *errors]
    verifiers = ["boxed", "boxed", "math", "math", "math", "math"]
    assert diagnose(verdicts, verifiers, [False, True, *[False] * 4]) == {"reward": {
        "parsed_rate": 2 / 6, "timeouts": 1, "errors": 3, "answers": {"boxed": 2, "math": 4},
        "by_verifier": {
            "boxed": {"right": 0.5, "unread": 0.5, "cut_off": 0.5, "trouble": 0.0, "reasons": [["no box", 0.5]]},
            "math": {"right": 0.0, "unread": 1.0, "cut_off": 0.0, "trouble": 1.0, "reasons": [
                ["error: ValueError", 0.5], ["time-out: over 2 s of processor time", 0.25],
                ["the verifier crashed (exit 3)", 0.25]]},
        },
    }}  # fmt: skip


def test_an_own_verifier_that_gives_numbers_alone_leaves_nothing_unread():
    verdicts = [Verdict(0.0, None, "wrong"), Verdict(1.0, None, "right")]
    said = diagnose(verdicts, ["a:b"] * 2)["reward"]["by_verifier"]["a:b"]
    assert said["unread"] == 0.0 and alarms(step([Verdict(0.0, None, "wrong"), Verdict(0.5, None, "wrong")])) == []


def test_a_step_without_boxes_says_so_in_one_sentence():
    verdicts = [NO_BOX] * 96 + [Verdict(0.0, "3", "differs")] * 4
    assert alarms(step(verdicts, cut_off=[i < 41 for i in range(100)])) == [
        "reward 0.000; 96 % of answers have no box, 41 % were cut off at 8192"
    ]


def test_what_is_said_depends_on_what_is_wrong():
    wrong = Verdict(0.0, "3", "differs")
    assert alarms(step([RIGHT] + [wrong] * 9)) == []
    assert alarms(step([wrong] * 10)) == ["reward 0.000; 100 % of answers differ from the key"]
    assert alarms(step([RIGHT] * 5 + [wrong] * 5, cut_off=[False] * 4 + [True] * 6)) == [
        "reward 0.500; 50 % of answers differ from the key, 60 % were cut off at 8192"]  # fmt: skip
    assert alarms(step([RIGHT] * 97 + [CRASHED] * 3)) == ["reward 0.970; 3 % of answers: the verifier crashed (exit 3)"]
    assert alarms(step([RIGHT] * 2 + [CRASHED] * 2, ["boxed"] * 2 + ["mine"] * 2)) == [
        "reward 0.500, mine: 0 % right; 100 % of answers: the verifier crashed (exit 3)"]  # fmt: skip
    assert alarms({"step": 1, "loss": 2.0}) == []  # stage 1, and runs of before


def test_an_alarm_that_lasts_is_repeated_now_and_then():
    bell, silent = Bell(), step([RIGHT])
    told = [number for number in range(1, 31) if bell.ring(number, step([NO_BOX] * 4) if number != 5 else silent)]
    assert told == [1, 11, 21]
    assert bell.ring(31, step([CRASHED] * 4))


def test_watch_shows_the_alarm_of_the_last_step(tmp_path):
    write_run(tmp_path)
    file = tmp_path / "metrics.jsonl"
    lines = file.read_text().splitlines()[:-1]  # the very last is torn
    bad = {**json.loads(lines[-1]), **step([NO_BOX] * 4, cut_off=[True] * 4)}
    file.write_text("\n".join([*lines, json.dumps(bad)]) + "\n")
    assert "REWARD      step 12: reward 0.000; 100 % of answers have no box, 100 % were cut off at 8192" in render(
        look(tmp_path, now=1000.0)
    )


def test_keys_that_can_never_be_right_are_said_at_load():
    keys = [("a", "7", None)] * 7 + [("b", "first line\nsecond line", None)] * 3
    (report,) = report_keys(keys, "math")
    said = of_keys(report)
    assert said.startswith("30% of the keys (3 of 10) can never be right under math") and "below 0.70" in said
    (report,) = report_keys(keys[:7], "math")
    assert of_keys(report) is None
