"""Verifiers that mean harm: what they try has no effect outside, and costs nobody else an answer."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest

from tests.rewards.hostile_verifiers import work
from tests.rewards.test_pool import gone
from vold_nemo.config import ConfigError
from vold_nemo.rewards import pool as pools
from vold_nemo.rewards import sandbox
from vold_nemo.rewards.pool import VerifierPool
from vold_nemo.rewards.replies import LONGEST, Broken, Replies, packed

HOSTILE = "tests.rewards.hostile_verifiers"
HELD = sandbox.probe()
long = pytest.mark.long  # each death and time-out costs a fresh worker
needs_network = pytest.mark.skipif(not HELD.network, reason="this kernel leaves verifiers the network")
needs_files = pytest.mark.skipif(not HELD.files, reason="this kernel lets verifiers change files")


@pytest.fixture(scope="module")
def shared_pool():
    pool = VerifierPool(2, 1.0, wall=0.5)
    yield pool
    pool.close()


@pytest.fixture
def pool(shared_pool):
    return shared_pool


def ask(pool, name, truth="x", others=4):
    """The hostile verdict, among ordinary answers that must not suffer."""
    asked = [(f"{HOSTILE}:right", str(i), "x") for i in range(others)]
    hostile, *rest = pool.judge([(f"{HOSTILE}:{name}", "x", truth), *asked])
    assert [verdict.reward for verdict in rest] == [1.0] * others
    return hostile


def bearing(word):
    """Processes with ``word`` on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(word == part for part in process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


@pytest.mark.parametrize("isolation", ["auto", pytest.param("off", marks=long)])
@pytest.mark.parametrize("name", ["leaves_children", pytest.param("leaves_programs", marks=long)])
def test_what_an_answer_leaves_running_is_gone_before_the_next(name, isolation):
    pool, word = VerifierPool(1, 5.0, isolation=isolation), uuid.uuid4().hex
    assert ask(pool, name, word).reward == 1.0
    assert not bearing(word)
    keepers = pool.keepers()
    pool.close()
    assert all(gone(pid) for pid in keepers)


@long
@pytest.mark.parametrize("isolation", ["auto", "off"])
def test_a_fork_bomb_ends_with_its_answer(isolation):
    pool = VerifierPool(1, 1.0, isolation=isolation)
    verdict = ask(pool, "bombs")
    assert (verdict.reward, verdict.trouble) == (0.0, verdict.trouble) and verdict.trouble in ("error", "time-out")
    me = psutil.Process()
    assert len(me.children(recursive=True)) <= 2  # one keeper and its worker, at most
    pool.close()


@long
@pytest.mark.parametrize("name", ["ignores_signals", "waits_in_a_thread", "stops_itself"])
def test_nothing_that_a_verifier_ignores_or_waits_for_keeps_it(pool, name):
    assert ask(pool, name).trouble == "time-out"


@long
def test_a_thread_that_is_left_ends_nobody_elses_answer(pool):
    asked = [(f"{HOSTILE}:leaves_a_thread", str(i), "x") for i in range(3)]
    verdicts = pool.judge(asked + [(f"{HOSTILE}:right", "x", "y")] * 3)
    assert [verdict.reward for verdict in verdicts] == [1.0] * 6
    assert pool.crashes == 0


@long
def test_an_exit_without_a_word_is_a_crash(pool):
    assert ask(pool, "leaves").reason == "the verifier crashed (exit 0)"


@pytest.mark.parametrize("name", ["forges", pytest.param("noise", marks=long), pytest.param("floods", marks=long)])
def test_what_is_written_into_the_replies_is_no_reply(pool, name):
    verdict = ask(pool, name)
    assert (verdict.reward, verdict.trouble) == (0.0, "error")
    assert verdict.reason.startswith("the verifier wrote into its replies")


@long
def test_a_huge_reply_is_cut_short_and_noise_goes_nowhere(pool):
    verdict = ask(pool, "huge")
    assert verdict.reward == 1.0 and len(verdict.extracted) < 1000 and len(verdict.reason) < 1000
    assert ask(pool, "loud").reward == 1.0
    assert ask(pool, "reads").extracted == ""


@pytest.mark.parametrize("isolation", ["auto", pytest.param("off", marks=long)])
@pytest.mark.parametrize("name", ["mapped", pytest.param("segment", marks=long)])
def test_shared_memory_counts(name, isolation):
    pool, word = VerifierPool(1, 20.0, isolation=isolation), f"vold-{uuid.uuid4().hex[:8]}"
    verdict = ask(pool, name, word, others=1)
    assert (verdict.reward, verdict.trouble) == (0.0, "error")
    assert not Path("/dev/shm", word).exists() or Path("/dev/shm", word).stat().st_size <= sandbox.LARGEST_FILE
    Path("/dev/shm", word).unlink(missing_ok=True)
    pool.close()


@long
@needs_network
@pytest.mark.parametrize("name", ["connects", "datagram"])
def test_no_network(pool, name):
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        here.listen()
        verdict = ask(pool, name, f"127.0.0.1:{here.getsockname()[1]}")
        assert (verdict.reward, verdict.trouble) == (0.0, "error")
        here.settimeout(0.1)
        with pytest.raises(TimeoutError):
            here.accept()


@long
@needs_network
def test_no_socket_of_this_machine(pool, tmp_path):
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as here:
        here.bind(f"{short}/socket")
        here.listen()
        assert ask(pool, "at_a_path", f"{short}/socket").trouble == "error"


@long
@needs_files
@pytest.mark.parametrize("name", ["writes", "creates", "removes", "renames", "truncates", "breaks_out"])
def test_no_file_is_changed(pool, tmp_path, name):
    file = tmp_path / "weights.safetensors"
    file.write_text("as it was")
    verdict = ask(pool, name, str(file))
    assert (verdict.reward, verdict.trouble) == (0.0, "error")
    assert file.read_text() == "as it was" and os.listdir(tmp_path) == [file.name]


def test_a_verifier_has_a_folder_of_its_own_that_ends_with_it():
    pool = VerifierPool(1, 5.0)
    verdict = ask(pool, "in_its_own_folder")
    assert verdict.reward == 1.0
    folder = Path(verdict.extracted).parent
    assert folder.is_dir() and not any(folder.iterdir())
    pool.close()
    assert not folder.exists()


def test_secrets_of_the_environment_stay_with_the_trainer(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("MY_TABLE", "/data/table")
    pool = VerifierPool(1, 5.0, variables=["MY_TABLE"])
    seen = ask(pool, "environment").extracted.rstrip(".").split(",")
    assert "MY_TABLE" in seen and not {"HF_TOKEN", "WANDB_API_KEY"} & set(seen)
    assert len(seen) < 30
    if HELD.processes:
        assert "hf_secret" not in (ask(pool, "others", str(os.getpid())).extracted or "")
    pool.close()


def test_isolation_that_is_required_and_not_there_stops_the_run(monkeypatch):
    monkeypatch.setattr(pools.Held, "missing", lambda self: "use the network")
    with pytest.raises(ConfigError) as error:
        VerifierPool(1, 5.0, isolation="required").judge([(f"{HOSTILE}:right", "x", "x")])
    assert error.value.key == "reward.isolation" and "use the network" in str(error.value)


def test_what_is_missing_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(pools.Held, "missing", lambda self: "change files")
    pool = VerifierPool(2, 5.0)
    pool.judge([(f"{HOSTILE}:right", str(i), "x") for i in range(4)])
    pool.close()
    assert [record.message for record in caplog.records].count(
        "verifiers are not wholly isolated on this node: one could change files (docs/verifiers.md)") == 1  # fmt: skip


def test_each_lock_that_is_missing_is_named():
    assert sandbox.Held("a filter", "Landlock 1", "a process namespace").missing() == ""
    assert sandbox.Held(files="Landlock 1").missing() == "use the network and end its keeper"
    assert sandbox.Held().describe() == "nothing is held"


def test_each_way_alone_holds(tmp_path):
    """A kernel without user namespaces, or without Landlock, or neither: what the other way is said to hold, it holds."""
    file = tmp_path / "file"
    file.write_text("as it was")
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        here.listen()
        for taken in (["leave"], ["write_only_below", "deny_calls"]):
            said = alone(taken, str(file), here.getsockname()[1])
            assert said["held"] == [bool(said["network"]), bool(said["files"])], (taken, said)
    assert file.read_text() == "as it was"


def alone(taken, file, port):
    """In a process of its own, without the functions ``taken`` of ``kernel``: what is said to be held, and what is."""
    program = """
import json, os, socket, sys, tempfile
from vold_nemo.rewards import kernel, sandbox
for name in json.loads(sys.argv[1]):
    setattr(kernel, name, lambda *_: False)
apart = sandbox.move_out()
if (child := os.fork()) == 0:
    held = sandbox.shut_in(tempfile.mkdtemp(), apart)
    found = {"held": [bool(held.network), bool(held.files)], "network": False, "files": False}
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[3])), timeout=5)
    except OSError:
        found["network"] = True
    try:
        open(sys.argv[2], "w").close()
    except OSError:
        found["files"] = True
    print(json.dumps(found), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", program, json.dumps(taken), file, str(port)], capture_output=True, text=True)
    return json.loads(done.stdout)


def test_a_reply_comes_whole_in_any_parts_and_nothing_else_does():
    key, said = os.urandom(16), [1.0, "\ud800\x00", "equal", None, False, 0.0]
    whole = packed(said, key)
    replies = Replies()
    found = [replies.feed(whole[i : i + 1], key) for i in range(len(whole))]
    assert found[:-1] == [None] * (len(whole) - 1) and found[-1] == said
    assert replies.feed(whole, key) == said
    parts = whole[:4], whole[4:9], whole[9:]
    changed = parts[0] + parts[1] + bytes([whole[9] ^ 1]) + parts[2][1:]
    for broken in (b"x" + whole, whole + b"x", whole[:4] + b"\xff" + whole[5:], whole[:-1] + b" ", changed):
        with pytest.raises(Broken):
            Replies().feed(broken, key)
    with pytest.raises(Broken):
        Replies().feed(packed(said, os.urandom(16)), key)
    with pytest.raises(Broken):
        Replies().feed(packed("x" * LONGEST, key), key)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_hundred_slow_right_answers_under_sixteen_busy_loops():
    """Each takes a good third of the limit on an idle core: a fixed amount of work, measured in processor time."""
    began = time.process_time()
    work(1_000_000)
    rounds, limit = int(0.15 / (time.process_time() - began) * 1_000_000), 0.4
    loops = [psutil.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(16)]
    pool = VerifierPool(2, limit)
    try:
        verdicts = pool.judge([(f"{HOSTILE}:works", f"{rounds}/{i}", "x") for i in range(200)])
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        pool.close()
    assert sum(verdict.reward for verdict in verdicts) == 200
