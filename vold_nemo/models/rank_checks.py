"""What ranks that hold one copy of the model have in common, and what they must put together."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist


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


def whole_responses(mine: Mapping[int, list[float]], layout) -> dict[int, list[float]]:
    """Values of responses by rollout, whole, from the context ranks' shares (:meth:`MicroBatch.by_response`).

    One object all-gather over the context group, whose ranks hold the same rollouts.
    """
    if layout.context == 1:
        return dict(mine)
    shares: list = [None] * layout.context
    dist.all_gather_object(shares, mine, group=layout.context_group)
    return {row: [sum(values) for values in zip(*(share[row] for share in shares), strict=True)] for row in mine}
