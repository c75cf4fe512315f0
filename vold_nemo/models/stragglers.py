"""Which rank the others wait for: once a step, each rank's own seconds in a phase before the collective that ends it."""

from __future__ import annotations

from statistics import median

import torch
import torch.distributed as dist


def slowest(own: dict[str, float], layout) -> dict[str, dict[str, float]]:
    """``{phase: {rank, seconds, median}}``: the slowest rank and what the median rank took; nothing for a lone rank.

    ``own``: this rank's seconds without waiting, the same phases on all ranks.  One all-gather of a number a phase.  Ranks of
    one model copy meet in each layer and take the same time to train: of these, the first is named.
    """
    if layout.world == 1 or not own:
        return {}
    mine = torch.tensor(list(own.values()), dtype=torch.float32, device=layout.device)
    everywhere = [torch.empty_like(mine) for _ in range(layout.world)]
    dist.all_gather(everywhere, mine)
    table = dict(zip(own, torch.stack(everywhere).T.tolist(), strict=True))
    return {
        phase: {"rank": seconds.index(max(seconds)), "seconds": max(seconds), "median": median(seconds)}
        for phase, seconds in table.items()
    }
