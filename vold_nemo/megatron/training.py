"""Forward, backward and update over megatron-core's schedules.

One rule holds for every layout: the loss of a step is a weighted SUM,

    L = sum over data-parallel ranks, micro-batches and tokens of  weight_t * loss_t,

and the weights already carry the whole normalisation (they are computed over the global batch before the schedule
runs).  So nothing here divides: not by micro-batches, not by data-parallel size, not by tokens.  Gradients are summed
over data- and context-parallel ranks (a context rank brings its own tokens' terms), and no layout and no
micro-batching changes them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from vold_nemo.megatron.chunks import chunks_of, each_chunk
from vold_nemo.megatron.device import synchronize
from vold_nemo.megatron.pipeline import exchange

logger = logging.getLogger(__name__)

Summed = tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, Any]]  # of :func:`summed`
ForwardStep = Callable[[Any, Any], tuple[torch.Tensor, Callable[[torch.Tensor], Summed]]]  # see :func:`forward_backward`


@dataclass(frozen=True)
class NonFinite:
    """Where a number stopped being one.  ``micro_batch`` is None where only the summed gradient shows it."""

    rank: int
    micro_batch: int | None
    what: str  # loss | gradient

    def __str__(self) -> str:
        where = "" if self.micro_batch is None else f", micro-batch {self.micro_batch}"
        return f"{self.what} on rank {self.rank}{where}"


@dataclass
class Pass:
    """What one pass over a step's micro-batches gave."""

    loss: float  # the weighted sum over the whole world, the same on every rank
    statistics: list = field(default_factory=list)  # one entry a micro-batch, on the last pipeline stage; else empty
    non_finite: list[NonFinite] = field(default_factory=list)  # over the whole world, the same on every rank
    seconds: float = 0.0  # that this rank took until it could reduce its gradients, where it waits for the slowest


@dataclass
class Update:
    """One optimizer step."""

    grad_norm: float  # before clipping, over the whole model
    learning_rate: float
    skipped: bool  # nothing was changed, because something was not finite
    non_finite: list[NonFinite] = field(default_factory=list)


class NonFiniteError(RuntimeError):
    """Too many updates in a row were skipped because a loss or gradient was not finite."""


@lru_cache(maxsize=1)
def _half_precision_module():
    from megatron.core.transformer.module import Float16Module

    class HalfPrecisionModule(Float16Module):
        """Float16Module whose last stage keeps its own precision.

        Megatron's upcasts the last stage's output, meant for logits, to fp32; here that output is hidden states, which
        the objective casts chunk by chunk.
        """

        def forward(self, *inputs, **kwargs):
            return super().forward(*inputs, fp32_output=False, **kwargs)

    return HalfPrecisionModule


def wrap_ddp(model, *, distributed_optimizer: bool = False):
    """``model`` (this pipeline stage) inside megatron-core's DistributedDataParallel; of virtual stages each by itself.

    Gradients gather in one fp32 buffer, are summed (not averaged: ``calculate_per_token_loss`` asks for a factor of 1)
    over the data-parallel group, and are finalised by megatron-core: tied embeddings over the first and last stage,
    norms over the tensor-parallel group under sequence parallelism.  A bf16 model is cast here.
    """
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    config = model.config
    _prepare(config)
    # No overlap of reductions with the backward pass and no overlapped parameter gather: the latter waits in module
    # hooks, which the objective's direct use of the LM head's weight would pass by.
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=False, overlap_param_gather=False,
        use_distributed_optimizer=distributed_optimizer, check_for_nan_in_grad=False, average_in_collective=False,
    )  # fmt: skip

    def wrapped(chunk):
        return DistributedDataParallel(config, settings, _half_precision_module()(config, chunk) if config.bf16 else chunk)

    return each_chunk(model, wrapped)


def unwrap(model):
    """What :func:`build.build_model` made, out of DistributedDataParallel and Float16Module."""
    from megatron.core.utils import unwrap_model

    return each_chunk(model, unwrap_model)


def _prepare(config) -> None:
    """Settings of a model's TransformerConfig that the schedules read."""
    config.calculate_per_token_loss = True
    config.variable_seq_lengths = True  # micro-batches are ragged (megatron/pipeline.py)
    config.finalize_model_grads_func = _finalize_gradients
    config.grad_scale_func = None  # bf16 and fp32 need no loss scale


def _finalize_gradients(model, num_tokens=None, **groups) -> None:
    """megatron-core's finalisation without its division by a token count: one token is counted once, in its weight."""
    from megatron.core.distributed import finalize_model_grads

    finalize_model_grads(model, None, **groups)


def summed(loss: torch.Tensor, statistics: Any = None) -> Summed:
    """What the function behind a stage's output returns: a scalar that is a weighted sum, and what is wanted besides."""
    # No token is counted, since weights hold the normalisation; a copy, because schedules divide a returned loss in place.
    return loss, torch.zeros((), dtype=torch.int), (loss.detach().clone(), statistics)


def forward_backward(
    model, micro_batches: Sequence, forward_step: ForwardStep, *, layout, forward_only: bool = False
) -> Pass:
    """Run ``micro_batches`` through the pipeline; gradients are left, reduced, in the DDP buffers.

    ``micro_batches`` have ``ids`` [B, S] and are the same on every stage of a pipeline.
    ``forward_step(model, micro_batch)`` calls the model and returns its output with the function that turns the last
    stage's output into :func:`summed` of loss and statistics; that function runs on the last pipeline stage only, must give
    the same loss on all tensor-parallel ranks, and must already hold all normalisation (see the module's docstring).  Every
    rank of a pipeline passes the same number of micro-batches, at least one, and with virtual stages, each of which is a
    ``model`` of its own to the step, a multiple of ``layout.micro_batch_multiple``.

    ``forward_only`` runs without autograd on the bare model, which ``model`` may then be (the teacher), and touches no
    gradient; the loss may then be a constant and the statistics whatever is wanted of the output.

    Collectives: the schedule's own, one sum over the world, and one object gather where something is not finite.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.utils import get_model_config

    if not micro_batches:
        raise ValueError("a pass needs at least one micro-batch: a rank with nothing to do brings one of weight zero")
    if len(micro_batches) % layout.micro_batch_multiple:
        raise ValueError(f"{len(micro_batches)} micro-batches: virtual stages run a multiple of {layout.micro_batch_multiple}")
    if forward_only:
        model = unwrap(model)
    chunks, numbered = chunks_of(model), list(enumerate(micro_batches))
    config = get_model_config(chunks[0])
    _prepare(config)
    began, ready = _now(layout.device), []

    def finalize(*stages, **groups) -> None:
        ready.append(_now(layout.device))
        _finalize_gradients(*stages, **groups)

    if not forward_only:
        for chunk in chunks:
            chunk.zero_grad_buffer()
        for parameter in model.parameters():
            parameter.grad = None  # after a step it aliases the gradient buffer and would be added to itself
    finite: list[tuple[int, str, torch.Tensor]] = []  # checked once at the end: no synchronisation inside the schedule

    def step(iterator, stage):
        index, micro_batch = next(iterator)
        output, loss_of = forward_step(stage, micro_batch)
        if output.requires_grad:

            def watch(gradient, index=index):
                finite.append((index, "gradient", torch.isfinite(gradient).all()))

            output.register_hook(watch)
        return output, loss_of

    config.finalize_model_grads_func = finalize
    with torch.no_grad() if forward_only else contextlib.nullcontext():
        schedule = get_forward_backward_func(layout.pipeline, layout.virtual if layout.virtual > 1 else None)
        said = schedule(
            forward_step_func=step, num_microbatches=len(micro_batches), forward_only=forward_only,
            model=chunks if len(chunks) > 1 else chunks[0],
            data_iterator=[iter(numbered) for _ in chunks] if len(chunks) > 1 else iter(numbered),
            seq_length=layout.tensor * layout.context, micro_batch_size=1,  # asked for, and ignored: shapes are known
            **exchange(config, micro_batches, layout),
        )
    config.finalize_model_grads_func = _finalize_gradients  # the configuration is copied and pickled by others: no closure
    losses = [loss for loss, _ in said] if layout.is_last_stage else []
    finite += [(index, "loss", torch.isfinite(loss).all()) for index, loss in enumerate(losses)]
    good = torch.stack([flag for *_, flag in finite]).tolist() if finite else []  # asked once: an answer stalls a GPU's queue
    found = [NonFinite(layout.rank, index, what) for (index, what, _), fine in zip(finite, good, strict=True) if not fine]
    counted_here = layout.is_last_stage and layout.tensor_rank == 0
    totals = torch.zeros(2, dtype=torch.float64, device=layout.device)
    if counted_here and losses:
        totals[0] = torch.stack(losses).double().sum()
    totals[1] = len(found)
    dist.all_reduce(totals)
    return Pass(
        loss=totals[0].item(),
        statistics=[statistics for _, statistics in said] if layout.is_last_stage else [],
        non_finite=_gather(found) if totals[1] > 0 else [],
        seconds=(ready or [_now(layout.device)])[0] - began,
    )


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


def _gather(found: list[NonFinite]) -> list[NonFinite]:
    everywhere: list = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found)
    # Earliest first: where a loss is bad all its gradients are, and what follows it is only its echo.
    return sorted(
        (item for rank in everywhere for item in rank),
        key=lambda item: (item.what != "loss", -1 if item.micro_batch is None else item.micro_batch, -item.rank),
    )


def update(optimizer, schedule, passed: Pass, *, layout) -> Update:
    """Clip, step, and move the schedule on; or change no weight at all if anything was not finite.

    The decision is the same on every rank.  The schedule advances either way: the rate belongs to the step's number.
    The norm is that of the whole model, tied and replicated parameters counted once.
    """
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    rate = schedule.apply(optimizer)
    schedule.advance()
    optimizer.prepare_grads()
    norm = optimizer.get_grad_norm()
    # The norm spans one model-parallel group; a rank that alone skipped would part from its data-parallel peers for good.
    bad = torch.tensor(float(not math.isfinite(norm)), device=layout.device)
    dist.all_reduce(bad, op=dist.ReduceOp.MAX)
    if passed.non_finite or bad.item():
        found = passed.non_finite or _gather(_non_finite_gradients(optimizer, layout))
        optimizer.zero_grad()
        return Update(float(norm), rate, skipped=True, non_finite=found)
    for part in optimizer.chained_optimizers:
        if part.config.clip_grad > 0.0 and not part.is_stub_optimizer:
            clip_grad_by_total_norm_fp32(
                part.get_parameters(), max_norm=part.config.clip_grad, total_norm=norm,
                use_decoupled_grad=part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
            )
    optimizer.step_with_ready_grads()
    optimizer.zero_grad()
    return Update(float(norm), rate, skipped=False)


def _non_finite_gradients(optimizer, layout) -> list[NonFinite]:
    gradients = [p.grad for part in optimizer.chained_optimizers for p in part.get_parameters() if p.grad is not None]
    good = all(torch.isfinite(gradient).all().item() for gradient in gradients)
    return [] if good else [NonFinite(layout.rank, None, "gradient")]


class NonFiniteGuard:
    """Counts skipped updates in a row; names them; stops the run when there are ``limit`` of them."""

    def __init__(self, limit: int):
        self.limit = limit
        self.in_a_row = 0

    def check(self, step: int, result: Update, describe: Callable[[NonFinite], str] = str) -> None:
        """Log a skipped update; raise :class:`NonFiniteError` at the limit.

        ``describe`` may add what only the caller knows, the prompt in that micro-batch.
        """
        if not result.skipped:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        where = "; ".join(describe(item) for item in result.non_finite[:8])
        message = f"step {step}: not finite: {where} (gradient norm {result.grad_norm}); update skipped"
        logger.warning(message)
        if self.in_a_row >= self.limit:
            raise NonFiniteError(f"{message}; {self.in_a_row} in a row, the run stops (optimizer.max_skipped)")
