"""A disk that is full ends no run: lines and files wait, are said, and catch up."""

import json
import os
import resource
from contextlib import contextmanager

import pytest

from vold_nemo.checkpoint.journal import Backlog, Journal
from vold_nemo.checkpoint.run_folder import MISSED, Run


@contextmanager
def no_file_above(size):
    """No file may grow beyond ``size`` bytes: a write that would is cut, and fails (as on a full disk)."""
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_lines_wait_whole_and_catch_up_in_order(tmp_path, caplog):
    journal = Journal(tmp_path / "lines")
    assert journal.add("first")
    with no_file_above(10):
        assert not journal.add("second") and not journal.add("third")
        assert (tmp_path / "lines").read_text() == "first\n"  # no torn line, although four bytes had room
        assert caplog.text.count("the run goes on") == 1
    assert journal.add("fourth") and not journal.waiting
    assert (tmp_path / "lines").read_text().split() == ["first", "second", "third", "fourth"]
    assert "caught up" in caplog.text


def test_what_never_finds_room_lies_elsewhere_and_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    journal = Journal(tmp_path / "gone" / "metrics.jsonl")
    assert not journal.add("one") and not journal.add("two")
    journal.close()
    (kept,) = tmp_path.glob("metrics-*.jsonl")
    assert kept.read_text() == "one\ntwo\n" and str(kept) in caplog.text


def test_a_run_whose_metrics_find_no_room_takes_its_steps_and_catches_up(tmp_path):
    run = Run(tmp_path, rank=0)
    run.log(1, {"loss": 1.0})
    with no_file_above(20):
        run.log(2, {"loss": 2.0})
        run.log(3, {"loss": 3.0})
        notes = run.notes()
    assert [json.loads(line)["step"] for line in notes[MISSED].splitlines()] == [2, 3]
    run.log(4, {"loss": 4.0})
    assert run.notes() == {}
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3, 4]


def test_lines_that_a_killed_run_had_no_room_for_come_from_its_checkpoint(tmp_path):
    run, checkpoint = Run(tmp_path, rank=0), tmp_path / "checkpoints" / "step_3"
    run.log(1, {"loss": 1.0})
    checkpoint.mkdir(parents=True)
    (checkpoint / MISSED).write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in (1, 2, 3)))
    again = Run(tmp_path, rank=0)
    again.resume_at(3, checkpoint)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_files_wait_and_only_so_many(tmp_path, caplog):
    backlog = Backlog(most=2)

    def write(name):
        return lambda: (tmp_path / "folder" / name).write_text(name)

    for name in "abc":
        backlog.do(name, write(name))
    assert caplog.text.count("the run goes on") == 1 and "a is not kept" in caplog.text
    (tmp_path / "folder").mkdir()
    backlog.do("d", write("d"))
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["b", "c", "d"] and "c caught up" in caplog.text
    backlog.close()


def test_rollouts_that_cannot_be_written_leave_nothing_behind(tmp_path):
    import torch

    from vold_nemo.step import Step
    from vold_nemo.step.records import write

    step = Step.of([[5]], [[5, 6]] * 2, 2, reward=[0.0, 1.0], engine=[[-1.0, -1.0]] * 2, trainer=[[-1.0, -1.0]] * 2,
                   sample=[0, 1], truncated=[False] * 2, scored=[False] * 2, trained=[False] * 2,
                   advantage=[0.0, 0.0])  # fmt: skip
    step["kl"] = torch.zeros(4)
    with no_file_above(10), pytest.raises(OSError, match="large"):
        write(step, tmp_path / "rollouts" / "step_1.jsonl")
    assert list((tmp_path / "rollouts").iterdir()) == []
    assert write(step, tmp_path / "rollouts" / "step_1.jsonl").exists()


def test_rejected_rows_that_find_no_room_are_counted(tmp_path, capsys):
    from vold_nemo.data.rejected import Rejected

    rejected = Rejected(tmp_path / "rejected.jsonl", 1.0)
    with no_file_above(10):
        for row in range(3):
            rejected.add(row, "no answer", "text")
    assert rejected.count() == 3 and capsys.readouterr().err.count("rows are counted only") == 1


def test_a_run_that_fails_keeps_the_lines_that_wait(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = Run(tmp_path / "run", rank=0)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").mkdir()  # nothing can be written there
    with pytest.raises(RuntimeError), run:
        run.log(1, {"loss": 1.0})
        raise RuntimeError("a step")
    (kept,) = tmp_path.glob("metrics-*.jsonl")
    assert json.loads(kept.read_text()) == {"step": 1, "loss": 1.0}


def test_metrics_say_which_attempt_wrote_them_and_config_is_that_of_the_newest_that_began(tmp_path):
    first = Run(tmp_path, rank=0, config={"a": 1})
    first.begin({"attempt": 1, "settings": {"a": 1}})
    first.log(1, {"loss": 1.0})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest.4711").write_text("")  # of a process that was killed
    refused = Run(tmp_path, rank=0, config={"a": 2})
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"
    refused.begin({"attempt": 2, "settings": {"a": 2}})
    refused.log(2, {"loss": 1.0})
    assert [json.loads(line)["attempt"] for line in first.metrics.read_text().splitlines()] == [1, 2]
    assert (tmp_path / "config.yaml").read_text() == "a: 2\n"
    assert sorted(os.listdir(tmp_path / "attempts")) == ["attempt_1.json", "attempt_2.json"]
    assert os.listdir(tmp_path / "checkpoints") == []
