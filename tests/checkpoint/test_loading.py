"""A resumed run goes on bit for bit; what is torn or corrupt is never loaded; any layout reads the weights."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.megatron import steps, tiny
from tests.ports import free_port
from vold_nemo.config import ConfigError

LAYOUTS = {  # name: world, tensor, pipeline, sequence, options
    "one": (1, 1, 1, False, {}),
    "tp2sp": (2, 2, 1, True, {}),
    "pp2": (2, 1, 2, False, {}),
    "dp2": (2, 1, 1, False, {}),
    "tp2pp2": (4, 2, 2, False, {}),
    "bf16": (2, 2, 1, False, {"dtype": torch.bfloat16}),
    "distributed": (2, 1, 1, False, {"distributed": True}),
    "distributed_bf16_tp2": (4, 2, 1, False, {"distributed": True, "dtype": torch.bfloat16}),
    "pp2_virtual2": (2, 1, 2, False, {"virtual": 2}),
    "distributed_bf16_pp2_virtual2": (4, 1, 2, False, {"distributed": True, "dtype": torch.bfloat16, "virtual": 2}),
}
LONG = {"distributed_bf16_pp2_virtual2"}
NAMES = [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in LAYOUTS]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen2")
    tiny.save("qwen2", path, tied=True)
    return path


def _save(folder, step, parts, keep=2, extra=None):
    from vold_nemo.checkpoint import loading, saving

    return saving.write(folder, step, steps.state(parts), extra=extra, retention=loading.Retention(keep))


def _load(path, parts):
    from vold_nemo.checkpoint import loading

    return loading.load(path, steps.state(parts))


def _draws(layout):
    """One number of every generator."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    with get_cuda_rng_tracker().fork():
        tracked = torch.rand(1, device=layout.device).item()
    return [random.random(), float(np.random.rand()), torch.rand(1).item(), tracked]


def _four(source, folder, tensor, pipeline, sequence, options):
    """Four steps in one go, with a checkpoint after two; (results, weights, draws) of steps 3 and 4."""
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, tensor, pipeline, sequence, **options)
    try:
        steps.train(parts, 0, 2, 1)
        random.seed(17 + parts[2].rank)
        np.random.seed(18 + parts[2].rank)
        _draws(parts[2])
        _save(folder, 2, parts, extra={"position": [2, "epoch"], "seed": torch.tensor(parts[2].rank)})
        found = steps.train(parts, 2, 4, 1)
        return found, steps.fingerprint(parts[0]), _draws(parts[2])
    finally:
        parallel.destroy()


def _two_more(source, folder, tensor, pipeline, sequence, options):
    from vold_nemo.checkpoint import loading
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, tensor, pipeline, sequence, **options)
    try:
        random.seed(0)
        np.random.seed(0)
        step, extra = _load(loading.find_latest(folder), parts)
        assert step == 2 and extra["position"] == [2, "epoch"] and extra["seed"].item() == parts[2].rank
        found = steps.train(parts, 2, 4, 1)
        return found, steps.fingerprint(parts[0]), _draws(parts[2])
    finally:
        parallel.destroy()


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_and_two_resumed_are_four_bit_for_bit(name, source, tmp_path, gloo):
    world, *layout, options = LAYOUTS[name]
    whole = gloo(world).run(_four, source, tmp_path, *layout, options)
    resumed = gloo(world).run(_two_more, source, tmp_path, *layout, options)
    for (losses, weights, draws), (losses_again, weights_again, draws_again) in zip(whole, resumed, strict=True):
        assert losses == losses_again
        assert draws == draws_again
        assert weights.keys() == weights_again.keys()
        assert all(torch.equal(weights[key], weights_again[key]) for key in weights)


def _gathered(optimizer, weights, *, loading=False):
    """The distributed optimizer's state as megatron-core gives it: gathered, each parameter whole on data-parallel rank 0."""
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    return optimizer.sharded_state_dict(weights, is_loading=loading, metadata=metadata)


def _four_gathered(*arguments):
    """:func:`_four`, whose checkpoint is written as it was before ranks wrote their own shares."""
    from vold_nemo.checkpoint import saving

    own, saving.sharded_state = saving.sharded_state, _gathered
    try:
        return _four(*arguments)
    finally:
        saving.sharded_state = own


def _stored(folder):
    """Every tensor of a checkpoint, whole."""
    import torch.distributed.checkpoint as dcp

    from vold_nemo.checkpoint.shard_files import Reader

    reader = Reader(folder)
    sizes = reader.read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in sizes.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


@pytest.mark.parametrize("name", ["distributed", "distributed_bf16_tp2"])
def test_a_gathered_state_and_the_ranks_own_shares_are_the_same_checkpoint(name, source, tmp_path, gloo):
    world, *layout, options = LAYOUTS[name]
    before, now = tmp_path / "gathered", tmp_path / "shares"
    whole = gloo(world).run(_four_gathered, source, before, *layout, options)
    assert [found for found, *_ in gloo(world).run(_four, source, now, *layout, options)] == [found for found, *_ in whole]
    gathered, shared = (_stored(folder / "step_2" / "shards") for folder in (before, now))
    assert gathered.keys() == shared.keys() and any(name.startswith("optimizer.state.exp_avg_sq.") for name in shared)
    assert all(torch.equal(gathered[key], shared[key]) for key in gathered)
    resumed = gloo(world).run(_two_more, source, before, *layout, options)  # an older run's checkpoint
    assert [found for found, *_ in resumed] == [found for found, *_ in whole]


def _resharded(source, folder, tensor, pipeline, sequence, options):
    from vold_nemo.checkpoint import loading
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, tensor, pipeline, sequence, **options)
    try:
        step, extra = loading.load(loading.find_latest(folder), steps.state(parts), reshard=True)
        assert step == 2 and extra["position"] == [2, "epoch"]
        return steps.train(parts, 2, 4, 1)
    finally:
        parallel.destroy()


@pytest.mark.parametrize(
    "writer, reader",
    [("tp2pp2", "one"), ("one", "tp2sp"), ("distributed", "distributed_tp2"), ("pp2", "dp2"),
     *(pytest.param(*pair, marks=pytest.mark.long) for pair in (
         ("pp2_virtual2", "one"), ("tp2sp", "pp2_virtual2"), ("pp2", "pp2_virtual2")))],
)  # fmt: skip
def test_a_run_goes_on_in_another_layout_with_its_optimizer(writer, reader, source, tmp_path, gloo):
    """Adam's first moments decide steps 3 and 4: an optimizer that began anew would differ in the second digit."""
    layouts = {**LAYOUTS, "distributed_tp2": (4, 2, 1, False, {"distributed": True})}
    world, *layout, options = layouts[writer]
    expected = gloo(world).run(_four, source, tmp_path, *layout, options)[0][0]
    world, *layout, options = layouts[reader]
    for found in gloo(world).run(_resharded, source, tmp_path, *layout, options):
        assert np.allclose(found, expected, rtol=2e-4), (found, expected)


@pytest.mark.parametrize("name", ["one", "distributed"])
def test_a_run_goes_on_at_another_learning_rate(name, source, tmp_path, gloo):
    """Some versions of megatron-core know a group of parameters by the rates that it was saved with."""
    world, *layout, options = LAYOUTS[name]
    before = gloo(world).run(_four, source, tmp_path, *layout, options)
    changed = options | {"learning_rate": 5e-4, "min_learning_rate": 1e-5}
    found = gloo(world).run(_at_another_rate, source, tmp_path, *layout, changed)
    for (used, expected, steps_again), (steps_before, *_) in zip(found, before, strict=True):
        assert used == [expected, expected] and 1e-5 <= expected < 5e-4
        assert steps_again[0] == steps_before[0]  # at the same weights
        assert steps_again[1] != steps_before[1]  # after another step


def _at_another_rate(source, folder, tensor, pipeline, sequence, options):
    """(rates of the groups at the fourth step, the schedule's, losses of the third and fourth)."""
    from vold_nemo.checkpoint import loading
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, tensor, pipeline, sequence, **options)
    try:
        _load(loading.find_latest(folder), parts)
        again = steps.train(parts, 2, 4, 1)
        return [group["lr"] for group in parts[3].param_groups], parts[4].value(3), again
    finally:
        parallel.destroy()


def _saves(source, folder, tensor, pipeline, numbers, keep):
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, tensor, pipeline)
    try:
        for number in numbers:
            steps.train(parts, 0, 1, 2)
            _save(folder, number, parts, keep=keep)
        return steps.fingerprint(parts[0])
    finally:
        parallel.destroy()


def _resume(source, folder, tensor, pipeline):
    from vold_nemo.checkpoint import loading
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, tensor, pipeline)
    try:
        path = loading.find_latest(folder)
        _load(path, parts)
        return path.name, steps.fingerprint(parts[0])
    finally:
        parallel.destroy()


def test_saving_again_and_again_keeps_the_newest_and_the_last_save_of_a_step(source, tmp_path, gloo):
    weights = gloo(2).run(_saves, source, tmp_path, 2, 1, [1, 2, 10, 10], 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_10", "step_2"]
    assert (tmp_path / "latest").read_text() == "step_10\n"
    for before, (name, after) in zip(weights, gloo(2).run(_resume, source, tmp_path, 2, 1), strict=True):
        assert name == "step_10"
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_checkpoint_before_the_first_update_resumes(source, tmp_path, gloo):
    gloo(1).run(_untrained, source, tmp_path, True)
    assert gloo(1).run(_untrained, source, tmp_path, False) == gloo(1).run(steps.trajectory, source, 1, 1, False, 4, 2)


def _untrained(source, folder, saving):
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, 1, 1)
    try:
        if saving:
            return _save(folder, 0, parts)
        _load(folder / "step_0", parts)
        return steps.train(parts, 0, 2, 4)
    finally:
        parallel.destroy()


@pytest.fixture(scope="module")
def two_saved(source, tmp_path_factory, gloo):
    folder = tmp_path_factory.mktemp("saved")
    gloo(1).run(_saves, source, folder, 1, 1, [1, 2], 2)
    return folder


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _rewrite(path, seal=True, **changes):
    """Another manifest, as somebody would write it who knows how it is sealed, or does not."""
    from vold_nemo.config import manifest

    said = json.loads((path / "manifest.json").read_text()) | changes
    path.joinpath("manifest.json").write_text(manifest.text(said) if seal else json.dumps(said))


DAMAGE = {
    "a flipped bit": (lambda p: _flip(next((p / "shards").glob("*.distcp"))), "checksum differs"),
    "a truncated file": (lambda p: os.truncate(p / "ranks" / "rank_0.pt", 100), "100 bytes instead of"),
    "a missing file": (lambda p: (p / "shards" / "index.json").unlink(), "index.json: missing"),
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "manifest.json"),
    "a torn manifest": (lambda p: os.truncate(p / "manifest.json", 40), "manifest.json"),
    "an empty manifest": (lambda p: (p / "manifest.json").write_text(""), "manifest.json"),
    "another value": (lambda p: (p / "manifest.json").write_text("[]"), "no manifest of ours"),
    "no format": (lambda p: (p / "manifest.json").write_text("{}"), "no manifest of ours"),
    "another step": (lambda p: _rewrite(p, seal=False, step=0), "its digest differs"),
    "another step, sealed": (lambda p: _rewrite(p, step=0), "of step 0, in a folder named step_2"),
    "another layout": (lambda p: _rewrite(p, seal=False, layout={}), "its digest differs"),
    "an earlier format": (lambda p: _rewrite(p, format=1), "a pickle"),
    "a later format": (lambda p: _rewrite(p, format=3), "format 3"),
    "files as a list": (lambda p: _rewrite(p, files=["a"]), "not names inside the folder"),
    "a name outside": (lambda p: _rewrite(p, files={"../x": {"bytes": 0, "sha256": "0" * 64}}), "inside the folder"),
    "a size that is none": (lambda p: _rewrite(p, files={"x": {"bytes": -1, "sha256": "0" * 64}}), "inside the folder"),
    "a file too many": (lambda p: (p / "shards" / ".metadata").write_bytes(b"x"), ".metadata: not in manifest.json"),
    "a link": (lambda p: (p / "ranks" / "rank_9.pt").symlink_to("/etc/passwd"), "rank_9.pt: not in manifest.json"),
    "a file and its name as a link": (lambda p: _as_link(p / "ranks" / "rank_0.pt"), "rank_0.pt: missing"),
    "exchanged files": (lambda p: _exchange(p / "shards" / "common.pt", p / "ranks" / "rank_0.pt"), "instead of"),
}


def _as_link(path):
    path.rename(path.with_name("real"))
    path.symlink_to("real")


def _exchange(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_aloud(damage, two_saved, tmp_path, caplog):
    import shutil

    from vold_nemo.checkpoint import loading

    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    assert loading.find_latest(tmp_path).name == "step_2"
    spoil, said = DAMAGE[damage]
    spoil(tmp_path / "step_2")
    with caplog.at_level(logging.WARNING):
        assert loading.find_latest(tmp_path).name == "step_1"
    assert "step_2" in caplog.text and said in caplog.text


def test_where_all_are_damaged_nothing_begins_again(two_saved, tmp_path):
    import shutil

    from vold_nemo.checkpoint import loading

    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    for step in (1, 2):
        _flip(next((tmp_path / f"step_{step}" / "shards").glob("*.distcp")))
    with pytest.raises(ConfigError, match=r"step_2: shards/__0_0.distcp: checksum differs(.|\n)*step_1(.|\n)*resume=never"):
        loading.find_latest(tmp_path)


def test_exchanged_folders_are_not_each_others_steps(two_saved, tmp_path, caplog):
    import shutil

    from vold_nemo.checkpoint import loading

    shutil.copytree(two_saved / "step_1", tmp_path / "step_2")
    shutil.copytree(two_saved / "step_1", tmp_path / "step_1")
    assert loading.find_latest(tmp_path).name == "step_1" and "of step 1, in a folder named step_2" in caplog.text


def test_a_folder_aside_is_no_checkpoint(tmp_path):
    from vold_nemo.checkpoint import loading

    (tmp_path / "step_3.tmp").mkdir()
    (tmp_path / "step_3.tmp_old").mkdir()
    assert loading.find_latest(tmp_path) is None
    assert loading.find_latest(tmp_path / "nowhere") is None


def test_resuming_in_another_layout_is_refused_by_name(source, two_saved, gloo):
    for said in gloo(2).run(_refused, source, two_saved / "step_2"):
        assert "parallel = " in said and "'tensor': 1" in said and "exported weights" in said


def _refused(source, path):
    from vold_nemo.megatron import parallel

    parts = steps.trainer(source, 2, 1)
    try:
        _load(path, parts)
    except ConfigError as error:
        return str(error)
    finally:
        parallel.destroy()


def test_the_manifest_names_layout_and_every_file(two_saved):
    manifest = json.loads((two_saved / "step_2" / "manifest.json").read_text())
    assert manifest["layout"] == {"tensor": 1, "pipeline": 1, "context": 1, "data": 1, "sequence": False}
    files = {str(p.relative_to(two_saved / "step_2")) for p in (two_saved / "step_2").rglob("*") if p.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"}


@pytest.mark.parametrize("kind,tied", [("qwen2", True), ("qwen3", False)])
def test_weights_resharded_give_the_same_hidden_states(kind, tied, tmp_path, gloo):
    source, other = tmp_path / "source", tmp_path / "other"
    tiny.save(kind, source, tied=tied, seed=0)
    tiny.save(kind, other, tied=tied, seed=5)  # what the reader starts from: nothing may be left of it
    ids = tiny.tokens()
    expected = gloo(1).run(_hidden, source, 1, 1, ids, None)[0]
    gloo(4).run(_save_weights, source, 2, 2, tmp_path / "tp2pp2")
    assert not torch.allclose(gloo(1).run(_hidden, other, 1, 1, ids, None)[0], expected, atol=0.1)
    assert torch.equal(gloo(1).run(_hidden, other, 1, 1, ids, tmp_path / "tp2pp2")[0], expected)
    for tensor, pipeline in [(4, 1), (1, 2)]:
        found = gloo(tensor * pipeline).run(_hidden, other, tensor, pipeline, ids, tmp_path / "tp2pp2")[-1]
        assert torch.allclose(found, expected, atol=1e-4)


def _save_weights(source, tensor, pipeline, folder):
    from vold_nemo.checkpoint import sharded
    from vold_nemo.megatron import parallel

    model, _, layout = tiny.built(source, tensor, pipeline)
    try:
        if layout.rank == 0:
            folder.mkdir()
        torch.distributed.barrier()
        sharded.save_model(model, folder)
    finally:
        parallel.destroy()


def _hidden(source, tensor, pipeline, ids, folder):
    from vold_nemo.checkpoint import sharded
    from vold_nemo.megatron import parallel

    model, _, layout = tiny.built(source, tensor, pipeline)
    try:
        if folder is not None:
            sharded.load_model(model, folder)
        with torch.no_grad():
            return tiny.run_stages(model, layout, ids)
    finally:
        parallel.destroy()


def _start(source, folder, world, report, *dies):
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.checkpoint.killed_run", str(source), str(folder), str(report), *dies],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
                              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
        )
        for rank in range(world)
    ]


@pytest.mark.timeout(240)
def test_a_run_killed_with_minus_nine_goes_on_bit_for_bit(source, tmp_path, gloo):
    expected = gloo(2).run(steps.trajectory, source, 2, 1, False, 1)[0]
    folder, report = tmp_path / "checkpoints", tmp_path / "report.jsonl"
    first = _start(source, folder, 2, report)
    deadline = time.monotonic() + 100
    while not (folder / "step_2.tmp" / "shards" / "index.json").exists() and not (folder / "step_2").exists():
        assert time.monotonic() < deadline and all(p.poll() is None for p in first)
        time.sleep(0.002)
    for process in first:  # in the middle of the save of step 2, or just after it
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    second = _start(source, folder, 2, report)
    assert [p.wait(100) for p in second] == [0, 0]
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    resumed_at = [line["resumed"] for line in lines if "resumed" in line]
    assert resumed_at[0] == 0 and resumed_at[1] in (1, 2)
    found = {line["step"]: (line["loss"], line["norm"]) for line in lines if "step" in line}
    assert [found[i] for i in range(4)] == expected


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("dies", ["0", "1"])
def test_a_rank_that_dies_in_its_thread_takes_the_others_down_and_leaves_the_checkpoint_before(source, tmp_path, gloo, dies):
    expected = gloo(2).run(steps.trajectory, source, 2, 1, False, 1)[0]
    folder, report = tmp_path / "checkpoints", tmp_path / "report.jsonl"
    codes = [process.wait(120) for process in _start(source, folder, 2, report, dies)]
    assert codes[int(dies)] == -signal.SIGKILL and codes[1 - int(dies)] not in (0, -signal.SIGKILL)
    assert [path.name for path in folder.glob("step_*") if path.suffix == ""] == ["step_1"]
    assert [process.wait(120) for process in _start(source, folder, 2, report)] == [0, 0]
    found = {line["step"]: (line["loss"], line["norm"]) for text in report.read_text().splitlines()
             if "step" in (line := json.loads(text))}  # fmt: skip
    assert [found[i] for i in range(4)] == expected


def test_auto_goes_on_with_other_data_ranks_and_in_no_other_layout():
    from vold_nemo.checkpoint import loading

    before = {"tensor": 2, "pipeline": 1, "data": 4, "sequence": True, "context": 1}
    fewer, split = {**before, "data": 3}, {**before, "tensor": 4, "data": 2}
    virtual = {**fewer, "virtual": 2}
    asked = [[loading.may_reshard(before, now, how) for now in (fewer, split, virtual)] for how in (False, "auto", True)]
    assert asked == [[False] * 3, [True, False, False], [True] * 3]
    assert [loading.may_reshard(before, split, how) for how in ("false", "true")] == [False, True]  # as a quoted text
