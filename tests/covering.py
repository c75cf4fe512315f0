"""Tables of cases whose whole product takes longer than it tells: a part that misses no pair of values, the rest for `long`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest


def covering(*axes: Sequence, strength: int = 2) -> list:
    """Every combination of one value from each axis; those not needed for the cover are marked ``long``.

    The unmarked ones hold every ``strength`` values of different axes together at least once (1: every value; 2: every
    pair), chosen greedily in a fixed order.
    """
    combinations = list(itertools.product(*(range(len(axis)) for axis in axes)))

    def parts(combination: tuple[int, ...]) -> set:
        return set(itertools.combinations(enumerate(combination), strength))

    missing = set().union(*map(parts, combinations))
    chosen = set()
    while missing:
        best = max(combinations, key=lambda combination: len(parts(combination) & missing))
        chosen.add(best)
        missing -= parts(best)
    return [
        pytest.param(*values, marks=[] if combination in chosen else pytest.mark.long)
        for combination in combinations
        for values in [[axis[i] for axis, i in zip(axes, combination, strict=True)]]
    ]
