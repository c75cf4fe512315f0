"""Launchers' variables, ranks' places, and a second life in the same process."""

import os
import subprocess
import sys

import pytest

from tests.ports import free_port
from vold_nemo.config import ConfigError
from vold_nemo.config.launcher import Launch, first_host, launch
from vold_nemo.megatron.parallel import collective_minutes

SLURM = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
}


def test_torchrun_comes_before_srun_and_alone_is_the_rest():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "1234"}
    assert launch(SLURM | torchrun) == Launch(3, 4, 1, "n1", 1234)
    assert launch({}) == Launch(0, 1, 0, None, 0)
    batch_script = {key: value for key, value in SLURM.items() if key != "SLURM_STEP_ID"}
    assert launch(batch_script) == Launch(0, 1, 0, None, 0)


def test_srun_ranks_agree_on_host_and_port_without_asking():
    found = launch(SLURM)
    assert (found.rank, found.world, found.local_rank, found.host) == (5, 8, 1, "gpu003")
    assert 20000 <= found.port < 40000 and found.port == launch(SLURM | {"SLURM_PROCID": "0"}).port
    assert found.port != launch(SLURM | {"SLURM_STEP_ID": "1"}).port


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n7", "n7"), ("n7,n8", "n7"), ("gpu[003-006,9],x1", "gpu003"), ("r[2,5]n1", "r2n1"), ("a-b-[10-12]", "a-b-10")],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


def test_a_broken_variable_is_named():
    with pytest.raises(ConfigError, match="SLURM_LOCALID"):
        launch(SLURM | {"SLURM_LOCALID": "one"})


def places(tensor, pipeline, sequence):
    from megatron.core import parallel_state

    from vold_nemo.megatron import parallel

    layout = parallel.initialize(tensor, pipeline, sequence=sequence, seed=3, device="cpu")
    groups = [layout.tensor_group.size(), layout.pipeline_group.size(), layout.data_group.size(), layout.model_group.size()]
    found = (layout.tensor_rank, layout.pipeline_rank, layout.data_rank, layout.is_first_stage, layout.is_last_stage)
    parallel.destroy()
    return found, groups, layout.sequence, parallel_state.model_parallel_is_initialized()


@pytest.mark.parametrize("stuck, minutes", [(None, 30), (5.0, 30), (60.0, 70)])
def test_a_collective_gives_up_after_the_heartbeat_that_names_the_culprit(stuck, minutes):
    assert collective_minutes(stuck) == minutes


def test_one_process_lives_through_several_layouts(gloo):
    for _ in range(2):
        found = gloo(4).run(places, 2, 2, True)
        assert [place for place, *_ in found] == [
            (0, 0, 0, True, False), (1, 0, 0, True, False), (0, 1, 0, False, True), (1, 1, 0, False, True)]
        assert all(groups == [2, 2, 1, 4] and sequence and not alive for _, groups, sequence, alive in found)
        found = gloo(4).run(places, 2, 1, False)
        assert [place[:3] for place, *_ in found] == [(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1)]
        assert all(groups == [2, 1, 2, 2] for _, groups, *_ in found)


def _refused(tensor):
    from vold_nemo.megatron import parallel

    try:
        parallel.initialize(tensor, 1, seed=1, device="cpu")
    except ConfigError as error:
        return error.key


def test_a_world_that_does_not_fit_is_refused_on_every_rank(gloo):
    assert gloo(4).run(_refused, 3) == ["world size"] * 4


def asked_of_torch(device):
    """Backends that are asked for while a layout is made as if on ``device``; the groups themselves are gloo's."""
    import torch

    from vold_nemo.megatron import parallel

    asked, made, joined = [], torch.distributed.new_group, parallel.join

    def record(*args, backend=None, **options):
        asked.append(backend)
        return made(*args, **options)

    torch.distributed.new_group = record
    parallel.join = lambda *args, **options: torch.device(device)
    try:
        parallel.initialize(2, 1, seed=3)
    finally:
        torch.distributed.new_group, parallel.join = made, joined
        parallel.destroy()
    return asked


def test_on_a_gpu_the_default_group_alone_has_sockets(gloo):
    for asked in gloo(2).run(asked_of_torch, "cuda"):
        assert len(asked) > 10 and set(asked) == {"nccl"}
    for asked in gloo(2).run(asked_of_torch, "cpu"):
        assert len(asked) > 10 and set(asked) == {None}


@pytest.mark.parametrize(
    ("device", "said", "lazy", "backend"), [("cuda", None, "1", "cpu:gloo,cuda:nccl"), ("cuda", "0", "0", "cpu:gloo,cuda:nccl"),
                                            ("cpu", None, None, "gloo")],
)  # fmt: skip
def test_gloo_connects_late_where_groups_are_large_and_a_person_does_not_say_otherwise(
    monkeypatch, device, said, lazy, backend
):
    import torch
    import torch.distributed as dist

    from vold_nemo.megatron import parallel

    variable, seen = "TORCH_GLOO_LAZY_INIT", []
    monkeypatch.setenv(variable, said or "")  # so that it is put back
    if said is None:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(parallel, "pick_training_device", lambda *_: torch.device(device))
    monkeypatch.setattr(parallel, "use", lambda _: None)
    monkeypatch.setattr(parallel, "_own_default_group", False)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda kind, **_: seen.append((kind, os.environ.get(variable))))
    parallel.join()
    assert seen == [(backend, lazy)]


@pytest.mark.parametrize(
    ("limits", "world", "after"),
    [((1024, 4096), 64, 1024), ((1024, 4096), 1024, 4096), ((1024, 524288), 1024, 4608), ((8192, 8192), 1024, 8192),
     ((1024, -1), 1024, 4608), ((-1, -1), 1024, -1)],
)  # fmt: skip
def test_a_rank_raises_its_limit_of_open_files_as_far_as_it_needs_and_may(monkeypatch, limits, world, after):
    import resource

    from vold_nemo.megatron import parallel

    now = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: now.append(pair))
    parallel.raise_file_limit(world)
    assert now[-1] == (after, limits[1])


def test_a_lone_process_needs_no_launcher():
    code = (
        "from vold_nemo.megatron import parallel; import torch.distributed as dist\n"
        "layout = parallel.initialize(1, 1, seed=1, device='cpu')\n"
        "assert (layout.world, layout.data, layout.rank) == (1, 1, 0)\n"
        "parallel.destroy(); assert not dist.is_initialized()"
    )
    env = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)


def test_two_srun_tasks_find_each_other():
    """Two processes that know only what srun tells them form one tensor group."""
    code = (
        "from vold_nemo.megatron import parallel; import torch, torch.distributed as dist\n"
        "layout = parallel.initialize(2, 1, seed=1, device='cpu')\n"
        "total = torch.tensor([layout.rank + 1]); dist.all_reduce(total, group=layout.tensor_group)\n"
        "assert (layout.world, total.item()) == (2, 3)\n"
        "parallel.destroy()"
    )
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    step = SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
    tasks = [
        subprocess.Popen([sys.executable, "-c", code], env=clean | step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in ("0", "1")
    ]
    assert [task.wait(timeout=150) for task in tasks] == [0, 0]
