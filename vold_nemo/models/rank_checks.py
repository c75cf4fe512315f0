"""What ranks must have in common: peers their batches, all ranks one plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from vold_nemo.step import Step, StepOptions, StepPlan, make_plan
from vold_nemo.step.plan import WRITTEN


def assert_same(value: str, layout, what: str) -> None:
    """RuntimeError unless all ranks of this model copy (tensor x pipeline x context) hold the same ``value``.

    One object all-gather over the model-parallel group, one over the context group.  Peers that disagree on a batch would
    train on a mixture of two.
    """
    for size, group in ((layout.tensor * layout.pipeline, layout.model_group), (layout.context, layout.context_group)):
        if size == 1:
            continue
        values: list = [None] * size
        dist.all_gather_object(values, value, group=group)
        if any(other != value for other in values):
            raise RuntimeError(f"model-parallel peers of rank {layout.rank} differ in {what}: {values}")


def planned_once(step: Step, options: StepOptions) -> StepPlan:
    """Rank 0's plan of ``step``, and the columns that it writes, on every rank.  One object broadcast over the world."""
    agreed: list = [None]
    if dist.get_rank() == 0:
        plan = make_plan(step, options)
        agreed = [(plan, {name: step[name] for name in WRITTEN})]
    dist.broadcast_object_list(agreed, src=0)
    plan, columns = agreed[0]
    step.columns |= columns
    return plan


def largest_of_ranks(peak: int, held: Mapping[str, Mapping[str, int]], device: torch.device) -> dict[str, Any]:
    """``memory`` of metrics.jsonl, each number the largest of any rank.  One all-reduce over the world.

    Args:
        peak: most bytes that this process has had.
        held: bytes on the device by phase and holder (`Handover.held`), the same phases and holders on every rank.
    """
    places = [(phase, holder) for phase, holders in held.items() for holder in holders]
    most = torch.tensor([peak, *(held[phase][holder] for phase, holder in places)], dtype=torch.float64, device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    peak, *sizes = (int(size) for size in most.tolist())
    by_phase: dict[str, dict[str, int]] = {}
    for (phase, holder), size in zip(places, sizes, strict=True):
        by_phase.setdefault(phase, {})[holder] = size
    return {"peak_bytes": peak, "held": by_phase}
