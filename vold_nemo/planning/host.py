"""Host memory of one rank, by what it is for, where it is most: while a checkpoint is written and training goes on.

    checkpoint   what this rank writes, once; on a GPU it stays from the second checkpoint on (``megatron/pinned.py: Room``)
    optimizer    master weights and moments, while they are off the device (``vold.offload.optimizer``)
    teacher      weights of teachers that rest in host memory (``offload_to=host``)
    engine       the rollout engine's weights, while it sleeps

Slabs are as large as what lies in them, but for the few bytes at which a piece begins.  What Python and libraries take is not
here.
"""

from __future__ import annotations

import itertools

from vold_nemo.config import Config
from vold_nemo.megatron.architecture import padded_vocabulary
from vold_nemo.planning import allocation, memory
from vold_nemo.planning.allocation import Placement
from vold_nemo.planning.memory import Models


def parts(config: Config, models: Models, stage: str, at: Placement) -> dict[str, int]:
    """Bytes of one rank of a training stage."""
    rows = [models.student.vocabulary] if stage == "sft" else models.padded_rows
    padded, distributed = padded_vocabulary(rows, at.tensor), getattr(config, stage).optimizer.distributed
    found = {}
    if config.checkpoint.asynchronous:
        found["checkpoint"] = allocation.checkpoint_copy(models.student, at, padded, config.precision, distributed)
    if stage == "sft":
        return found
    if config.vold.offload.optimizer:
        found["optimizer"] = allocation.trained(models.student, at, padded, config.precision, distributed).optimizer
    if models.teachers:
        weights = zip(memory.scorers(config, models), memory.teachers_weights(config, models, at, padded), strict=True)
        found["teacher"] = sum(size for (one, *_), size in weights if one.offload and one.offload_to == "host")
    if config.rollout.sleep:
        found["engine"] = memory.engine_weights(config, models)
    return {name: size for name, size in found.items() if size}


def fullest(config: Config, models: Models, stage: str, gpus: int) -> dict[str, int]:
    """:func:`parts` of the rank that needs most."""
    parallel = config.parallel
    data = gpus // (parallel.tensor * parallel.pipeline)
    every = (
        Placement(parallel.tensor, parallel.pipeline, data, *at, parallel.expert, parallel.virtual)
        for at in itertools.product(range(parallel.pipeline), range(data))
    )
    found = (parts(config, models, stage, at) for at in every)
    return max(found, key=lambda sizes: sum(sizes.values()))
