"""Seconds from ``srun`` to the first step of an attempt: every job and every requeue pays them on all GPUs.

    imports     plan.import_seconds
    groups      plan.group_seconds for each communicator of more than one rank that a rank belongs to: world, tensor,
                pipeline, data, model copy, context, expert
    staging     with cluster.launch.stage: the files that the fullest node copies, at the lowest of storage_gbs,
                storage_total_gbs over the nodes, and disk_gbs
    reading     what the fullest node's ranks read of student and teachers, each byte once a node (a second rank finds it in
                the page cache).  At disk_gbs if staged, else at the lower of storage_gbs and storage_total_gbs over the nodes
    to device   the fullest rank's student and teacher over host_gbs
    engine      plan.engine_seconds with vLLM
    first sync  what a rank's engine keeps: over the links what the rank does not hold, and once more for the first proof,
                which reads all of it

A node's ranks read what lies on their pipeline stages, and their expert ranks' experts (planning/staging.py); the rollout
engine reads the whole student on each node.  Files are copied whole: all experts of the node's layers, and a file or two more
at a stage's borders than is said here.  So a first attempt asks the file system for at least as many bytes staged as not; but
once and in long stretches, and what is read again (a requeue on the same node, another job there, pages that the node had to
give up, a teacher that ``teacher.offload_to=checkpoint`` reads again in each step) does not ask it again.

Nothing here was measured on a GPU; ``benchmarks/start.py`` measures imports, gloo's groups and reading on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vold_nemo.config import Config, ParallelConfig
from vold_nemo.megatron.architecture import Architecture, padded_vocabulary
from vold_nemo.megatron.names import Placement
from vold_nemo.planning import allocation, exchange, memory, rates
from vold_nemo.planning.memory import Models
from vold_nemo.planning.staging import Node, read_by

STORED = 2  # bytes a parameter on disk: published checkpoints are bf16


@dataclass(frozen=True)
class Start:
    """``seconds`` by part; bytes of the fullest node: ``read`` by its ranks, ``copied`` if staged; ``whole``: all weights."""

    stage: str
    gpus: int
    nodes: int
    seconds: dict[str, float]
    read: int
    copied: int
    whole: int

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def gpu_hours(self) -> float:
        return self.total * self.gpus / 3600


def start(config: Config, models: Models, stage: str, gpus: int) -> Start:
    """Of ``stage`` on ``gpus`` ranks.  Without ``cluster.storage_gbs`` no part that reads is timed."""
    each = min(gpus, config.cluster.gpus_per_node)
    nodes = math.ceil(gpus / each)
    read, copied = (_read(config, models, stage, gpus, each, files=files) for files in (False, True))
    seconds = {"imports": config.plan.import_seconds, "groups": config.plan.group_seconds * _groups(config, stage, gpus)}
    cluster, staged = config.cluster, config.cluster.launch.stage is not None
    if cluster.storage_gbs is not None:
        shared = min(cluster.storage_gbs, (cluster.storage_total_gbs or math.inf) / nodes)
        own = cluster.disk_gbs or cluster.storage_gbs
        if staged:
            seconds["staging"] = copied / (min(shared, own) * 1e9)
        seconds["reading"] = read / ((own if staged else shared) * 1e9)
    if not rates.missing(config) and stage != "traces":
        seconds["to device"] = _held(config, models, stage, gpus) / (cluster.host_gbs or math.inf) / 1e9
    if (config.traces if stage == "traces" else config.rollout).engine == "vllm" and stage != "sft":
        seconds["engine"] = config.plan.engine_seconds
    if stage == "vold" and not rates.missing(config):
        kept = STORED * allocation.parameter_count(models.student) / exchange.ranks_of_an_engine(config)
        ranks = config.parallel.tensor * config.parallel.pipeline
        seconds["first sync"] = (exchange.received(config, models.student) + kept) / rates.bandwidth(config, ranks)
    return Start(stage, gpus, nodes, {name: value for name, value in seconds.items() if value}, read, copied,
                 _whole(models, stage))  # fmt: skip


def _groups(config: Config, stage: str, gpus: int) -> int:
    if stage == "traces":
        return int(config.traces.tensor_parallel > 1)
    parallel = config.parallel
    data = gpus // parallel.model_ranks
    sizes = (gpus, parallel.tensor, parallel.pipeline, data, parallel.model_ranks, parallel.context, parallel.expert)
    return sum(size > 1 for size in sizes)


def _whole(models: Models, stage: str) -> int:
    if stage == "traces":
        return _stored(models.trace_writer)
    if stage == "sft":
        return _stored(models.student)
    return _stored(models.student, models.vision) + sum(map(_stored, models.teachers))


def _read(config: Config, models: Models, stage: str, gpus: int, each: int, *, files: bool) -> int:
    """Bytes that the fullest node's ranks read, or of the ``files`` that they lie in."""
    if stage == "traces":
        return _whole(models, stage)
    # A node in the first, a middle and the last pipeline stage: the ends hold embedding and head.
    firsts = sorted({0, gpus // 2 // each * each, gpus - each})
    sliced = (models.student,) if stage == "sft" else models.teachers
    engine = 0 if stage == "sft" else _stored(models.student, models.vision)
    nodes = [Node(range(first, first + each), gpus) for first in firsts]
    return engine + max(sum(_slices(config.parallel, arch, node, files) for arch in sliced) for node in nodes)


def _slices(parallel: ParallelConfig, arch: Architecture, node: Node, files: bool) -> int:
    """Bytes of the tensors that ``node``'s ranks hold; of those that are split, no more than its tensor ranks' parts."""
    share = min(1.0, len(node.ranks) / parallel.tensor)
    if files:  # a layer's experts lie side by side in a few files, and each rank's are in all of these
        share, parallel = 1.0, replace(parallel, expert=1)
    return round(sum(_bytes(place, arch) * (share if place.split else 1) for place in read_by(arch, parallel, node)))


def _bytes(place: Placement, arch: Architecture) -> int:
    sizes = sum(math.prod(shape) for shape in place.shapes)
    return STORED * (sizes // arch.experts if place.packed else sizes)


def _stored(arch: Architecture, more: int = 0) -> int:
    return STORED * (allocation.parameter_count(arch) + more)


def _held(config: Config, models: Models, stage: str, gpus: int) -> int:
    """Bytes of weights that the fullest rank takes to its device."""
    parallel = config.parallel
    data = gpus // (parallel.tensor * parallel.pipeline)
    found = []
    for number in {0, parallel.pipeline - 1}:
        at = allocation.Placement(parallel.tensor, parallel.pipeline, data, number, expert=parallel.expert)
        padded = padded_vocabulary(models.padded_rows, at.tensor)
        size = allocation.frozen(models.student, at, padded, config.precision).parameters
        found.append(size + (sum(memory.teachers_weights(config, models, at, padded)) if stage == "vold" else 0))
    return max(found)
