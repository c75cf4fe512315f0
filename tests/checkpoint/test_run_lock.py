"""One run, one folder, one writer: the living are left alone, the dead are followed, on this node and on others."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from vold_nemo.checkpoint import run_lock
from vold_nemo.checkpoint.run_lock import Lock, this_process
from vold_nemo.config import ConfigError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    monkeypatch.setattr(run_lock, "PATIENCE", 0.4)


def elsewhere(**other):
    """Who holds a lock on another node."""
    return {**this_process(), "host": "node9", "boot": "another", "process": 1, **other}


def test_a_living_holder_is_named_and_left_alone(tmp_path):
    first = Lock(tmp_path)
    first.take()
    with pytest.raises(ConfigError) as refused:
        Lock(tmp_path).take()
    said = str(refused.value)
    assert f"process {os.getpid()} on {first.me['host']}" in said and first.me["since"] in said and "run.lock" in said
    first.release()
    again = Lock(tmp_path)
    again.take()
    again.release()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_of_this_node_is_followed_with_a_word(tmp_path, caplog):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = {**this_process(), "process": int(done.stdout), "started": 5}
    (tmp_path / "run.lock").write_text(json.dumps(dead))
    lock = Lock(tmp_path)
    began = time.monotonic()
    lock.take()
    assert time.monotonic() - began < run_lock.PATIENCE  # it is known, not waited for
    assert f"taken over from process {dead['process']}" in caplog.text and "its process is gone" in caplog.text
    lock.release()


def test_another_process_under_the_number_of_the_dead_is_not_the_holder(tmp_path, caplog):
    (tmp_path / "run.lock").write_text(json.dumps({**this_process(), "process": os.getppid(), "started": -1}))
    lock = Lock(tmp_path)
    lock.take()
    assert "its process is gone" in caplog.text
    lock.release()


def test_a_stopped_process_lives(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        os.kill(other.pid, 19)
        holder = {**this_process(), "process": other.pid, "started": run_lock._started(other.pid)}
        (tmp_path / "run.lock").write_text(json.dumps(holder))
        with pytest.raises(ConfigError, match=f"process {other.pid}"):
            Lock(tmp_path).take()
        other.kill()


def test_on_another_node_a_sign_of_life_decides(tmp_path, caplog):
    alive = Lock(tmp_path, elsewhere())
    alive.take()
    with pytest.raises(ConfigError, match="process 1 on node9"):
        Lock(tmp_path).take()
    alive._done.set()  # its node has lost its power
    alive._thread.join()
    lock = Lock(tmp_path)
    lock.take()
    assert "no sign of life" in caplog.text
    with pytest.raises(ConfigError, match="taken over by process"):
        alive.check()
    alive.release()
    lock.check()  # what the other left alone
    lock.release()


def test_a_job_that_was_requeued_follows_itself_at_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (tmp_path / "run.lock").write_text(json.dumps(elsewhere(restart=0)))
    lock = Lock(tmp_path)
    lock.take()
    assert "requeued" in caplog.text
    lock.release()


@pytest.mark.parametrize(
    ("answer", "dead"),
    [("exit 0", True), ("echo COMPLETED", True), ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", True),
     ("echo RUNNING", False), ("echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1", False)],
)  # fmt: skip
def test_slurm_is_asked_about_jobs_of_other_nodes(answer, dead, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.05)
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.lock").write_text(json.dumps(elsewhere(job="77")))
    lock = Lock(run)
    lock.take()
    assert ("Slurm's job 77 is over" in caplog.text) == dead and ("no sign of life" in caplog.text) != dead
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"restart": "x"}', '{"process": "x"}'])
def test_a_lock_that_says_nothing_is_waited_for_and_followed(content, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.05)
    (tmp_path / "run.lock").write_text(content)
    lock = Lock(tmp_path)
    lock.take()
    assert "no sign of life" in caplog.text
    lock.release()


@pytest.mark.parametrize("again", range(5))
def test_of_many_who_follow_the_dead_one_holds(tmp_path, again):
    (tmp_path / "run.lock").write_text(json.dumps({**this_process(), "process": 2**22 + 1, "started": 1}))
    locks, refused, start = [Lock(tmp_path, {**this_process(), "id": str(n)}) for n in range(8)], [], threading.Barrier(8)

    def take(lock):
        start.wait()
        try:
            lock.take()
        except ConfigError:
            refused.append(lock)

    threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    (holder,) = [lock for lock in locks if lock not in refused]
    holder.check()
    holder.release()
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="outputs"):
        Lock(tmp_path / "file").take()


def test_who_holds_nothing_is_not_asked_and_who_lost_it_is_stopped(tmp_path):
    run_lock.still_ours()
    with run_lock.held(tmp_path, 0):
        run_lock.still_ours()
        (tmp_path / "run.lock").write_text(json.dumps(elsewhere()))
        with pytest.raises(ConfigError, match="this one stops"):
            run_lock.still_ours()
    assert (tmp_path / "run.lock").exists()  # the other's
