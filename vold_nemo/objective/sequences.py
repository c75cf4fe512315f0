"""Sums over whole sequences, whose tokens may be spread over the ranks of context parallelism."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor


class Sequences:
    """The sequences that n tokens belong to.

    Args:
        index: int64 [n], small numbers from 0; sequences may interleave.
        position: int64 [n], a token's place in its sequence; None = they stand in order.
        group: ranks that hold the other tokens of the same sequences, under the same numbers; None = this rank has all.

    With a ``group`` all its ranks must construct and call alike, a rank without a token (n = 0) too: one MAX all-reduce of
    two numbers at construction, one SUM all-reduce of a number a sequence for each sum, of a number a position for a
    return-to-go.  What comes back is detached; a gradient through a sum is again a sum (:meth:`sum` is its own adjoint).
    """

    def __init__(self, index: Tensor, position: Tensor | None = None, group: dist.ProcessGroup | None = None):
        if position is None and group is not None:
            raise ValueError("tokens on several ranks do not stand in order: their positions are needed")
        self.index, self.group = index, group
        self.position = _in_order(index) if position is None else position
        ends = torch.stack([part.max() + 1 if len(part) else part.new_zeros(()) for part in (index, self.position)])
        if group is not None:
            dist.all_reduce(ends, dist.ReduceOp.MAX, group=group)
        self._shape = ends.tolist()

    def sum(self, values: Tensor) -> Tensor:
        """Each token's sequence total: [n] -> [n]."""
        return self._everywhere(values.new_zeros(self._shape[0]).index_add_(0, self.index, values))[self.index]

    def mean(self, values: Tensor) -> Tensor:
        """Each token's sequence mean: [n] -> [n]."""
        return self.sum(values) / self._lengths.to(values.dtype)

    def to_go(self, values: Tensor) -> Tensor:
        """Σ_{t' >= t} values_t' within the sequence of t: [n] -> [n]."""
        table = values.new_zeros(self._shape, dtype=torch.float64)
        table[self.index, self.position] = values.double()
        later = self._everywhere(table).flip(1).cumsum(1).flip(1)
        return later[self.index, self.position].to(values.dtype)

    @cached_property
    def _lengths(self) -> Tensor:
        return self.sum(torch.ones_like(self.index, dtype=torch.float64))

    def _everywhere(self, totals: Tensor) -> Tensor:
        if self.group is not None:
            dist.all_reduce(totals, group=self.group)
        return totals


def _in_order(index: Tensor) -> Tensor:
    """The how-manieth token of its sequence each is."""
    order = torch.argsort(index, stable=True)
    counts = torch.bincount(index)
    starts = counts.cumsum(0) - counts
    within = torch.arange(len(index), device=index.device) - starts[index[order]]
    return torch.empty_like(index).index_copy_(0, order, within)
