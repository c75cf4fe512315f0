"""One plan for the whole world: who scores what, who trains on what, in which micro-batch, with which weight.

After the rewards of a step are known, rank 0 calls :func:`make_step_plan` and broadcasts the result.  The plan is plain data:
integers and floats, no tensors, no process groups, so it can be read, logged and tested on its own.

Rules (each has a test):

* A rollout goes to the teacher only if its KL weight is not zero; under the paper's mask that means reward 0.
* A rollout is trained on only if it can move a gradient: a non-zero advantage (policy term) or a non-zero KL weight.
  ``skip=False`` keeps every rollout; the gradient is the same, because denominators count all sampled rollouts either way.
* A micro-batch is wholly scored, by one teacher, or wholly unscored, and padded once, to ``pad_multiple``.
* The rollouts of a group stay on one data-parallel rank; ranks are balanced by student plus teacher cost.
* Every data-parallel rank gets at least one student micro-batch per update, and at least one of each teacher if any rank
  has any: a dummy (no rows, zero weight) where it has nothing to do, so that it still joins every collective.  With expert
  parallelism the counts are made equal as well.

Per-token weights are one number per rollout here (masks over single tokens come later, where ids are at hand).  With
``R`` sampled rollouts of ``n_i`` response tokens in the update they are those of :func:`objective.weights.sequence_weights`.
A group whose rewards are all 1 therefore costs no training token under the reward mask, and an all-wrong group is always kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vold_nemo.objective.weights import sequence_weights


@dataclass(frozen=True)
class PlannedMicroBatch:
    """Rows of one micro-batch: indices into the step's rollouts, padded to ``length`` tokens; no rows = a dummy."""

    rows: tuple[int, ...]
    length: int
    scored: bool
    teacher: int = 0  # whose, if it is scored


@dataclass(frozen=True)
class UpdatePlan:
    """One optimizer step: ``ranks[d]`` are the micro-batches of data-parallel rank d, scored ones first, by teacher."""

    ranks: tuple[tuple[PlannedMicroBatch, ...], ...]
    sampled: int  # rollouts of the update, trained on or not: what its averages are taken over


@dataclass(frozen=True)
class StepPlan:
    updates: tuple[UpdatePlan, ...]
    policy_weight: tuple[float, ...]  # per rollout: factor of each response token's policy loss
    kl_weight: tuple[float, ...]  # per rollout: factor of each response token's KL, beta not included
    scored: tuple[bool, ...]
    trained: tuple[bool, ...]
    skipped_groups: int

    @property
    def scored_rows(self) -> int:
        return sum(self.scored)


def _pad(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _micro_batches(rows: Sequence[int], lengths: Sequence[int], limit: int, multiple: int, scored: bool, teacher: int):
    """Cut rows, longest first, into micro-batches of at most ``limit`` padded tokens (one row may exceed it alone)."""
    batches: list[PlannedMicroBatch] = []
    current: list[int] = []
    padded = 0
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        if current and padded * (len(current) + 1) > limit:
            batches.append(PlannedMicroBatch(tuple(current), padded, scored, teacher))
            current = []
        if not current:
            padded = _pad(lengths[row], multiple)
        current.append(row)
    if current:
        batches.append(PlannedMicroBatch(tuple(current), padded, scored, teacher))
    return batches


def _assign(groups: Sequence[Sequence[int]], cost: Sequence[float], ranks: int) -> list[list[int]]:
    """Greedy balance: the dearest group goes to the rank with the least so far (ties: lower index first)."""
    load = [0.0] * ranks
    rows: list[list[int]] = [[] for _ in range(ranks)]
    for group in sorted(groups, key=lambda g: (-sum(cost[r] for r in g), g[0])):
        rank = min(range(ranks), key=lambda d: (load[d], d))
        load[rank] += sum(cost[r] for r in group)
        rows[rank].extend(group)
    return rows


def make_step_plan(
    groups: Sequence[Sequence[int]],
    *,
    lengths: Sequence[int],
    response_lengths: Sequence[int],
    kl_lengths: Sequence[int],
    advantages: Sequence[float],
    kl_mask: Sequence[float],
    policy_average: str,
    kl_average: str,
    max_tokens: int,
    data_ranks: int,
    updates: int = 1,
    micro_batch_tokens: int,
    pad_multiple: int = 1,
    teachers: Sequence[int] | None = None,
    teacher_cost: Sequence[float] = (1.0,),
    expert_parallel: int = 1,
    policy: bool = True,
    skip: bool = True,
) -> StepPlan:
    """Plan one step.  All sequences are indexed by rollout; ``groups`` lists each prompt's rollouts.

    Args:
        lengths: prompt + response tokens; response_lengths: response tokens; kl_lengths: response tokens that may carry a
            KL (ids both tokenizers share, end of sequence by option).
        advantages: group advantages, shape [rollouts].
        kl_mask: factor of the KL of each rollout before normalisation: 1 - r under the paper's mask, 0 where the KL is off.
        updates: optimizer steps on these rollouts; each takes a contiguous share of the groups.
        micro_batch_tokens: upper bound on rows x padded length of a micro-batch.
        pad_multiple: padded lengths are multiples of this (sequence parallelism, FP8).
        teachers: whose each rollout is, by number; None = all are number 0's.
        teacher_cost: of each teacher, its forward per token in units of the student's forward + backward.
        expert_parallel: > 1 makes micro-batch counts equal on all data ranks, those of each teacher and unscored ones.
        policy: whether a policy term exists; without one advantages do not keep a rollout.
        skip: leave out rollouts that cannot move a gradient.

    Raises:
        ValueError: more updates than groups.
    """
    count = len(lengths)
    teachers = [0] * count if teachers is None else teachers
    if updates > len(groups):
        raise ValueError(f"updates = {updates}, but the step has only {len(groups)} groups")
    live = [policy and advantages[i] != 0.0 for i in range(count)]
    any_kl = any(m != 0.0 for m in kl_mask)
    scored = [kl_mask[i] != 0.0 and kl_lengths[i] > 0 if skip else any_kl for i in range(count)]
    trained = [True if not skip else (live[i] or scored[i]) and response_lengths[i] > 0 for i in range(count)]
    policy_weight, kl_weight = [0.0] * count, [0.0] * count
    planned: list[UpdatePlan] = []
    for update in range(updates):
        part = groups[update * len(groups) // updates : (update + 1) * len(groups) // updates]
        members = [row for group in part for row in group]
        responses = [response_lengths[row] for row in members]
        for row, weight in zip(members, sequence_weights(responses, policy_average, max_tokens), strict=True):
            policy_weight[row] = weight if policy else 0.0
        kl_counts = [kl_lengths[row] for row in members]
        for row, weight in zip(members, sequence_weights(kl_counts, kl_average, max_tokens), strict=True):
            kl_weight[row] = weight * kl_mask[row]
        kept = [[row for row in group if trained[row]] for group in part]
        cost = [lengths[i] * (1.0 + teacher_cost[teachers[i]] * scored[i]) for i in range(count)]
        assigned = _assign([group for group in kept if group], cost, data_ranks)
        ranks: list[list[PlannedMicroBatch]] = [[] for _ in assigned]
        scorer = {row: teachers[row] if scored[row] else None for rows in assigned for row in rows}
        for number in [*sorted(set(scorer.values()) - {None}), None]:
            flag, teacher = number is not None, number or 0
            chosen = [[row for row in rows if scorer[row] == number] for rows in assigned]
            lists = [_micro_batches(rows, lengths, micro_batch_tokens, pad_multiple, flag, teacher) for rows in chosen]
            # A teacher's pass ends in a collective over the world: a rank takes part in it, or nobody does.  Experts of one
            # layer live on several data ranks: all must run the same number.
            least = max(map(len, lists)) if expert_parallel > 1 else int(flag)
            for batches, into in zip(lists, ranks, strict=True):
                into += batches + [PlannedMicroBatch((), _pad(1, pad_multiple), flag, teacher)] * (least - len(batches))
        for into in ranks:
            if not into:
                into.append(PlannedMicroBatch((), _pad(1, pad_multiple), False))
        planned.append(UpdatePlan(tuple(map(tuple, ranks)), sampled=len(members)))
    skipped = sum(1 for group in groups if not any(trained[row] for row in group))
    return StepPlan(
        tuple(planned), tuple(policy_weight), tuple(kl_weight), tuple(scored), tuple(trained), skipped
    )
