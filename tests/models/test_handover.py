"""Who holds the device: what leaves comes back bit for bit, and the bytes of each phase are those of the table."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models.stages import REWARDS, FixedSampler, build_vold, configuration, layout_of, vold_steps
from vold_nemo.models import heartbeat
from vold_nemo.models.clock import PhaseClock
from vold_nemo.models.handover import Handover

ASKED = ["vold.offload.gradients=true", "vold.offload.optimizer=true", "rollout.sleep=true", "vold.updates_per_step=2"]


@pytest.mark.parametrize(
    ("ranks", "options", "state"),  # bytes of optimizer state a parameter, on one rank
    [(1, [], 8), (1, ["precision=bf16"], 12), (2, ["precision=bf16", "vold.optimizer.distributed=true"], 6)],
    ids=["fp32", "bf16 masters", "distributed"],
)
def test_offload_restore_and_step_are_bit_equal_to_no_offload(gloo, world, ranks, options, state):
    resident = gloo(ranks).run(vold_steps, world, REWARDS, "vold.updates_per_step=2", *options)
    for kept, moved in zip(resident, gloo(ranks).run(vold_steps, world, REWARDS, *ASKED, *options), strict=True):
        for name, tensor in kept["weights"].items():
            np.testing.assert_array_equal(moved["weights"][name], tensor)
        for before, after in zip(kept["metrics"], moved["metrics"], strict=True):
            assert (before["loss"], before["grad_norm"]) == (after["loss"], after["grad_norm"])
        held = moved["metrics"][1]["memory"]["held"]
        student, width = held["train"]["student"], 2 if options else 4
        for phase in ("generate", "logprobs", "teacher", "sync"):
            assert held[phase]["gradients"] == held[phase]["optimizer"] == 0
        assert held["train"]["gradients"] == pytest.approx(student / width * 4, rel=0.02)  # a bucket's padding aside
        assert held["train"]["optimizer"] == pytest.approx(student / width * state, rel=0.02)
        for phase, bytes_awake in {"generate": 1000, "teacher": 0, "train": 0, "sync": 1000}.items():
            assert held[phase]["engine"] == bytes_awake
        assert set(kept["metrics"][1]["memory"]["held"]["generate"].values()) & {0} == set()  # unasked, nothing moves


class Recorder:
    def __init__(self, name, log):
        self.leave, self.come_back = (lambda: log.append(f"-{name}")), (lambda: log.append(f"+{name}"))


def test_leaving_comes_first_and_a_phase_that_is_not_in_the_table_moves_nothing():
    log = []
    handover = Handover({name: Recorder(name, log) for name in ("engine", "optimizer")}, {})
    said = []
    for phase in ("generate", "reward", "train", "train", "sync", "checkpoint"):
        handover.enter(phase)
        said.append(" ".join(log))
        log.clear()
    assert said == ["-optimizer", "", "-engine +optimizer", "", "-optimizer +engine", "-engine +optimizer"]


def test_a_phase_begins_when_others_have_left_so_that_its_memory_is_what_it_needs(monkeypatch):
    log = []
    monkeypatch.setattr(heartbeat, "listeners", [log.append])
    clock = PhaseClock(torch.device("cpu"), Handover({name: Recorder(name, log) for name in ("engine", "optimizer")}, {}))
    for phase in ("train", "sync"):
        with clock(phase):
            log.append("work")
    assert log == ["-engine", "train", "work", "-optimizer", "sync", "+engine", "work"]


def test_what_left_before_the_first_phase_is_not_asked_to_leave_and_comes_back():
    log = []
    movables = {name: Recorder(name, log) for name in ("gradients", "optimizer", "engine")}
    handover = Handover(movables, {}, away=["engine"])
    handover.enter("checkpoint")
    handover.enter("sync")
    assert log == ["-gradients", "-optimizer", "+engine"]


class Enough(Exception):
    """Ends a stage at its first model."""


@pytest.mark.parametrize(("sleeps", "before"), [("true", ["engine", "sleep"]), ("false", ["engine"])])
def test_an_engine_that_is_to_sleep_does_so_before_there_is_a_model(world, gloo, sleeps, before):
    assert gloo(1).run(until_a_model, world, f"rollout.sleep={sleeps}") == [before]


def until_a_model(folder, *options):
    """What :func:`train_vold` asks of its engine until the first model is built."""
    from vold_nemo.megatron import parallel
    from vold_nemo.models.stages import train_vold

    log = []

    def stop(config):
        raise Enough

    def engine(device):
        log.append("engine")
        return SimpleNamespace(sleep=lambda: log.append("sleep"))

    with pytest.raises(Enough):
        inputs = SimpleNamespace(engine=engine, model=stop, alone=lambda rank: contextlib.nullcontext())
        train_vold(configuration(folder, *options), inputs)
    parallel.destroy()
    return log


class Watched(FixedSampler):
    """Notes what is on the device while it is woken, fed and asked."""

    def __init__(self):
        super().__init__()
        self.awake, self.log, self.model = False, [], None

    def note(self, what):
        held = self.model.handover._bytes_of
        self.log.append((what, held["gradients"](), held["optimizer"](), self.awake))

    def wake(self):
        self.note("wake")
        super().wake()

    def load(self, stream, version, part):
        self.note("load")
        return super().load(stream, version, part)

    def validate(self, step):
        self.note("validate")
        return {}


def first_sync(folder, *options):
    from vold_nemo.megatron import parallel

    config = configuration(folder, *options)
    watched = Watched()
    watched.model = build_vold(config, layout_of(config), watched)
    watched.model.on_loop_start(0)
    held = watched.model.handover.held["validate"]
    parallel.destroy()
    return watched.log, held


def test_the_first_sync_and_validation_have_the_device_as_the_later_ones_do(gloo, world):
    log, held = gloo(1).run(first_sync, world, *ASKED)[0]
    assert log == [("wake", 0, 0, False), ("load", 0, 0, True), ("validate", 0, 0, True)]
    assert held["gradients"] == held["optimizer"] == 0 and held["engine"] == 1000


def test_fp32_parameters_in_the_optimizers_groups_never_leave():
    from vold_nemo.megatron.offload import OptimizerState

    model = torch.nn.Linear(4, 4)
    adam = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    adam.step()

    part = SimpleNamespace(optimizer=adam, shard_fp32_groups=[list(model.parameters())])
    state = OptimizerState(SimpleNamespace(chained_optimizers=[part]), model)
    view = adam.state[model.weight]["exp_avg"].view(-1)[3:7]
    before = view.clone()
    state.leave()
    assert state.device_bytes() == 0 and model.weight.untyped_storage().nbytes() == 64
    state.come_back()
    assert state.device_bytes() == 2 * (64 + 16) and torch.equal(view, before)
