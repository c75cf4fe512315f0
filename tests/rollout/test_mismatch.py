"""Engine against trainer: the numbers are the textbook's, and what is unusual is told of."""

import math

import numpy as np
import pytest

from vold_nemo.rollout.mismatch import CAUSES, Mismatch, MismatchWatch


def test_mismatch_is_the_textbooks_however_it_is_added_up():
    gaps = np.random.default_rng(0).normal(0, 0.3, 1000)
    parts = [Mismatch(), Mismatch()]
    for part, share in zip(parts, np.split(gaps, [123]), strict=True):
        part.add(share)
    found = Mismatch.summary(parts[0].sums + parts[1].sums, max(part.largest for part in parts))
    weights = np.exp(gaps)
    assert found["mean"] == pytest.approx(np.abs(gaps).mean()) and found["max"] == pytest.approx(np.abs(gaps).max())
    assert found["k3"] == pytest.approx((weights - 1 - gaps).mean())
    assert found["effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (1000 * (weights**2).sum()))


def test_k3_estimates_the_kl_of_the_engine_to_the_trainer():
    engine, trainer = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    counts = (engine * 1000).round().astype(int)  # the engine's samples, in their exact proportions
    found = Mismatch()
    found.add(np.repeat(np.log(trainer / engine), counts))
    assert Mismatch.summary(found.sums, 0.0)["k3"] == pytest.approx((engine * np.log(engine / trainer)).sum())


def test_nothing_trained_on_is_no_mismatch():
    found = Mismatch()
    found.add([])
    assert Mismatch.summary(found.sums, found.largest)["effective_sample_size"] == 1.0


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
