"""Checkpoints that a thread writes while training goes on: the state of their step, whole or not at all."""

import threading
from pathlib import Path

import pytest
import torch

from tests.megatron import steps, tiny
from tests.megatron.limited import little_room
from vold_nemo.megatron import checkpoint, saving

LAYOUTS = {  # name: world, tensor, pipeline, options
    "tp2pp2": (4, 2, 2, {}),
    "dp2 distributed bf16": (2, 1, 1, {"distributed": True, "dtype": torch.bfloat16}),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen2")
    tiny.save("qwen2", path, tied=True)
    return path


def _state(parts, **more) -> dict:
    model, _, layout, optimizer, schedule = parts
    return {"model": model, "optimizer": optimizer, "schedule": schedule, "layout": layout, "keep": 9, **more}


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
        saving.write(folder / "at_once", 2, **_state(parts))
        with saving.Writer(later=True) as writer:
            writer.save(folder / "behind", 2, wait=False, **_state(parts))
            steps.train(parts, 2, 4, 1)
            while_training = checkpoint.find_latest(folder / "behind")
            gate.set()
            steps.train(parts, 3, 4, 1)  # collectives of both at once
            writer.settle()
            assert writer.longest > 0
        return while_training
    finally:
        saving.Snapshot.write = write
        parallel.destroy()


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_thread_writes_is_the_state_of_its_step_bit_for_bit(name, source, tmp_path, gloo):
    world, *layout, options = LAYOUTS[name]
    assert gloo(world).run(_written_behind_two_steps, source, tmp_path, *layout, options) == [None] * world
    at_once, behind = (checkpoint.read_manifest(tmp_path / way / "step_2")["files"] for way in ("at_once", "behind"))
    assert behind.keys() == at_once.keys()
    index = "shards/.metadata"  # it notes the time
    assert {k: v for k, v in behind.items() if k != index} == {k: v for k, v in at_once.items() if k != index}
    assert checkpoint.find_latest(tmp_path / "behind").name == "step_2"


def _no_room_in_the_thread(source, folder, limit):
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, 2, 1)
    there = []
    try:
        with saving.Writer(later=True) as writer:
            writer.save(folder, 1, wait=False, **_state(parts))
            writer.settle()
            with little_room(limit if parts[2].rank == 1 else None):
                writer.save(folder, 2, wait=False, **_state(parts))
                writer.settle()
            there.append(sorted(path.name for path in Path(folder).iterdir()))
            with little_room(limit if parts[2].rank == 1 else None), pytest.raises(saving.CheckpointNotWritten):
                writer.save(folder, 3, wait=True, **_state(parts))
            writer.save(folder, 4, wait=False, **_state(parts))
        return [*there, checkpoint.find_latest(folder).name]
    finally:
        parallel.destroy()


def test_a_full_disk_in_the_thread_is_no_end_of_the_run_unless_the_checkpoint_is_waited_for(source, tmp_path, gloo):
    for there, latest in gloo(2).run(_no_room_in_the_thread, source, tmp_path, 20_000):
        assert there == ["latest", "step_1"] and latest == "step_4"


def _surprised(source, folder):
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, 1, 1)
    write = saving.Snapshot.write
    saving.Snapshot.write = lambda self, group=None: {}["a bug"]
    try:
        with saving.Writer(later=True) as writer:
            writer.save(folder, 1, wait=False, **_state(parts))
    except KeyError as error:
        return str(error)
    finally:
        saving.Snapshot.write = write
        parallel.destroy()


def test_what_nobody_expected_in_the_thread_is_raised_where_it_is_waited_for(source, tmp_path, gloo):
    assert gloo(1).run(_surprised, source, tmp_path) == ["'a bug'"]
