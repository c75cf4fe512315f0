"""Verifiers that hang, crash, print or eat memory: the answer is wrong, the others are not disturbed, nobody is left over."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from vold_nemo.config import RewardConfig
from vold_nemo.rewards import Scorer
from vold_nemo.rewards.pool import VerifierPool
from vold_nemo.rewards.worker import RETIRE

OWN = "tests.rewards.own_verifiers"


@pytest.fixture(scope="module")
def shared_pool():
    pool = VerifierPool(workers=2, seconds=5.0)
    yield pool
    pool.close()


@pytest.fixture
def pool(shared_pool):
    shared_pool.seconds = 5.0
    return shared_pool


def gone(pid, seconds=10.0):
    """Whether process ``pid`` ends (or is a zombie, which only waits to be counted) within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_verdicts_come_in_the_order_of_the_answers(pool):
    for truths in (200, 7, 1):  # answers to one truth stay together on a worker
        verdicts = pool.judge([(f"{OWN}:echo", f"{i % 3}/{i}", str(i % truths)) for i in range(200)])
        assert [verdict.extracted for verdict in verdicts] == [f"{i % 3}/{i}" for i in range(200)]
        assert [verdict.reward for verdict in verdicts] == [float(i % 3 > 0) for i in range(200)]


def test_answers_to_one_truth_still_keep_all_workers_busy(pool):
    pool.judge([(f"{OWN}:process", "x", "x")] * 2)
    began = time.monotonic()
    verdicts = pool.judge([(f"{OWN}:sleeps", "0.2", "x")] * 8)
    assert len({verdict.extracted for verdict in verdicts}) == 2
    assert time.monotonic() - began < 8 * 0.2


def test_a_hanging_answer_is_wrong_after_the_limit_and_the_others_are_judged(pool):
    pool.judge([(f"{OWN}:full", "x", "x")] * 2)
    pool.seconds, stuck = 1.0, set(pool.pids())
    items = [(f"{OWN}:hangs", "hang" if i == 3 else "fine", "x") for i in range(12)]
    verdicts = pool.judge(items)
    assert [verdict.reward for verdict in verdicts] == [0.0 if i == 3 else 1.0 for i in range(12)]
    assert (verdicts[3].reason, verdicts[3].trouble) == ("time-out: over 1 s of processor time", "time-out")
    assert [verdict.trouble for verdict in verdicts].count(None) == 11
    assert any(gone(pid, 0.5) for pid in stuck)


def test_an_answer_that_sleeps_has_a_limit_of_its_own():
    pool = VerifierPool(2, 5.0, wall=0.4)
    verdicts = pool.judge([(f"{OWN}:sleeps", seconds, "x") for seconds in ("600", "0", "0.1")])
    assert [verdict.reward for verdict in verdicts] == [0.0, 1.0, 1.0]
    assert (verdicts[0].reason, verdicts[0].trouble) == ("time-out: asleep for 0.4 s", "time-out")
    pool.close()


@pytest.mark.parametrize("name", ["in_threads", "in_children"])
def test_the_processor_time_of_threads_and_children_counts(pool, name):
    pool.seconds = 0.5
    verdicts = pool.judge([(f"{OWN}:{name}", seconds, "x") for seconds in ("0.05", "0.6")])
    assert [verdict.trouble for verdict in verdicts] == [None, "time-out"]


@pytest.mark.parametrize(("response", "status"), [("crash", -signal.SIGSEGV), ("exit", 3)])
def test_a_crash_costs_one_answer(pool, response, status):
    verdicts = pool.judge([(f"{OWN}:crashes", response if i == 2 else "fine", "x") for i in range(6)])
    assert [verdict.reward for verdict in verdicts] == [1, 1, 0, 1, 1, 1]
    assert (verdicts[2].reason, verdicts[2].trouble) == (f"the verifier crashed (exit {status})", "error")


def test_a_worker_that_is_killed_from_outside_costs_no_answer(pool, tmp_path):
    pool.judge([(f"{OWN}:full", "x", "x")] * 2)
    for pid in pool.pids():
        with contextlib.suppress(ProcessLookupError):  # of those that belong together, the others leave by themselves
            os.kill(pid, signal.SIGKILL)
        assert gone(pid)
    verdicts = pool.judge([(f"{OWN}:full", "x", "x")] * 6)
    assert [verdict.reward for verdict in verdicts] == [1.0] * 6


def test_an_answer_is_asked_once_more_after_a_death_and_after_a_time_out(tmp_path):
    pool = VerifierPool(1, 0.5, wall=0.5, isolation="off")  # they leave a file behind
    names = ("dies_once", "computes_once", "sleeps_once")
    verdicts = pool.judge([(f"{OWN}:{name}", str(tmp_path / name), "x") for name in names])
    assert [(verdict.reward, verdict.trouble) for verdict in verdicts] == [(1.0, None)] * 3
    assert (pool.crashes, pool.timeouts) == (1, 0)
    pool.close()


def test_a_worker_is_not_replaced_for_the_memory_of_the_trainer(pool):
    held = b"1" * (RETIRE + (64 << 20))  # as a trainer has; a process inherits its parent's peak in ru_maxrss
    pool.close()
    verdicts = pool.judge([(f"{OWN}:process", "x", "x")] * 6)
    assert len(held) > RETIRE and len({verdict.extracted for verdict in verdicts}) <= 2


def test_workers_run_on_the_cores_that_they_are_given():
    core = min(os.sched_getaffinity(0))
    pool = VerifierPool(1, 10.0, cores=[core])
    assert pool.judge([(f"{OWN}:cores", "x", "x")])[0].extracted == str(core)
    pool.close()
    pool = VerifierPool(1, 10.0, cores=[4095])  # one that a cgroup does not allow, say
    assert pool.judge([(f"{OWN}:cores", "x", "x")])[0].extracted == ",".join(map(str, sorted(os.sched_getaffinity(0))))
    pool.close()


def test_the_time_that_an_import_takes_is_charged_to_no_answer(pool):
    pool.judge([(f"{OWN}:full", "x", "x")] * 2)
    pool.seconds = 0.5
    verdicts = pool.judge([("tests.rewards.slow_import:right", "x", "x")] * 4)
    assert [verdict.reward for verdict in verdicts] == [1.0] * 4


def test_workers_can_be_started_before_there_is_anything_to_judge():
    pool = VerifierPool(2, 10.0)
    pool.start([f"{OWN}:process"])
    early = pool.keepers()
    assert len(early) == 2
    pool.judge([(f"{OWN}:process", "x", "x")] * 8)
    assert pool.keepers() == early
    pool.close()


def test_memory_is_bounded(pool):
    (verdict,) = pool.judge([(f"{OWN}:eats", "x", "x")])
    assert (verdict.reward, verdict.reason) == (0.0, "error: MemoryError: ")


def test_what_a_verifier_prints_is_not_taken_for_a_verdict(pool):
    assert [v.reward for v in pool.judge([(f"{OWN}:prints", "x", "x")] * 3)] == [1.0] * 3


def test_any_string_travels_to_the_verifier_and_back(pool):
    texts = ["\ud800", "\x00", "\n\r\n", '"]', "\u202e", "x" * 3_000_000, "\U0001f600"]
    verdicts = pool.judge([(f"{OWN}:truthy", text, text) for text in texts])
    assert [verdict.reward for verdict in verdicts] == [1.0] * len(texts)


def test_workers_that_cannot_start_stop_the_run_with_their_error(monkeypatch, tmp_path):
    (tmp_path / "vold_nemo").mkdir()
    (tmp_path / "vold_nemo" / "__init__.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"did not start(.|\n)*a broken installation"):
        VerifierPool(1, 1.0).judge([("math", "x", "x")])


TRAINER = """
import sys, time
from vold_nemo.rewards.pool import VerifierPool
pool = VerifierPool(2, 600.0)
pool.judge([("tests.rewards.own_verifiers:full", "x", "x")] * 2)
print(*pool.pids(), flush=True)
pool.judge([("tests.rewards.own_verifiers:hangs", "hang" if sys.argv[1] == "busy" else "x", "x")] * 2)
if sys.argv[1] == "raise":
    raise SystemExit(1)
time.sleep(600 if sys.argv[1] != "end" else 0)
"""


@pytest.mark.parametrize(
    ("way", "number"),
    [("busy", signal.SIGKILL), ("idle", signal.SIGKILL), ("busy", signal.SIGTERM), ("end", None), ("raise", None)],
    ids=["kill -9 while a verifier hangs", "kill -9", "TERM", "normal end", "error"],
)
def test_no_verifier_outlives_the_trainer(way, number):
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, way], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(pids) == 2
    if number is not None:
        time.sleep(0.3)
        trainer.send_signal(number)
    trainer.wait(30)
    assert all(gone(pid) for pid in pids)


def fuzzed(count, seed=0):
    """Box contents and truths made of the pieces that break parsers."""
    pieces = [
        "\\boxed{", "}", "{", "\\frac{1}{2}", "\\frac", "^{", "9^{9^9}", "\\sqrt[3]{", "\\begin{pmatrix}", "\\end{pmatrix}",
        "&", "\\\\", "1,000", "x=", "[1,2)", "\\cup", "\\infty", "%", "\\text{cm}", "\x00", "\ud800", "\u202e", "<think>",
        "</think>", "$", "\\left(", "\\right)", "B", "3.14", "-", "\\pi", "°", "!", "e", "\\log_", "\n", "∫", "\\{", "\\}", ",",
        "0",
    ]  # fmt: skip
    generator = random.Random(seed)
    for _ in range(count):
        body = "".join(generator.choices(pieces, k=generator.randint(1, 12)))
        yield body, generator.choice(["1", "x^2", "(1,2)", "B"])


def check_fuzzed(count):
    """``count`` bodies go straight to the workers' half, which real answers reach only through the screen, and as responses
    through the whole verifier; both in parts of 500, with a look at the workers' memory after each."""
    scorer = Scorer(RewardConfig("math", seconds=2.0, workers=2))
    pool, bodies = scorer._pool, list(fuzzed(count))
    most = 0
    for start in range(0, count, 500):
        part = bodies[start : start + 500]
        verdicts = pool.judge([("math", body, truth) for body, truth in part])
        responses = [f"\\boxed{{{body}}}" if i % 5 else body for i, (body, _) in enumerate(part)]
        verdicts += scorer.score([(response, truth, None) for response, (_, truth) in zip(responses, part, strict=True)])
        assert len(verdicts) == 2 * len(part) and all(verdict.reason and verdict.reward in (0, 1) for verdict in verdicts)
        most = max([most, *(psutil.Process(pid).memory_info().rss for pid in pool.pids())])
    pids = pool.pids()
    scorer.close()
    assert pool.crashes == 0
    assert most < 1.25 * RETIRE
    assert len(pids) <= 2 and all(gone(pid) for pid in pids)
    print(f"{count} bodies: {pool.timeouts} time-outs, {most / 2**20:.0f} MiB at most in a worker")


def test_a_thousand_fuzzed_answers_through_math_verify():
    check_fuzzed(1000)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_fuzzed_answers_through_math_verify():
    check_fuzzed(10_000)
