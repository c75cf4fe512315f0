"""One rank, one stage, from joining the world to leaving it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vold_nemo.config import Config, ConfigError, TeacherConfig
from vold_nemo.config.sections.training import ProfileConfig
from vold_nemo.planning.plan import models_of, stage_gpus

OWN = "the project's own"  # layers


@dataclass
class Rehearsal:
    """What came of it.  ``failed``: what ended it before its end."""

    config: Config
    stage: str
    rank: int
    world: int
    ledger: Any
    groups: Any
    layers: str  # whose
    layout: Any = None
    seconds: float = 0.0  # of this process' processors
    failed: BaseException | None = None
    inputs: Any = None
    held: dict[str, int] = field(default_factory=dict)  # bytes by holder, after the step
    held_by_phase: dict[str, dict[str, int]] = field(default_factory=dict)  # as a run of stage 2 measures it
    micro_batches: int = 0  # of an update on this data rank
    micro_batches_run: int = 0
    tokens: int = 0  # of them, padding included
    tokens_run: int = 0
    scored_tokens: int = 0
    scored_tokens_run: int = 0

    def take(self, model) -> None:
        """What ``model`` says after its step."""
        from vold_nemo.megatron.offload import GradientBuffers, OptimizerState, storage_bytes

        self.layout = model.layout
        self.count(model)
        if self.stage == "sft":
            self.held = {
                "parameters": storage_bytes(model.stage.parameters()),
                "gradients": GradientBuffers(model.stage).device_bytes(),
                "optimizer": OptimizerState(model.optimizer_in_training, model.stage).device_bytes(),
            }
        else:  # as the run itself measures it, in the phase that needs it
            train, teacher = (model.handover.held.get(phase, {}) for phase in ("train", "teacher"))
            found = {"parameters": train.get("student")}
            if not any(one.resting for one in model.teachers.members):  # else it has left again, but for its LM head
                found["teacher"] = teacher.get("teacher")
            found |= {name: train.get(name) for name in ("gradients", "optimizer")}
            self.held = {name: size for name, size in found.items() if size is not None}
            self.held_by_phase = model.handover.held

    def count(self, model) -> None:
        """The micro-batches of ``model``'s last update."""
        if not model.cut_short:
            return
        every, run = model.cut_short[-1]
        self.micro_batches, self.micro_batches_run = len(every), len(run)
        self.tokens, self.tokens_run = (sum(batch.ids.numel() for batch in some) for some in (every, run))
        self.scored_tokens, self.scored_tokens_run = (
            sum(batch.ids.numel() for batch in some if batch.scored) for some in (every, run)
        )


def world_of(config: Config) -> int:
    """Ranks of the world that is rehearsed.

    Raises:
        ConfigError: a rank outside it, or no GPU to play.
    """
    asked, stage = config.rehearse, config.rehearse.stage
    world = asked.world or stage_gpus(config, stage)
    if asked.rank >= world:
        allowed = f"0 to {world - 1}, the ranks of the {stage} stage"
        raise ConfigError("rehearse.rank", asked.rank, allowed, "name one of them, or raise rehearse.world")
    if config.device == "cpu":
        mend = "leave it out: a rehearsal plays a GPU (rehearse.stage=export may be one on a CPU)"
        raise ConfigError("device", config.device, "auto | cuda", mend)
    for key in ("memory_gib", "compute_capability"):
        if getattr(config.cluster, key) is None:
            mend = "choose a cluster (cluster=h100), or give the key"
            raise ConfigError(f"cluster.{key}", None, "what the GPU that is played has", mend)
    return world


def rehearse(config: Config) -> Rehearsal:
    """See the package.  Turns this process into one that has a fake GPU, for good.

    Raises:
        ConfigError: no compiler, a rank outside the world, a model without published shapes.
    """
    asked, world = config.rehearse, world_of(config)
    # Stage 1 has not run: the same shapes.  A profiler would see fake tensors.
    config = replace(config, vold=replace(config.vold, start=config.student.path), profile=ProfileConfig())
    per_node = config.cluster.gpus_per_node
    with launched_as(asked.rank, world, asked.rank % per_node):
        return _rehearse(config, world, per_node)


@contextlib.contextmanager
def launched_as(rank: int, world: int, local_rank: int) -> Iterator[None]:
    """The launcher's variables as that rank has them; afterwards this process speaks for itself again."""
    before = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(local_rank), "TORCHDYNAMO_DISABLE": "1"}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _rehearse(config: Config, world: int, per_node: int) -> Rehearsal:
    asked, stage = config.rehearse, config.rehearse.stage
    from vold_nemo.rehearsal import shim

    shim.load()
    from vold_nemo.rehearsal.groups import Groups
    from vold_nemo.rehearsal.ledger import Ledger
    from vold_nemo.rehearsal.stand_ins import play_world
    from vold_nemo.rehearsal.watch import Watch

    ledger, groups = Ledger(), Groups(asked.rank, world, per_node)
    watch = Watch(ledger, groups)
    layers = play(config, ledger, watch)
    if layers == OWN:  # as a run without Transformer Engine would choose, and as the planner is then asked
        config = replace(config, teacher=_in_bf16(config.teacher),
                         teachers={name: _in_bf16(one) for name, one in config.teachers.items()})  # fmt: skip
    play_world(ledger, watch)
    result = Rehearsal(config, stage, asked.rank, world, ledger, groups, layers=layers)
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="rehearsal_") as folder:
        try:
            _run(config, watch, Path(folder), result)
        except ConfigError:
            raise
        except Exception as error:
            result.failed = error
            if result.inputs is not None and getattr(result.inputs, "built", None) is not None:
                result.count(result.inputs.built)
    result.seconds = time.process_time() - began
    return result


def play(config: Config, ledger, watch) -> str:
    """Put the cluster's GPU in place, and what would be installed beside it; returns whose layers are taken."""
    from vold_nemo.rehearsal.stand_ins import GPU, play_gpu

    capability = divmod(round(10 * config.cluster.compute_capability), 10)
    play_gpu(GPU(config.cluster.name, capability, int(config.cluster.memory_gib * 2**30)), ledger, watch)
    if config.rehearse.apex:  # first: Transformer Engine imports megatron-core
        from vold_nemo.rehearsal import apex

        apex.install(ledger)
    return _engine(config.rehearse.engine, ledger)


def _in_bf16(teacher: TeacherConfig) -> TeacherConfig:
    return replace(teacher, precision="bf16") if teacher.precision == "auto" else teacher


def _engine(asked: str, ledger) -> str:
    """Make Transformer Engine's layers importable where they are asked for and can be had; returns whose layers are taken.

    Raises:
        ConfigError: ``rehearse.engine=te`` and no registry answers.
    """
    if asked == "local":
        return OWN
    from vold_nemo.rehearsal import engine, values
    from vold_nemo.rehearsal.engine import report

    version = engine.wanted_version()
    try:
        site = engine.cached()
    except RuntimeError as error:
        if asked == "te":
            allowed = f"te where pip can download Transformer Engine {version}'s Python wheel, once"
            mend = "let pip reach a package registry, or set rehearse.engine=local"
            raise ConfigError("rehearse.engine", f"te: {error}", allowed, mend) from error
        print(f"note: the project's own layers are rehearsed, not Transformer Engine's: {error}", file=sys.stderr)
        return OWN
    report.on_kernel, report.values_of = ledger.kernel, values.known
    engine.install(site)
    return f"Transformer Engine {version}'s"


def _run(config: Config, watch, folder: Path, result: Rehearsal) -> None:
    from vold_nemo.models import heartbeat
    from vold_nemo.models.stages import train_sft, train_vold
    from vold_nemo.rehearsal.inputs import SFTInputs, VOLDInputs

    watch.groups.join()
    heartbeat.listeners.append(watch.ledger.enter)
    with watch:
        if result.stage == "sft":
            result.inputs = SFTInputs(config, watch, folder)
            train_sft(config, result.inputs)
        else:
            result.inputs = VOLDInputs(config, watch, folder, models_of(config), result.world)
            train_vold(config, result.inputs)
        result.take(result.inputs.built)
