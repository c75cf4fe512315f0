"""Checkpoints that a thread writes while training goes on: the state of their step, whole or not at all."""

import threading
from pathlib import Path

import pytest
import torch

from tests.megatron import steps, tiny
from tests.megatron.limited import little_room
from vold_nemo.checkpoint import loading, saving

ALL = loading.Retention(9)

LAYOUTS = {  # name: world, tensor, pipeline, options
    "tp2pp2": (4, 2, 2, {}),
    "dp2 distributed bf16": (2, 1, 1, {"distributed": True, "dtype": torch.bfloat16}),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen2")
    tiny.save("qwen2", path, tied=True)
    return path


def _held_back(gate: threading.Event):
    """Snapshots whose writing begins when ``gate`` is opened."""
    write = saving.Snapshot.write

    def later(self, group=None):
        assert group is None or gate.wait(60)
        return write(self, group)

    return later


def _written_behind_two_steps(source, folder, tensor, pipeline, options):
    """The state after step 2 written at once, and by a thread that starts to write after step 4, with training in between."""
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, tensor, pipeline, **options)
    gate, write = threading.Event(), saving.Snapshot.write
    saving.Snapshot.write = _held_back(gate)
    try:
        steps.train(parts, 0, 2, 1)
        saving.write(folder / "at_once", 2, steps.state(parts), retention=ALL)
        with saving.Writer(later=True) as writer:
            writer.save(folder / "behind", 2, steps.state(parts), wait=False, retention=ALL)
            steps.train(parts, 2, 4, 1)
            while_training = loading.find_latest(folder / "behind")
            gate.set()
            steps.train(parts, 3, 4, 1)  # collectives of both at once
            writer.settle()
            assert writer.measured
        return while_training
    finally:
        saving.Snapshot.write = write
        parallel.destroy()


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_thread_writes_is_the_state_of_its_step_bit_for_bit(name, source, tmp_path, gloo):
    world, *layout, options = LAYOUTS[name]
    assert gloo(world).run(_written_behind_two_steps, source, tmp_path, *layout, options) == [None] * world
    at_once, behind = (loading.read_manifest(tmp_path / way / "step_2")["files"] for way in ("at_once", "behind"))
    assert behind.keys() == at_once.keys()
    assert behind == at_once
    assert loading.find_latest(tmp_path / "behind").name == "step_2"


def _no_room_in_the_thread(source, folder, limit, full):
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, 2, 1)
    there = []
    try:
        with saving.Writer(later=True) as writer:
            writer.save(folder, 1, steps.state(parts), wait=False, retention=ALL)
            writer.settle()
            with little_room(limit if parts[2].rank == full else None):
                writer.save(folder, 2, steps.state(parts), wait=False, retention=ALL)
                writer.settle()
            there.append(sorted(path.name for path in Path(folder).iterdir()))
            torch.distributed.barrier()  # no rank begins the next before the other has looked
            with little_room(limit if parts[2].rank == full else None), pytest.raises(saving.CheckpointNotWritten):
                writer.save(folder, 3, steps.state(parts), wait=True, retention=ALL)
            writer.save(folder, 4, steps.state(parts), wait=False, retention=ALL)
        return [*there, loading.find_latest(folder).name]
    finally:
        parallel.destroy()


@pytest.mark.parametrize(("limit", "full"), [(20_000, 1), (20_000, 0), (100, 0)])  # shards; shards; what is common to all
def test_a_full_disk_in_the_thread_is_no_end_of_the_run_unless_the_checkpoint_is_waited_for(
    source, tmp_path, gloo, limit, full
):  # fmt: skip
    for there, latest in gloo(2).run(_no_room_in_the_thread, source, tmp_path, limit, full):
        assert there == ["latest", "step_1"] and latest == "step_4"


def _surprised(source, folder):
    """A bug in one rank's thread: what each rank is told, and whether the next one that is needed was written first."""
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, 2, 1)
    write_own = saving.Snapshot._write_own

    def bug(self):
        return {}["a bug"] if self.rank == 1 and self.step == 1 else write_own(self)

    saving.Snapshot._write_own = bug
    try:
        with saving.Writer(later=True) as writer:
            writer.save(folder, 1, steps.state(parts), wait=False, retention=ALL)
            writer.save(folder, 2, steps.state(parts), wait=True, retention=ALL)
    except Exception as error:
        return type(error).__name__, str(error), loading.find_latest(folder).name
    finally:
        saving.Snapshot._write_own = write_own
        parallel.destroy()


def test_what_nobody_expected_in_a_thread_is_raised_on_all_ranks_once_the_needed_checkpoint_is_there(source, tmp_path, gloo):
    (other, said, latest), own = gloo(2).run(_surprised, source, tmp_path)
    assert own == ("KeyError", "'a bug'", "step_2")
    assert other == "RuntimeError" and "rank 1: KeyError('a bug')" in said and latest == "step_2"


def _raises_while_its_thread_writes(source, folder):
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, 2, 1)
    gate, write = threading.Event(), saving.Snapshot.write
    saving.Snapshot.write = _held_back(gate)
    try:
        with saving.Writer(later=True) as writer:
            writer.save(folder, 1, steps.state(parts), wait=False, retention=ALL)
            threading.Timer(0.3, gate.set).start()
            raise ZeroDivisionError
    except ZeroDivisionError:
        return loading.find_latest(folder).name
    finally:
        saving.Snapshot.write = write
        parallel.destroy()


def test_a_rank_that_raises_lets_its_thread_finish_what_the_others_need(source, tmp_path, gloo):
    assert gloo(2).run(_raises_while_its_thread_writes, source, tmp_path) == ["step_1"] * 2


def test_what_a_needed_checkpoint_has_ahead_of_it(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    assert saving.Writer(later=False).ahead == 0.0  # every step has shown it
    writer = saving.Writer(later=True)
    assert not writer.measured and writer.ahead == 0.0
    writer._longest = 10.0
    assert writer.measured and writer.ahead == 10.0
    gate = threading.Event()
    writer._thread = threading.Thread(target=gate.wait)
    writer._thread.start()
    for clock[0], ahead in [(0.0, 20.0), (4.0, 16.0), (12.0, 12.0)]:
        assert writer.ahead == ahead  # the rest of what is being written, and then the one that is needed
    gate.set()
    writer._thread.join()


def _started_again_below(source, folder):
    """A run begun anew, or from an older checkpoint, in a folder that holds later steps."""
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, 1, 1)
    try:
        for step in (8, 9, 3, 4, 5):
            saving.write(folder, step, steps.state(parts), retention=loading.Retention(2))
        return sorted(path.name for path in Path(folder).iterdir()), loading.find_latest(folder).name
    finally:
        parallel.destroy()


def test_steps_that_a_run_has_not_done_are_put_aside_and_neither_kept_for_its_own_nor_deleted(source, tmp_path, gloo):
    ((there, latest),) = gloo(1).run(_started_again_below, source, tmp_path)
    assert there == ["latest", "step_4", "step_5", "step_8.left", "step_9.left"] and latest == "step_5"
