"""Engine against trainer: what is unusual is told of."""

import math

import pytest

from vold_nemo.rollout.mismatch import CAUSES, MismatchWatch


def said(mean: float, size: float = 1.0) -> dict[str, float]:
    return {"mean": mean, "max": 2 * mean, "k3": mean**2 / 2, "effective_sample_size": size}


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ([0.004] * 6, said(0.005), None),
        ([0.004] * 6, said(0.02), "5.0 times the median"),
        ([1e-6] * 6, said(1e-4), None),  # a hundred times as much, and still rounding
        ([], said(0.03), "more than half of what stops the run"),
        ([0.004] * 6, said(0.005, size=0.4), "effective sample size is 0.400"),
        ([0.004] * 4, said(0.02), None),  # nothing is usual yet
    ],
)
def test_what_leaves_the_usual_range_is_told_with_its_likely_causes(before, now, told):
    watch = MismatchWatch(3.0, 0.05)
    assert [watch.look(said(mean)) for mean in before] == [None] * len(before)
    found = watch.look(now)
    assert found is None if told is None else told in found and CAUSES in found
    assert math.isclose(sum(watch.recent), sum(before) + (now["mean"] if told is None else 0))
