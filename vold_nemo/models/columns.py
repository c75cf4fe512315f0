"""Columns of a step that need a model: the trainer's log-probs, the teacher's, and what the training pass itself says.

Each is written where it is formed, on the last pipeline stage, for the tokens of this data and context rank; :func:`complete`
puts them together when the step is over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.megatron import sequences
from vold_nemo.megatron.training import forward_backward, summed
from vold_nemo.objective import TokenStatistics, token_logprobs
from vold_nemo.step import MicroBatch, Step, StepOptions
from vold_nemo.step.metrics import Totals
from vold_nemo.step.select import bounded_k1, penalise, soften


def fill_logprobs(model, step: Step, updates: Sequence[Sequence[MicroBatch]]) -> None:
    """``old`` where several updates move the weights, ``student_shared`` where the KL goes into the rewards.

    A forward-only pass each, of the stage 2 ``model``, at the sampling temperature.
    """
    if len(updates) > 1:
        step.column("old")
        for batches in updates:
            _fill(model, step, batches, "old", model.shard, "trained")
    if model.options.kl_in_rewards:
        step.column("student_shared")
        for batches in updates:
            chosen = [batch for batch in batches if batch.scored]
            if chosen:  # as for the teacher: every data rank has a scored micro-batch, or none has
                _fill(model, step, chosen, "student_shared", model.shard.over_shared, "carries")


def _fill(model, step: Step, batches: Sequence[MicroBatch], name: str, shard, where: str) -> None:
    def keep(output: Tensor, batch: MicroBatch, index: int):
        hidden = sequences.predicting(output, batch, model.layout)
        logprobs = _score(model, hidden, model.head, batch, shard, model.objective.temperature, step.take(batch, where))
        step.put(batch, name, logprobs)
        return summed(logprobs.sum())

    through = sequences.through(keep, model.layout)
    forward_backward(model.stage, list(batches), through, layout=model.layout, forward_only=True)


def fill_teacher(
    model, step: Step, batches: Sequence[MicroBatch], hidden: Sequence[Tensor | None], factor: float
) -> None:
    """What the teacher's log-probs decide before a gradient: a soft mask; advantages of rewards with the KL inside.

    On the last pipeline stage, which alone reads weights; elsewhere hidden states are None.  ``factor``: `select.penalise`.
    """
    options = model.options
    if not options.reads_teacher_first:
        return
    step.column("teacher")
    known = torch.zeros(len(step), dtype=torch.bool, device=step.device)
    here = torch.zeros_like(step["teacher"], dtype=torch.bool)  # the tokens that this context rank predicts
    for batch, states in zip(batches, hidden, strict=True):
        if states is not None:
            batch = batch.to(states.device)
            teacher, temperature = model.teachers.states(states, batch), model.objective.of_teacher
            mask = step.take(batch, "carries")
            logprobs = _score(model, teacher.hidden, teacher.head, batch, model.shard.over_shared, temperature, mask)
            step.put(batch, "teacher", logprobs)
            known[list(batch.rows)] = True
            here[batch.token[batch.counts].to(here.device)] = True
    if options.mask == "perplexity":
        soften(step, -_whole(step.sum_by_rollout(step["teacher"]), model.layout), known)
    if options.kl_in_rewards:
        k1, clamped = bounded_k1(step, options)
        step.column("kl")[here], step.column("kl_clamped")[here] = k1[here], clamped[here]
        penalise(step, _whole(step.sum_by_rollout(k1), model.layout), known, options, factor)


def _score(model, hidden: Tensor, head: Tensor, batch: MicroBatch, shard, temperature: float, mask: Tensor) -> Tensor:
    """Log-probs [n] of the targets over the ids of ``shard``, without a gradient; 0 outside ``mask``."""
    chunk = model.objective.chunk_tokens
    return token_logprobs(hidden, head, batch.targets, shard, temperature=temperature, chunk_tokens=chunk, mask=mask)[0]


def _whole(sums: Tensor, layout) -> Tensor:
    """Sums over the tokens that a context rank has -> over whole responses.  One all-reduce over the context group."""
    if layout.context > 1:
        dist.all_reduce(sums, group=layout.context_group)
    return sums


def record(step: Step, batch: MicroBatch, said: TokenStatistics, options: StepOptions) -> None:
    """What the training pass says of its tokens; a KL that went into the rewards counts as theirs in ``said``, too."""
    if options.kl_in_rewards and batch.scored:
        said.kl, said.kl_clamped, said.kl_active = (step.take(batch, name) for name in ("kl", "kl_clamped", "carries"))
    if "old" not in step:
        step.put(batch, "trainer", said.logprob)
    if batch.scored:
        step.put(batch, "kl", said.kl.masked_fill(~said.kl_active, torch.nan))


def counts_here(layout) -> bool:
    """Whether this rank speaks for the tokens of its data and context rank."""
    return layout.is_last_stage and layout.tensor_rank == 0


def complete(step: Step, statistics: Sequence[TokenStatistics], rows: Sequence[int], layout) -> Totals:
    """Columns of all ranks on every rank, and the world's sums; ``rows``, ``statistics``: what this data rank trained on.

    Over the world: an all-reduce of [2, N] for each column, two of a few numbers.
    """
    mine = torch.zeros(len(step), dtype=torch.bool, device=step.device)
    mine[list(rows)] = counts_here(layout)
    step.complete(["old" if "old" in step else "trainer", "kl", "advantage"], mine)
    totals = Totals(step.device)
    if counts_here(layout):
        totals.add(statistics)
    dist.all_reduce(totals.sums)
    dist.all_reduce(totals.largest, op=dist.ReduceOp.MAX)
    return totals
