"""Which data-parallel rank writes which of the weights that all of them hold."""

from __future__ import annotations

from collections.abc import Sequence


def owners(sizes: Sequence[int], ranks: int) -> list[int]:
    """For each of ``sizes``, a number below ``ranks``: the largest first, each to the one that has least so far.

    Whoever knows the sizes knows the owners: nothing is exchanged.

    >>> owners([5, 3, 3, 1], 2)
    [0, 1, 1, 0]
    """
    taken, found = [0] * ranks, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        found[place] = taken.index(min(taken))
        taken[found[place]] += sizes[place]
    return found
