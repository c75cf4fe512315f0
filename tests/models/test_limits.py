"""A rank that hangs is found and all stacks are written; a run keeps its wall-clock budget by itself."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vold_nemo.models import stopping
from vold_nemo.models.heartbeat import STUCK

# Two ranks that step together; rank 1 stops stepping in the way that is tried.
PROGRAM = """
import sys, time, re
import torch.distributed as dist
from pathlib import Path
from vold_nemo.models import heartbeat

rank, folder, way = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

def sleeps_over_a_lock():
    time.sleep(600)

def spins():
    while True:
        pass

with heartbeat.Heartbeat(folder, rank=rank, world=2, limit=2.0) as heart:
    for step in range(3):
        heart.note("generate", step)
        if rank == 1 and step == 1 and way != "works":
            {"sleeps": sleeps_over_a_lock, "spins": spins}[way]()
        heartbeat.note("agree")
        dist.barrier()
        time.sleep(0.3)
print("done")
"""


def two_ranks(tmp_path: Path, way: str) -> tuple[list[int], list[str]]:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    root = str(Path(__file__).parents[2])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(tmp_path), way], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], errors


@pytest.mark.parametrize("way", ["sleeps", pytest.param("spins", marks=pytest.mark.long)])
def test_a_rank_that_hangs_ends_the_run_with_all_stacks(tmp_path, way):
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "rank_0.txt").write_text("of the attempt before")
    codes, errors = two_ranks(tmp_path, way)
    assert codes == [STUCK, STUCK]
    waits, hangs = ((tmp_path / "stacks" / f"rank_{rank}.txt").read_text() for rank in range(2))
    assert "step 2, phase agree" in waits and "barrier" in waits
    assert "step 2, phase generate" in hangs and {"sleeps": "in sleeps_over_a_lock", "spins": "in spins"}[way] in hangs
    assert "step 2, phase generate" in errors[1] and "stacks of all ranks" in errors[1]
    assert (tmp_path / "stacks" / "rank_0.before").read_text() == "of the attempt before"


def test_a_run_that_goes_on_is_left_alone(tmp_path):
    codes, _ = two_ranks(tmp_path, "works")
    assert codes == [0, 0]
    assert not list((tmp_path / "stacks").iterdir())


class OneRank:
    """In place of torch.distributed: the flag of a lone rank is everybody's."""

    class ReduceOp:
        MAX = "max"

    @staticmethod
    def all_reduce(flag, op):
        assert op == "max"


@pytest.fixture
def alone(monkeypatch):
    """A lone rank, and a clock that the test moves."""
    clock = [100.0]
    monkeypatch.setattr(stopping, "dist", OneRank)
    monkeypatch.setattr(stopping, "STARTED", 100.0)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    return clock


def test_the_step_that_would_outlast_the_budget_is_not_begun(alone):
    with stopping.Stop(budget=100) as stop:
        answers = []
        for seconds in (10, 30, 10, 10):
            alone[0] += seconds
            answers.append(stop.agreed("cpu"))
    # 60 s are gone after the last step; another one may take 1.5 x 30 s
    assert answers == [False, False, False, True]
    assert stop.reason == "limits.wall_minutes = 1.66667"


def test_the_budget_holds_room_for_the_last_checkpoint_that_no_thread_will_write(alone):
    with stopping.Stop(budget=100) as stop:
        alone[0] += 10
        assert not stop.agreed("cpu")
        stop.reserve = 50.0
        alone[0] += 10
        assert stop.agreed("cpu")  # 80 s are left; a step and a checkpoint may take 1.5 x (10 + 50)


def test_without_a_budget_only_a_signal_stops(alone):
    with stopping.Stop() as stop:
        alone[0] += 1e9
        assert not stop.agreed("cpu")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.agreed("cpu") and stop.reason == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_clock_that_is_set_back_changes_nothing(alone, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: -1e9)
    with stopping.Stop(budget=100) as stop:
        alone[0] += 10
        assert not stop.agreed("cpu")


def interrupted(folder: Path, seconds: float, *pauses: float) -> tuple[int, str]:
    """Exit code and words of a step of so many seconds that gets a Ctrl-C after each pause."""
    said = folder / "said"
    ready, waiting = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        stopping.dist = OneRank
        with stopping.Stop() as stop:
            os.write(waiting, b"1")
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(0.01)
            os.write(2, f"agreed: {stop.agreed('cpu')}, {stop.reason}".encode())
        os._exit(0)
    os.read(ready, 1)
    for pause in pauses:
        time.sleep(pause)
        os.kill(child, signal.SIGINT)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()


def test_the_first_ctrl_c_ends_the_step_and_the_second_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "SAME", 0.3)
    code, said = interrupted(tmp_path, 1.0, 0.0, 0.01)  # a launcher passes the terminal's own on: the same one, twice
    assert code == 0 and "this step is finished" in said and "agreed: True, Ctrl-C" in said
    code, said = interrupted(tmp_path, 60.0, 0.0, 0.6)
    assert code == 130 and "left at once" in said and "agreed" not in said
