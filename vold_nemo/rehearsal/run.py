"""One rank, one stage, from joining the world to leaving it."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vold_nemo.config import Config, ConfigError
from vold_nemo.planning.plan import models_of, stage_gpus


@dataclass
class Rehearsal:
    """What came of it.  ``failed``: what ended it before its end."""

    config: Config
    stage: str
    rank: int
    world: int
    ledger: Any
    groups: Any
    layout: Any = None
    model: Any = None
    engine: str = "local"  # whose layers
    seconds: float = 0.0  # of this process' processors
    failed: BaseException | None = None
    held: dict[str, dict[str, int]] = field(default_factory=dict)  # by phase and holder, as a run measures it


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
    asked, stage = config.rehearse, config.rehearse.stage
    world = world_of(config)
    config = replace(config, vold=replace(config.vold, start=config.student.path))  # stage 1 has not run: the same shapes
    per_node = config.cluster.gpus_per_node
    for name, value in {"RANK": asked.rank, "WORLD_SIZE": world, "LOCAL_RANK": asked.rank % per_node}.items():
        os.environ[name] = str(value)
    os.environ["TORCHDYNAMO_DISABLE"] = "1"

    from vold_nemo.rehearsal import shim

    shim.load()
    from vold_nemo.rehearsal.groups import Groups
    from vold_nemo.rehearsal.ledger import Ledger
    from vold_nemo.rehearsal.stand_ins import GPU, put_in_place
    from vold_nemo.rehearsal.watch import Watch

    capability = divmod(round(10 * config.cluster.compute_capability), 10)
    gpu = GPU(config.cluster.name, capability, int(config.cluster.memory_gib * 2**30))
    ledger, groups = Ledger(), Groups(asked.rank, world, per_node)
    watch = Watch(ledger, groups)
    put_in_place(gpu, ledger, watch)
    result = Rehearsal(config, stage, asked.rank, world, ledger, groups)
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="rehearsal_") as folder:
        try:
            _run(config, watch, Path(folder), result)
        except ConfigError:
            raise
        except Exception as error:
            result.failed = error
    result.seconds = time.process_time() - began
    return result


def _run(config: Config, watch, folder: Path, result: Rehearsal) -> None:
    from vold_nemo.models import heartbeat
    from vold_nemo.models.stages import train_sft, train_vold
    from vold_nemo.rehearsal.inputs import SFTInputs, VOLDInputs

    watch.groups.join()
    heartbeat.listeners.append(watch.ledger.enter)
    with watch:
        if result.stage == "sft":
            inputs = SFTInputs(config, watch, folder)
            train_sft(config, inputs)
        else:
            inputs = VOLDInputs(config, watch, folder, models_of(config), result.world)
            train_vold(config, inputs)
        result.model, result.layout = inputs.built, inputs.built.layout
        if result.stage == "vold":
            result.held = inputs.built.handover.held
