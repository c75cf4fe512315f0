"""Checks that ranks which must hold the same thing do."""

from __future__ import annotations

import torch.distributed as dist


def assert_same(value: str, layout, what: str) -> None:
    """RuntimeError unless all ranks of this model copy (tensor x pipeline) hold the same ``value``.

    One object all-gather over the model-parallel group.  Peers that disagree on a batch would train on a mixture of two.
    """
    if layout.tensor * layout.pipeline == 1:
        return
    values: list = [None] * (layout.tensor * layout.pipeline)
    dist.all_gather_object(values, value, group=layout.model_group)
    if any(other != value for other in values):
        raise RuntimeError(f"model-parallel peers of rank {layout.rank} differ in {what}: {values}")
