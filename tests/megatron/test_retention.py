"""Which checkpoints stay, and what happens when one cannot be written."""

from pathlib import Path

import pytest

from tests.megatron import steps, tiny
from tests.megatron.limited import little_room
from vold_nemo.checkpoint import loading, saving
from vold_nemo.config import manifest


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen2")
    tiny.save("qwen2", path, tied=True)
    return path


def written(folder: Path, metrics: dict[int, object]) -> list[Path]:
    """Checkpoint folders with nothing but a manifest, newest first."""
    for step, metric in metrics.items():
        (folder / f"step_{step}").mkdir()
        (folder / f"step_{step}" / "manifest.json").write_text(
            manifest.text({"format": manifest.FORMAT, "step": step, "layout": {}, "metric": metric, "files": {}})
        )
    return [folder / f"step_{step}" for step in sorted(metrics, reverse=True)]


METRICS = {10: 0.5, 20: 0.1, 30: 0.9, 40: 0.4, 50: None, 60: "nan", 70: 0.6}


@pytest.mark.parametrize(
    "rules, steps_kept",
    [
        (dict(keep=2), {60, 70}),
        (dict(keep=1, every=30), {30, 60, 70}),
        (dict(keep=1, best=2), {20, 40, 70}),
        (dict(keep=1, best=2, highest=True), {30, 70}),  # the newest is one of the two best
        (dict(keep=1, every=20, best=1, highest=True), {20, 30, 40, 60, 70}),
        (dict(keep=9), set(METRICS)),
    ],
)
def test_newest_each_so_many_steps_and_best_are_kept(tmp_path, rules, steps_kept):
    kept = loading.Retention(**rules).kept(written(tmp_path, METRICS))
    assert {int(path.name.removeprefix("step_")) for path in kept} == steps_kept


def _save_three(source, folder, limit):
    """Checkpoints at steps 1 and 2, one that rank 1 has no room for, and one with room again."""
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, 2, 1)
    state, retention = steps.state(parts), loading.Retention(1, best=1)

    def save(step):
        saving.write(folder, step, state, retention=retention, metric={1: 0.1, 2: 0.3, 3: 0.2, 4: 0.4}[step])

    said = None
    try:
        save(1)
        save(2)
        try:
            with little_room(limit if state.layout.rank == 1 else None):
                save(3)
        except saving.CheckpointNotWritten as error:
            said = str(error)
        there = sorted(path.name for path in Path(folder).iterdir())
        latest = loading.find_latest(folder).name
        save(4)
        return said, there, latest, loading.find_latest(folder).name
    finally:
        parallel.destroy()


@pytest.mark.parametrize("limit", [1000, 20_000])  # its file of random states does not fit; nor do its shards
def test_a_full_disk_on_one_rank_keeps_the_checkpoints_before_and_says_so_on_all(source, tmp_path, gloo, limit):
    for said, there, latest, after in gloo(2).run(_save_three, source, str(tmp_path), limit):
        assert said.startswith("checkpoint of step 3 not written: ") and "rank 1: " in said
        assert there == ["latest", "step_1", "step_2"]  # the best and the newest; nothing half written
        assert latest == "step_2" and after == "step_4"
