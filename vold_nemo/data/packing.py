"""Which sequences share a row: bins of at most so many tokens, a function of the lengths alone."""

from __future__ import annotations

from collections.abc import Sequence


def first_fit_decreasing(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices into ``lengths`` in bins whose sums are at most ``limit``; a length above it has a bin of its own.

    Longest first (ties: lower index first), each into the first bin with room: never more than 11/9 of the fewest bins
    possible, plus one.  No randomness and no ranks: the same lengths give the same bins everywhere.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((b for b, left in enumerate(room) if lengths[index] <= left), None)
        if place is None:
            bins.append([])
            room.append(limit)
            place = len(bins) - 1
        bins[place].append(index)
        room[place] -= lengths[index]
    return bins
