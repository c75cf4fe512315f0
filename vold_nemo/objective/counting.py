"""What the host has to know of a device's numbers before it can go on, asked for once: an answer stalls a GPU's queue."""

from __future__ import annotations

import torch
from torch import Tensor


def count(**flags: Tensor) -> dict[str, int]:
    """How many of each are true, by name: one copy to the host for all of them."""
    told = torch.stack([each.sum() for each in flags.values()]).tolist()
    return dict(zip(flags, told, strict=True))


def places(mask: Tensor, true: int) -> Tensor:
    """int64 [true]: where ``mask`` [n] is true, which ``true`` of it are (:func:`count`); nothing is asked."""
    return torch.nonzero_static(mask, size=true).flatten()
