"""How sure an accuracy is, and whether two models that answered the same questions differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vold_nemo.evaluation.records import Record

Z95 = 1.959963984540054


@dataclass
class Estimate(Record):
    """A value with its 95 % interval over ``n`` questions."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int) -> Estimate:
    """Share of ``successes`` among ``n`` with Wilson's score interval, which holds near 0 and 1, too."""
    from scipy.stats import binomtest

    bounds = binomtest(successes, n).proportion_ci(method="wilson")
    return Estimate(successes / n, float(bounds.low), float(bounds.high), n)


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean over questions of values in [0, 1], m ± z·sd/√n cut to [0, 1].

    For an accuracy averaged over samples: samples of one question are not independent, so the question is the unit and
    its mean the value.
    """
    row = np.asarray(values, dtype=np.float64)
    mean, half = float(row.mean()), Z95 * float(row.std(ddof=1)) / math.sqrt(len(row)) if len(row) > 1 else 1.0
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), len(row))


def pass_at(k: int, samples: int, right: int) -> float:
    """Chance that one of ``k`` of a question's ``samples`` answers, drawn without replacement, is one of the ``right`` ones.

    1 - C(n - c, k) / C(n, k), unbiased for pass@k (arXiv 2107.03374, eq. 1).
    """
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


@dataclass
class Difference(Record):
    """``first`` minus ``second`` on the same questions; ``p`` from McNemar's exact test (None for averaged samples)."""

    value: float
    low: float
    high: float
    n: int
    only_first: int  # questions that only the first answered right
    only_second: int
    p: float | None


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p: chance that a fair coin splits the questions on which two models differ at least this unevenly."""
    from scipy.stats import binomtest

    differing = only_first + only_second
    return float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0


def paired_difference(first: Sequence[float], second: Sequence[float], *, resamples: int = 4000) -> Difference:
    """Difference of two accuracies over the same questions, in the same order.

    The 95 % interval is the percentile bootstrap over questions (fixed seed): what both models find easy or hard cancels,
    which makes it narrower than two separate intervals suggest.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"paired answers of {a.shape} and {b.shape} questions")
    difference = a - b
    draws = np.random.default_rng(0).integers(0, len(a), size=(resamples, len(a)), dtype=np.int32)
    low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975])
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    p = mcnemar(only_first, only_second) if binary else None
    return Difference(float(difference.mean()), float(low), float(high), len(a), only_first, only_second, p)
