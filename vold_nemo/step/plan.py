"""One plan for the whole world: who scores what, who trains on what, in which micro-batch, with which weight.

After the rewards of a step are known, one rank calls :func:`make_plan` and broadcasts what it gives.  The plan is plain data,
no process groups, so it can be read, logged and tested on its own.

Rules (each has a test):

* A rollout goes to the teacher only if its KL weight is not zero; under the paper's mask that means reward 0.
* A rollout is trained on only if it can move a gradient: a non-zero advantage (policy term) or a non-zero KL weight.
  ``skip=False`` keeps every rollout; the gradient is the same, because denominators count all sampled rollouts either way.
* A micro-batch is wholly scored, by one teacher, or wholly unscored, and padded once, to ``pad_multiple``.
* The rollouts of a group stay on one data-parallel rank; ranks are balanced by student plus teacher cost.
* Every data-parallel rank gets at least one student micro-batch per update, and at least one of each teacher if any rank
  has any: a dummy (no rows, zero weight) where it has nothing to do, so that it still joins every collective.  With expert
  parallelism the counts are made equal as well.  With virtual pipeline stages the counts of each teacher's and of unscored ones
  are multiples of ``micro_batch_multiple``: a pass over the whole, or over what one teacher scores, then has a schedule.

Per-token weights are one number per rollout here (``carries`` masks single tokens).  With ``R`` sampled rollouts of ``n_i``
response tokens in the update they are those of :func:`objective.weights.sequence_weights`.  A group whose rewards are all 1
therefore costs no training token under the reward mask, and an all-wrong group is always kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vold_nemo.objective import sequence_weights
from vold_nemo.step.options import StepOptions
from vold_nemo.step.select import left_out
from vold_nemo.step.table import Step

WRITTEN = ("policy_weight", "kl_weight", "scored", "trained")  # columns that a plan writes


@dataclass(frozen=True)
class PlannedBatch:
    """Rows of one micro-batch, padded to ``length`` tokens; no rows = a dummy."""

    rows: tuple[int, ...]
    length: int
    scored: bool
    teacher: int = 0  # whose, if it is scored


@dataclass(frozen=True)
class StepPlan:
    """``updates[u][d]``: micro-batches of data-parallel rank d in optimizer step u, scored ones first, by teacher."""

    updates: tuple[tuple[tuple[PlannedBatch, ...], ...], ...]
    sampled: tuple[int, ...]  # rollouts of each update, trained on or not: what its averages are taken over
    skipped_groups: int

    @property
    def micro_batches(self) -> dict[str, int]:
        """Over all updates and data-parallel ranks: those with rollouts in them, and dummies."""
        counts = [bool(planned.rows) for update in self.updates for rank in update for planned in rank]
        return {"real": sum(counts), "dummies": len(counts) - sum(counts)}

    def rows(self, data_rank: int) -> list[int]:
        """Rollouts that ``data_rank`` trains on."""
        return [row for update in self.updates for planned in update[data_rank] for row in planned.rows]


def make_plan(step: Step, options: StepOptions) -> StepPlan:
    """Plan a step whose ``advantage``, ``kl_mask`` and ``carries`` are known (:func:`select.select`); writes ``WRITTEN``.

    Each update takes a contiguous share of the groups.

    Raises:
        ValueError: more updates than groups.
    """
    groups = list(step.groups())
    if options.updates > len(groups):
        raise ValueError(f"updates = {options.updates}, but the step has only {len(groups)} groups")
    kl_lengths, kl_mask = step.sum_by_rollout(step["carries"]), step["kl_mask"]
    asked = kl_mask != 0
    step["scored"] = asked & (kl_lengths > 0) if options.skip else asked.any()
    live = (_moves(step, options, kl_lengths) & options.policy) | step["scored"]
    step["trained"] = live & (step.responses.lengths > 0) if options.skip else True

    policy_weight, kl_weight, updates, sampled = [], [], [], []
    counts, kl_counts = step.responses.lengths.tolist(), [int(count) for count in kl_lengths.tolist()]
    for number in range(options.updates):
        part = groups[number * len(groups) // options.updates : (number + 1) * len(groups) // options.updates]
        rows = range(part[0].start, part[-1].stop)
        average = sequence_weights(counts[rows.start : rows.stop], options.policy_average, options.max_tokens)
        policy_weight += average if options.policy else [0.0] * len(rows)
        kl_weight += sequence_weights(kl_counts[rows.start : rows.stop], options.kl_average, options.max_tokens)
        updates.append(_spread(step, part, options))
        sampled.append(len(rows))
    step["policy_weight"] = policy_weight
    step["kl_weight"] = kl_weight
    step["kl_weight"] *= kl_mask
    skipped = int((~step["trained"].view(-1, step.samples).any(dim=1)).sum())
    return StepPlan(tuple(updates), tuple(sampled), skipped)


def _moves(step: Step, options: StepOptions, kl_lengths: Tensor) -> Tensor:
    """Rollouts whose advantage is not zero, or will not be: a penalty on one of a group gives all of it advantages."""
    moves = step["advantage"] != 0
    if not options.kl_in_rewards:
        return moves
    penalised = ((step["kl_mask"] != 0) & (kl_lengths > 0)).view(-1, step.samples).any(dim=1, keepdim=True)
    return torch.where(penalised, ~left_out(step, options).view(-1, step.samples), moves.view(-1, step.samples)).flatten()


def _spread(step: Step, groups: Sequence[range], options: StepOptions) -> tuple[tuple[PlannedBatch, ...], ...]:
    """Micro-batches of each data-parallel rank for the trained rollouts of ``groups``."""
    lengths, scored, trained = step.lengths.tolist(), step["scored"].tolist(), step["trained"].tolist()
    teachers = step.column("scorer").tolist()
    cost = [length * (1.0 + options.teacher_cost[teachers[row]] * scored[row]) for row, length in enumerate(lengths)]
    kept = [[row for row in group if trained[row]] for group in groups]
    assigned = _assign([group for group in kept if group], cost, options.data_ranks)
    ranks: list[list[PlannedBatch]] = [[] for _ in assigned]
    scorer = {row: teachers[row] if scored[row] else None for rows in assigned for row in rows}
    numbers: list[int | None] = [*sorted({number for number in scorer.values() if number is not None}), None]
    dummy = _padded(1, options.pad_multiple)
    for number in numbers:
        lists = [
            [
                PlannedBatch(tuple(rows), _padded(lengths[rows[0]], options.pad_multiple), number is not None, number or 0)
                for rows in _cut([row for row in mine if scorer[row] == number], lengths, options)
            ]
            for mine in assigned
        ]
        # A teacher's pass ends in a collective over the world: a rank takes part in it, or nobody does.  Experts of one layer
        # live on several data ranks: all must run the same number.
        least = max(map(len, lists)) if options.expert_parallel > 1 else int(number is not None)
        for batches, into in zip(lists, ranks, strict=True):
            count = _padded(max(least, len(batches)), options.micro_batch_multiple)
            into += batches + [PlannedBatch((), dummy, number is not None, number or 0)] * (count - len(batches))
    for into in ranks:
        if not into:
            into += [PlannedBatch((), dummy, False)] * options.micro_batch_multiple
    return tuple(map(tuple, ranks))


def _assign(groups: Sequence[Sequence[int]], cost: Sequence[float], ranks: int) -> list[list[int]]:
    """Greedy balance: the dearest group goes to the rank with the least so far (ties: lower index first)."""
    load = [0.0] * ranks
    rows: list[list[int]] = [[] for _ in range(ranks)]
    for group in sorted(groups, key=lambda g: (-sum(cost[r] for r in g), g[0])):
        rank = min(range(ranks), key=lambda d: (load[d], d))
        load[rank] += sum(cost[r] for r in group)
        rows[rank].extend(group)
    return rows


def _cut(rows: Sequence[int], lengths: Sequence[int], options: StepOptions) -> list[list[int]]:
    """Rows, longest first, in parts of at most ``micro_batch_tokens`` padded tokens (one row may exceed it alone)."""
    parts: list[list[int]] = []
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        last = parts[-1] if parts else None
        if last and _padded(lengths[last[0]], options.pad_multiple) * (len(last) + 1) <= options.micro_batch_tokens:
            last.append(row)
        else:
            parts.append([row])
    return parts


def _padded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
