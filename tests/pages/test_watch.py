"""recipes/watch.py sees a run through its files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vold_nemo.config.launcher import CONFIGURATION_ERROR
from vold_nemo.pages.watch import look, render
from vold_nemo.planning import queue

ROOT = Path(__file__).parents[2]


def write_run(folder: Path) -> None:
    for name in ("heartbeat", "checkpoints", "stacks"):
        (folder / name).mkdir(parents=True)
    lines = [
        {"step": step, "loss": 1.0 / step, "reward_mean": step / 10, "seconds": {"generate": 3.0, "train": 1.0},
         "memory": {"peak_bytes": 3 * 2**30}, "update_skipped": step == 2,
         "mismatch": {"mean": 0.00123, "max": 0.5, "k3": 0.0, "effective_sample_size": 0.987},
         "refill": {"rounds": 1, "dropped_groups": step, "silent_groups": 0},
         "slowest": {"generate": {"rank": 2, "seconds": 6.0, "median": 3.0},
                     "train": {"rank": 0, "seconds": 1.0, "median": 0.9}}}
        for step in range(1, 5)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    for rank, (step, phase, seconds, beat) in enumerate([(4, "agree", 2, 995), (4, "agree", 1, 996), (4, "train", 40, 800)]):
        (folder / "heartbeat" / f"rank_{rank}.json").write_text(json.dumps({
            "rank": rank, "world": 3, "step": step, "total": 10, "phase": phase, "host": f"node{rank}", "process": 1,
            "seconds_in_phase": seconds, "time": beat,
        }))  # fmt: skip
    (folder / "checkpoints" / "latest").write_text("step_3\n")


def test_progress_pace_and_the_rank_that_is_behind(tmp_path):
    write_run(tmp_path)
    said = render(look(tmp_path, now=1000.0))
    assert "4/10 [############..................] 4.0 s a step, about 24 s left" in said  # 6 steps of 4 s; torn line ignored
    assert "reward_mean         0.4          mean of 4: 0.25" in said
    assert "generate 3.00 (75%), train 1.00 (25%)" in said and "3.00 GiB" in said
    assert "mismatch    engine and trainer 0.00123 a token, at most 0.5, weights worth 98.7% of the tokens" in said
    assert "refill      4 group(s) without signal drawn anew, mean of 4: 2.5" in said
    assert "longest     rank 2 on node2: train, 40 s" in said
    assert "STRAGGLER   rank 2 on node2: generate took 6.0 s, the median rank 3.0 s" in said and said.count("STRAGGLER") == 1
    assert "SILENT      rank 2 on node2 for 3 min 20 s, train" in said and "SILENT      rank 1" not in said
    assert "checkpoint  step_3" in said and "SKIPPED     1 update" in said and "STUCK" not in said
    (tmp_path / "stacks" / "rank_2.txt").write_text("")
    assert "STUCK       stacks of 1 rank(s)" in render(look(tmp_path, now=1000.0))


def test_from_the_command_line_before_the_first_step_and_without_a_run(tmp_path):
    def call(*arguments):
        command = [sys.executable, str(ROOT / "recipes/watch.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)

    run = tmp_path / "experiment" / "sft"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    assert "no step yet\ncheckpoint  none yet" in call(run, "--once").stdout
    inside = f"runs inside: {run}"
    for folder, mend in (tmp_path / "none", "see outputs"), (run.parent, inside), (tmp_path, inside):
        missing = call(folder, "--once")
        assert missing.returncode == CONFIGURATION_ERROR and "a run folder" in missing.stderr and mend in missing.stderr
    backwards = call(run, "--every", "-1")
    assert backwards.returncode == CONFIGURATION_ERROR and "more than 0" in backwards.stderr


def test_a_run_that_has_ended_is_not_silent(tmp_path):
    write_run(tmp_path)
    for rank, phase in enumerate(("done", "done", "done")):
        file = tmp_path / "heartbeat" / f"rank_{rank}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"phase": phase, "time": 940}))
    said = render(look(tmp_path, now=1000.0))
    assert "ended       1 min 00 s ago, done (3 rank(s))" in said and "SILENT" not in said and "longest" not in said
    file.write_text(json.dumps(json.loads(file.read_text()) | {"phase": "failed"}))
    assert "FAILED (1 rank(s), first 2)" in render(look(tmp_path, now=1000.0))


@pytest.mark.parametrize(
    ("state", "restarts", "beats", "said", "unsaid"),
    [
        ("PENDING", 0, None, "PENDING (Priority): not begun", "SILENT"),
        ("PENDING", 1, 100, "PENDING (Priority): back in the queue for attempt 2", "SILENT"),
        ("RUNNING", 0, 100, "RUNNING for 30 s, attempt 1: its ranks have not begun yet", "SILENT"),
        ("RUNNING", 2, 990, "RUNNING for 30 s, attempt 3", "have not begun"),
        ("COMPLETED", 0, 990, "COMPLETED, in attempt 1", "queue"),
        ("TIMEOUT", 1, 100, "TIMEOUT, in attempt 2", "queue"),
        (None, 0, None, "was submitted; the Slurm here", "queue for"),
    ],
)
def test_a_job_is_what_slurm_says_it_is(tmp_path, monkeypatch, state, restarts, beats, said, unsaid):
    """``beats``: the second of the ranks' last sign of life; now is 1000, and the job has run for 30 s."""
    run = tmp_path / "tiny/sft"
    (tmp_path / "tiny/slurm").mkdir(parents=True)
    (tmp_path / "tiny/slurm/sft.json").write_text(json.dumps({"job": "17", "run": str(run)}))
    (tmp_path / "tiny/slurm/vold.json").write_text(json.dumps({"job": "18", "run": str(tmp_path / "tiny/other")}))
    if beats is not None:
        (run / "heartbeat").mkdir(parents=True)
        (run / "heartbeat/rank_0.json").write_text(json.dumps({
            "rank": 0, "step": 1, "total": 3, "phase": "train", "host": "n1", "time": beats, "seconds_in_phase": 1, "job": "16",
        }))  # fmt: skip
    asked = []
    job = None if state is None else queue.Job(state, "Priority", restarts, 30)
    monkeypatch.setattr(queue, "look", lambda number: asked.append(number) or job)
    shown = render(look(run, now=1000.0))
    assert asked == ["17"] and said in shown and unsaid not in shown


def test_what_scontrol_writes_is_read(monkeypatch):
    line = "JobId=17 JobName=x JobState=RUNNING Reason=None Requeue=1 Restarts=2 RunTime=1-02:03:04 TimeLimit=2-00:00:00\n"
    done = subprocess.CompletedProcess([], 0, line, "")
    monkeypatch.setattr(queue, "_run", lambda command: done)
    assert queue.look("17") == queue.Job("RUNNING", "None", 2, 93784)
    done.returncode, done.stdout = 1, "slurm_load_jobs error: Invalid job id specified"
    assert queue.look("17") is None and queue.seconds("INVALID") == 0
