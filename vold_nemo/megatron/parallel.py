"""Process groups: from ``torchrun`` or plain ``srun`` variables to megatron-core's tensor x pipeline x data layout.

Ranks are numbered tensor first, then context, then data, then pipeline (megatron-core's ``tp-cp-ep-dp-pp``), so that the
ranks of a tensor group share a node.

gloo on the CPU.  With CUDA every group has NCCL; gloo, too, has the default group alone, which carries what is in host memory
(objects, checkpoints' plans).  A gloo group connects each rank with each other when it is made, which with megatron-core's
some twenty groups took 3,950 sockets a rank of 1,024: there it connects those that talk, when they first do.  Objects in
megatron-core's groups (a fingerprint of the batch, names of weights) travel through the device.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.launcher import launch
from vold_nemo.config.limits import raise_file_limit
from vold_nemo.megatron import cpu, versions
from vold_nemo.megatron.device import pick_training_device, use

logger = logging.getLogger(__name__)

_current: Layout | None = None  # what initialize() made last
_own_default_group = False  # whether destroy() may take the default group down, too
_groups_before: set = set()  # process groups that were there before ours


@dataclass(frozen=True)
class Layout:
    """This rank's place.  ``world = tensor x context x pipeline x data``; ``expert`` divides tensor x context x data."""

    tensor: int
    pipeline: int
    data: int
    tensor_rank: int
    pipeline_rank: int
    data_rank: int
    world: int
    rank: int
    sequence: bool
    device: torch.device
    tensor_group: dist.ProcessGroup = field(repr=False)
    pipeline_group: dist.ProcessGroup = field(repr=False)
    data_group: dist.ProcessGroup = field(repr=False)
    model_group: dist.ProcessGroup = field(repr=False)  # tensor x pipeline: the ranks that hold one copy of the model
    # Experts are spread over `expert` of a stage's tensor x data ranks, each whole on its rank.
    expert: int = 1
    expert_rank: int = 0
    expert_group: dist.ProcessGroup | None = field(default=None, repr=False)
    # A sequence is spread over the ranks of a context group; they share a data rank, and weights like data ranks do.
    context: int = 1
    context_rank: int = 0
    context_group: dist.ProcessGroup | None = field(default=None, repr=False)
    virtual: int = 1  # chunks that a stage's layers are cut into (chunks.py); a teacher may have another number

    @property
    def micro_batch_multiple(self) -> int:
        """What the number of micro-batches of a pass is a multiple of: the interleaved schedule runs groups of P."""
        return self.pipeline if self.virtual > 1 else 1

    @property
    def sequence_multiple(self) -> int:
        """What every sequence's length is padded to: context parallelism cuts it into two pieces a rank."""
        return 2 * self.context if self.context > 1 else 1

    @property
    def pad_multiple(self) -> int:
        """What a row's length is padded to: its slice is split over the tensor group, too, by sequence parallelism."""
        return self.sequence_multiple * (self.tensor if self.sequence else 1)

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline - 1


def _backend(where: torch.device) -> str:
    return "gloo" if where.type == "cpu" else "cpu:gloo,cuda:nccl"


def join_alone(where: torch.device, timeout_minutes: float = 30.0) -> None:
    """A world of this process alone, whatever launched it; nothing if a world is joined already."""
    if not dist.is_initialized():
        timeout = timedelta(minutes=timeout_minutes)
        dist.init_process_group(_backend(where), store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


def join(device: str = "auto", timeout_minutes: float = 30.0) -> torch.device:
    """Join the world, unless it is joined already; makes no group.  Returns this rank's device.  Collective over the world."""
    global _own_default_group, _groups_before
    place = launch()
    where = pick_training_device(device, place.local_rank)
    use(where)
    raise_file_limit(place.world)
    if where.type == "cuda":
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")  # read when a group is made; vLLM's own groups follow it, too
    if not dist.is_initialized():
        if place.host is None:
            join_alone(where, timeout_minutes)
        else:
            dist.init_process_group(_backend(where), init_method=f"tcp://{place.host}:{place.port}", rank=place.rank,
                                    world_size=place.world, timeout=timedelta(minutes=timeout_minutes))
        _own_default_group = True
    if _current is None:
        _groups_before = set(dist.distributed_c10d._world.pg_map)
    return where


def initialize(
    tensor: int, pipeline: int, *, virtual: int = 1, context: int = 1, expert: int = 1, sequence: bool = False, seed: int,
    device: str = "auto", timeout_minutes: float = 30.0,
) -> Layout:
    """Join the world (unless it is joined already), make megatron-core's groups, seed every generator.

    Collective over the world.  May be called again in one process after :func:`destroy`.

    :raises ConfigError: if the world is no multiple of the model's ranks, or the launcher's variables are unusable.
    """
    global _groups_before, _current
    where = join(device, timeout_minutes)
    if dist.get_rank() == 0 and (doubt := versions.doubt()):
        logger.warning(doubt)
    cpu.enable()
    from megatron.core import parallel_state, tensor_parallel

    world = dist.get_world_size()
    if world % (tensor * pipeline * context):
        raise ConfigError("world size", world,
                          f"a multiple of tensor x pipeline x context = {tensor} x {pipeline} x {context}",
                          "start as many processes as that, or lower parallel.tensor, parallel.pipeline or parallel.context")
    if world // pipeline % expert:
        raise ConfigError("parallel.expert", expert, f"a divisor of the {world // pipeline} ranks of a stage",
                          "lower parallel.expert, or start more processes")
    _groups_before = set(dist.distributed_c10d._world.pg_map)
    with _device_groups(where):
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline, context_parallel_size=context,
            expert_model_parallel_size=expert, expert_tensor_parallel_size=1, distributed_timeout_minutes=timeout_minutes,
            create_gloo_process_groups=False,  # of data-parallel ranks, for a gather of optimizer state that is not ours
        )
    random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    _current = Layout(
        tensor=tensor, pipeline=pipeline, data=parallel_state.get_data_parallel_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
        world=world, rank=dist.get_rank(), sequence=sequence and tensor > 1, device=where,
        tensor_group=parallel_state.get_tensor_model_parallel_group(),
        pipeline_group=parallel_state.get_pipeline_model_parallel_group(),
        data_group=parallel_state.get_data_parallel_group(),
        model_group=parallel_state.get_model_parallel_group(),
        expert=expert, expert_rank=parallel_state.get_expert_model_parallel_rank(),
        expert_group=parallel_state.get_expert_model_parallel_group(),
        context=context, context_rank=parallel_state.get_context_parallel_rank(),
        context_group=parallel_state.get_context_parallel_group(),
        virtual=virtual,
    )
    return _current


@contextlib.contextmanager
def _device_groups(where: torch.device) -> Iterator[None]:
    """On a GPU, megatron-core's groups are made with NCCL alone: without a word they would be all that the default group is."""
    from megatron.core import parallel_state

    if where.type == "cpu":
        yield
        return
    create = parallel_state.create_group

    def on_the_device(ranks=None, timeout=None, backend=None, **options):
        return create(ranks, timeout=timeout, backend=backend or "nccl", **options)

    parallel_state.create_group = on_the_device
    try:
        yield
    finally:
        parallel_state.create_group = create


def initialize_from(config: Config) -> Layout:
    """:func:`initialize` as ``parallel.*``, ``seed`` and ``device`` say.  Collective."""
    layout = config.parallel
    return initialize(
        layout.tensor, layout.pipeline, virtual=layout.virtual, context=layout.context, expert=layout.expert,
        sequence=layout.sequence, seed=config.seed, device=config.device,
        timeout_minutes=collective_minutes(config.limits.stuck_minutes),
    )  # fmt: skip


def collective_minutes(stuck_minutes: float | None) -> float:
    """Minutes that a collective waits for the others: longer than the heartbeat, which names the culprit and its stack.

    A rank that waits has been in its phase for at least as long as in the collective, so the heartbeat's limit
    (``limits.stuck_minutes``) comes first.  This is the net below it: while models are loaded, and where it is switched off.
    """
    return max(30.0, (stuck_minutes or 0.0) + 10.0)


def current() -> Layout:
    """The layout in force, for code that is called by others' code (NeMo restores models through their constructors)."""
    if _current is None:
        raise RuntimeError("no layout: call vold_nemo.megatron.parallel.initialize first")
    return _current


def destroy() -> None:
    """Take down what :func:`initialize` made; the default group only if it was made there.  Collective."""
    global _own_default_group, _current
    _current = None
    if not dist.is_initialized():
        return
    from megatron.core import parallel_state

    dist.barrier()  # nobody closes a connection that another rank is still using
    # megatron-core forgets its groups without closing them; tests that start many layouts would run out of sockets.
    ours = [group for group in dist.distributed_c10d._world.pg_map if group not in _groups_before]
    parallel_state.destroy_model_parallel()
    for group in ours:
        # megatron-core has closed its gloo groups itself
        if group in dist.distributed_c10d._world.pg_map:
            dist.destroy_process_group(group)
    if _own_default_group:
        dist.destroy_process_group()
        _own_default_group = False
