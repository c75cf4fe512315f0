"""A few training steps on a tiny model: what the tests of training, checkpoints and .nemo run on worker ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tests.megatron import tiny
from vold_nemo.config import OptimizerConfig

LENGTHS = (12, 7, 9, 16)  # ragged: micro-batches differ in shape
OPTIMIZER = {"learning_rate": 1e-3, "warmup_steps": 2, "schedule": "cosine", "weight_decay": 0.1, "clip_grad": 1.0}
STEPS = 4


def sequences(step: int) -> list[torch.Tensor]:
    """Four sequences of token ids, other ones at each step."""
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randint(7, tiny.SHAPE["vocab_size"], (length,), generator=generator) for length in LENGTHS]


def token_weight() -> float:
    """The mean over all predicted tokens of the global batch, as every rank and micro-batch knows it beforehand."""
    return 1.0 / sum(length - 1 for length in LENGTHS)


class Batch(NamedTuple):
    """Right-padded [b, s]."""

    rows: list[torch.Tensor]
    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def micro_batches(step: int, layout, size: int) -> list[Batch]:
    """This data-parallel rank's sequences, ``size`` at a time."""
    mine = sequences(step)[layout.data_rank :: layout.data]
    return [collate(mine[i : i + size], layout.tensor) for i in range(0, len(mine), size)]


def collate(rows: list[torch.Tensor], multiple: int) -> Batch:
    """s is a multiple of ``multiple``."""
    length = -(-max(len(row) for row in rows) // multiple) * multiple
    ids, targets, weights = (torch.zeros(len(rows), length, dtype=d) for d in (torch.long, torch.long, torch.float32))
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        targets[i, : len(row) - 1] = row[1:]
        weights[i, : len(row) - 1] = token_weight()
    return Batch(rows, ids, targets, weights)


def nll_step(arch, layout, poison=None):
    """A forward step with megatron-core's own vocabulary-parallel cross-entropy; ``poison(rows)`` scales the loss."""
    from megatron.core.tensor_parallel import (
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
        vocab_parallel_cross_entropy,
    )

    from vold_nemo.megatron import build
    from vold_nemo.megatron.training import summed, unwrap

    def step(model, batch: Batch):
        rows, ids, targets, weights = batch
        output = model(ids, torch.arange(ids.size(1)).expand_as(ids), None)

        def loss(hidden):
            gather = gather_from_sequence_parallel_region if layout.sequence else copy_to_tensor_model_parallel_region
            logits = torch.einsum("sbh,vh->sbv", gather(hidden), build.lm_head_weight(unwrap(model))).float()
            first = logits.size(-1) * layout.tensor_rank
            padding = torch.arange(first, first + logits.size(-1)) >= arch.vocabulary
            nll = vocab_parallel_cross_entropy(logits.masked_fill(padding, -1e9), targets.T.contiguous())
            value = (nll * weights.T).sum()
            if poison is not None:
                value = value * poison(rows)
            return summed(value, {"tokens": int((weights > 0).sum())})

        return output, loss

    return step


def trainer(path, tensor, pipeline, sequence=False, *, dtype=torch.float32, total=STEPS, virtual=1, **changes):
    """(model, arch, layout, optimizer, schedule) ready to train; the caller destroys."""
    from vold_nemo.megatron.optimizer import LearningRate, build_optimizer
    from vold_nemo.megatron.training import wrap_ddp

    model, arch, layout = tiny.built(path, tensor, pipeline, sequence, dtype=dtype, virtual=virtual)
    config = OptimizerConfig(**(OPTIMIZER | changes))
    model = wrap_ddp(model, distributed_optimizer=config.distributed)
    return model, arch, layout, build_optimizer(config, model), LearningRate(config, total)


def train(parts, first: int, last: int, size: int) -> list[tuple[float, float]]:
    """Steps ``first`` .. ``last - 1``; (loss, gradient norm) of each."""
    from vold_nemo.megatron.training import forward_backward, update

    model, arch, layout, optimizer, schedule = parts
    found = []
    for step in range(first, last):
        batches = micro_batches(step, layout, size)
        passed = forward_backward(model, batches, nll_step(arch, layout), layout=layout)
        assert len(passed.statistics) == (len(batches) if layout.is_last_stage else 0)
        result = update(optimizer, schedule, passed, layout=layout)
        assert not result.skipped
        found.append((passed.loss, result.grad_norm))
    return found


def trajectory(path, tensor, pipeline, sequence, size, steps=STEPS, options=None):
    """Losses and gradient norms of a few steps, on every rank of the world."""
    from vold_nemo.megatron import parallel

    parts = trainer(path, tensor, pipeline, sequence, **(options or {}))
    try:
        return train(parts, 0, steps, size)
    finally:
        parallel.destroy()


def fingerprint(model) -> dict[str, torch.Tensor]:
    """Every local parameter, copied."""
    from vold_nemo.megatron.training import unwrap

    return {name: p.detach().clone() for name, p in unwrap(model).named_parameters()}


def state(parts):
    """What :func:`trainer` made, as checkpoints take it."""
    from vold_nemo.checkpoint.loading import TrainingState

    model, _, layout, optimizer, schedule = parts
    return TrainingState(model, optimizer, schedule, layout)
