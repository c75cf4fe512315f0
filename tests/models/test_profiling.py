"""A profile shows the steps that were asked for, phase by phase, and changes nothing; what cannot be is named beforehand."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.models.stages import FixedSampler, build_vold, configuration, layout_of
from vold_nemo.config import ConfigError
from vold_nemo.config.compose import compose
from vold_nemo.config.sections.training import ProfileConfig
from vold_nemo.models import heartbeat
from vold_nemo.models.profile_table import rows_of
from vold_nemo.models.profiling import Profiler
from vold_nemo.planning import profiling
from vold_nemo.planning.readiness import findings as of_node
from vold_nemo.planning.validity import findings

CPU = SimpleNamespace(rank=0, world=1, device=torch.device("cpu"))


def stepped(folder: Path, asked: list[int], rank: int = 0, done: int = 0, total: int = 4):
    layout = replace_rank(rank)
    with Profiler(ProfileConfig(steps=asked), folder, layout) as profiler:
        profiler.go_on(done)
        for step in range(done + 1, total + 1):
            profiler.begin(step)
            for phase, size in (("generate", 8), ("train", 64)):
                heartbeat.note(phase)
                torch.ones(size, size) @ torch.ones(size, size)
            heartbeat.note("agree")
            profiler.end(step)
    return profiler


def replace_rank(rank: int):
    return SimpleNamespace(**{**vars(CPU), "rank": rank, "world": 2})


def test_a_trace_and_a_table_hold_the_steps_that_were_asked_for_and_the_last_line_names_them(tmp_path, capsys):
    profiler = stepped(tmp_path, [2, 3])
    folder = tmp_path / "profile" / "steps_2-3"
    events = json.loads(gzip.decompress((folder / "rank_0.json.gz").read_bytes()))["traceEvents"]
    names = [one.get("name") for one in events]
    assert names.count("phase: train") == 2 and names.count("aten::mm") == 4
    table = (folder / "rank_0.txt").read_text()
    assert re.search(r"^generate +2 .*^train +2 .*^agree +2 ", table, re.MULTILINE | re.DOTALL) and "aten::mm" in table
    assert profiler._phase not in heartbeat.listeners and profiler.looked_at == (2, 3)
    last = capsys.readouterr().out.splitlines()[-1]
    assert str(folder / "rank_0.txt") in last and "rank_0.json.gz" in last and "steps 2 to 3" in last


def test_the_rest_of_the_steps_is_looked_into_after_a_resume_and_nothing_of_those_that_are_past(tmp_path, caplog):
    assert stepped(tmp_path, [1, 3], done=2).looked_at == (3, 3)
    assert stepped(tmp_path, [1, 2], done=2).looked_at is None and "are past" in caplog.text


def test_a_loop_that_ends_early_leaves_what_was_seen(tmp_path):
    with pytest.raises(SystemExit), Profiler(ProfileConfig(steps=[1, 9]), tmp_path, CPU) as profiler:
        profiler.begin(1)
        heartbeat.note("train")
        torch.ones(4, 4) @ torch.ones(4, 4)
        raise SystemExit(85)
    assert profiler.looked_at == (1, 1) and (tmp_path / "profile/steps_1-9/rank_0.txt").exists()


def test_ranks_that_were_not_asked_for_are_left_alone(tmp_path):
    with Profiler(ProfileConfig(steps=[1, 1], ranks=[0]), tmp_path, replace_rank(1)) as profiler:
        profiler.begin(1)
        assert not profiler.active


@pytest.fixture
def cuda_s_profiler(monkeypatch):
    """What is asked of CUDA's profiler, in order."""
    from vold_nemo.megatron import device

    said: list[str] = []
    monkeypatch.setattr(device, "synchronize", lambda device: said.append("wait"))
    for name in ("start_capture", "stop_capture", "close_range"):
        monkeypatch.setattr(device, name, lambda name=name: said.append(name))
    monkeypatch.setattr(device, "open_range", lambda name: said.append(name))
    return said


def test_nsys_is_told_the_steps_and_phases_are_ranges_in_every_step(tmp_path, cuda_s_profiler, capsys):
    layout = SimpleNamespace(rank=0, world=1, device=torch.device("cuda"))
    with Profiler(ProfileConfig(steps=[2, 2], tool="nsys"), tmp_path, layout) as profiler:
        profiler.go_on(0)
        for step in (1, 2, 3):
            profiler.begin(step)
            heartbeat.note("train")
            profiler.end(step)
    assert cuda_s_profiler == [
        "train", "wait", "start_capture", "close_range", "train", "wait", "close_range", "stop_capture", "train", "close_range",
    ]  # fmt: skip
    assert not list(tmp_path.rglob("*.txt")) and "nsys-ui" in capsys.readouterr().out


def event(name, start, end, kind=torch.autograd.DeviceType.CPU, own=None, thread=1, annotation=False):
    return SimpleNamespace(
        name=name, device_type=kind, thread=thread, is_user_annotation=annotation, self_cpu_time_total=own or end - start,
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
    )  # fmt: skip


def test_kernels_count_to_the_phase_that_they_run_in_and_overlapping_ones_keep_the_device_busy_once():
    cuda = torch.autograd.DeviceType.CUDA
    rows = rows_of([
        event("phase: teacher", 0, 100), event("phase: train", 100, 300), event("aten::mm", 10, 20),
        event("phase: train", 110, 290, cuda, annotation=True), event("gemm", 120, 200, cuda), event("nccl", 150, 250, cuda),
        event("gemm", 30, 60, cuda), event("cudaDeviceSynchronize", 200, 260), event("backward", 110, 150, thread=2),
        event("before any phase", -9, -5),
    ])  # fmt: skip
    teacher, train = rows["teacher"], rows["train"]
    assert (teacher.launches, round(teacher.busy * 1e6)) == (1, 30) and round(teacher.rest * 1e6) == 90
    assert (train.launches, round(train.busy * 1e6)) == (2, 130) and round(train.kernels["nccl"] * 1e6) == 100
    assert (train.waits, round(train.waited * 1e6)) == (1, 60)
    assert round(train.of_main * 1e6) == 60 and round(train.operators["backward"] * 1e6) == 40  # another thread's


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        (["profile.steps=[3,9]"], "profile.steps", "within the 4 steps of sft"),
        (["profile.steps=[3,2]"], "profile.steps", "the earlier one first"),
        (["profile.steps=[3]"], "profile.steps", "two steps"),
        (["profile.steps=[0,2]"], "profile.steps", "1 or more"),
        (["profile.steps=[1,2]", "profile.ranks=[0,4]"], "profile.ranks", "0 to 1, the ranks of the run"),
        (["profile.steps=[1,2]", "profile.tool=nsight"], "profile.tool", "torch | nsys"),
    ],
)  # fmt: skip
def test_what_no_run_has_is_named_before_it_begins(keys, key, words):
    config = compose(["experiment=miniature", "sft.steps=4", "sft.optimizer.warmup_steps=0", *keys])
    (error,) = (error for error in findings(config, "sft", 2) if error.key.startswith("profile"))
    assert error.key == key and words in str(error)


def test_a_plan_takes_steps_that_one_of_its_stages_has():
    config = compose(["experiment=miniature", "profile.steps=[60,70]"])  # 25 steps of sft, 70 of vold
    assert not [error for error in findings(config, "plan", 1) if error.key.startswith("profile")]


def test_nsys_is_refused_where_it_sees_nothing_with_the_line_that_starts_it(monkeypatch):
    config = compose(["experiment=miniature", "profile.steps=[1,2]", "profile.tool=nsys"])
    (error,) = of_node(config, "vold", {})
    assert error.key == "profile.tool" and "no GPU is used" in error.allowed
    there = {"name": "a GPU"}
    monkeypatch.setattr(profiling.shutil, "which", lambda name: None)
    (error,) = profiling.of_node(config, "vold", True, there)
    assert "installed" in error.allowed and "nsys profile" in error.mend and "rank_%q{RANK}" in error.mend
    monkeypatch.setattr(profiling.shutil, "which", lambda name: "/usr/bin/nsys")
    (error,) = profiling.of_node(config, "vold", True, {"SLURM_PROCID": "3"})
    assert "srun nsys profile" in error.mend and "rank_%q{SLURM_PROCID}" in error.mend
    assert not list(profiling.of_node(config, "vold", True, {"NSYS_PROFILING_SESSION_ID": "1"}))
    assert not list(profiling.of_node(replace(config, profile=ProfileConfig(steps=[1, 2])), "vold", False, {}))
    assert isinstance(error, ConfigError)


def profiled(folder, *overrides):
    """Loss and weights of three steps of stage 2, and the table of the profile, if there is one."""
    from vold_nemo.checkpoint.run_folder import Run
    from vold_nemo.megatron import parallel

    config = configuration(folder, "rollout.probe_tolerance=1e9", "vold.steps=3", *overrides)
    sampler = FixedSampler()
    model = build_vold(config, layout_of(config), sampler)
    run = Run(Path(config.outputs) / "vold", rank=0)
    try:
        with Profiler(config.profile, run.folder, model.layout) as profiler:
            profiler.go_on(0)
            losses = []
            for number in range(3):
                profiler.begin(number + 1)
                losses.append(model.train_step(number)["loss"])
                profiler.end(number + 1)
    finally:
        parallel.destroy()
    files = list((run.folder / "profile").rglob("*.txt"))
    return losses, {name: tensor.numpy().tobytes() for name, tensor in sampler.received.items()}, files[0] if files else None


@pytest.mark.long
def test_a_profiled_step_computes_the_same_bits_and_its_phases_are_those_of_the_clock(gloo, tmp_path):
    from tests.models.stages import make_world

    make_world(tmp_path)
    losses, weights, none = gloo(1).run(profiled, tmp_path)[0]
    same, there, table = gloo(1).run(profiled, tmp_path, "profile.steps=[2,3]")[0]
    assert none is None and same == losses and there == weights
    phases = [line.split()[0] for line in table.read_text().split("\n\n")[1].splitlines()[1:]]
    assert phases[:3] == ["generate", "logprobs", "teacher"] and {"train", "sync", "validate"} < set(phases)
