"""Which token ids a rank holds, and which of them count.

Three sets meet in the objective.  Ids the rollout engine can *sample* normalise log-probs and entropy; ids that both
tokenizers *share* normalise the KL; what remains are rows that only pad the tables and belong to neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

FILL = -1e30  # logit of an id that does not count: finite, so that 0 x FILL is 0 and never NaN
FLOOR = -1e29  # lowest centre of a rank's logits: a rank without a counting id still gets exp(FILL - FLOOR) = 0


@dataclass(frozen=True, eq=False)
class VocabularyShard:
    """Rows ``start .. start + size`` of both LM heads, and the id sets restricted to them.

    Args:
        start: first global id of this rank.
        size: v, rows on this rank (padded vocabulary / TP).
        sampleable: bool [v], ids the engine can sample.
        shared: bool [v], ids both tokenizers share; a subset of ``sampleable``.
        group: the ranks that hold the other rows; None = this rank has all.
        sampleable_ids, shared_ids: the whole masks, bool [V]; None = nobody kept them, and ranks ask each other.

    Raises:
        ValueError: masks of another shape or type, or a shared id that cannot be sampled.
    """

    start: int
    size: int
    sampleable: Tensor
    shared: Tensor
    group: dist.ProcessGroup | None = None
    sampleable_ids: Tensor | None = None
    shared_ids: Tensor | None = None

    def __post_init__(self):
        for name, mask in (("sampleable", self.sampleable), ("shared", self.shared)):
            if mask.shape != (self.size,) or mask.dtype != torch.bool:
                raise ValueError(f"{name} is {mask.dtype} {tuple(mask.shape)}; it must be bool [{self.size}]")
        if bool((self.shared & ~self.sampleable).any()):
            raise ValueError("shared ids must be a subset of the sampleable ids")

    @classmethod
    def of(
        cls, rank: int, ranks: int, sampleable: Tensor, shared: Tensor | None = None, group: dist.ProcessGroup | None = None
    ) -> VocabularyShard:
        """Part ``rank`` of ``ranks`` equal parts of global masks [V]; without ``shared`` every sampleable id is shared."""
        rows = len(sampleable)
        if rows % ranks:
            raise ValueError(f"{rows} vocabulary rows do not divide by {ranks} ranks; pad both LM heads to a multiple")
        size = rows // ranks
        part = slice(rank * size, (rank + 1) * size)
        shared = sampleable if shared is None else shared
        return cls(rank * size, size, sampleable[part].contiguous(), shared[part].contiguous(), group, sampleable, shared)

    @cached_property
    def over_sampleable(self) -> VocabularyShard:
        """The same rows with the sampleable ids in the role of the shared ones: what a pass without a KL needs."""
        return replace(self, shared=self.sampleable, shared_ids=self.sampleable_ids)

    @cached_property
    def over_shared(self) -> VocabularyShard:
        """The same rows normalised over the shared ids only: log-probs as the KL sees them."""
        return replace(self, sampleable=self.shared, sampleable_ids=self.shared_ids)

    @cached_property
    def unshared(self) -> Tensor:
        """Local columns outside the shared set."""
        return (~self.shared).nonzero().flatten()

    @cached_property
    def one_sided(self) -> Tensor:
        """Local columns that can be sampled but are not shared: few in practice, handled apart from the rest."""
        return (self.sampleable & ~self.shared).nonzero().flatten()

    def locate(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Local column of each target (0 where it lies elsewhere), and whether it is on this rank."""
        column = targets - self.start
        here = (column >= 0) & (column < self.size)
        return column.masked_fill(~here, 0), here

    def can_sample(self, targets: Tensor) -> Tensor:
        """Which of ``targets`` are sampleable ids, of whichever rank: bool, like them.

        Collectives: none; where the whole masks were not kept, one SUM all-reduce of as many numbers over ``group``.
        """
        if self.sampleable_ids is None:
            column, here = self.locate(targets)
            return reduce_sum((here & self.sampleable[column]).int(), self.group) > 0
        inside = (targets >= 0) & (targets < len(self.sampleable_ids))
        return inside & self.sampleable_ids[targets.masked_fill(~inside, 0)]


def reduce_sum(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum over the ranks of ``group``, in place, outside autograd; ``None`` is one rank."""
    if group is not None and group.size() > 1:
        dist.all_reduce(rows, op=dist.ReduceOp.SUM, group=group)
    return rows


def reduce_max(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Maximum over the ranks of ``group``, in place."""
    if group is not None and group.size() > 1:
        dist.all_reduce(rows, op=dist.ReduceOp.MAX, group=group)
    return rows
