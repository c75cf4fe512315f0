"""Intervals and tests against formulas written out, normal ones, and what is known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vold_nemo.evaluation.statistics import mcnemar, mean_interval, paired_difference, wilson

# What the formulas written out gave: (successes, n, low, high) and (only first, only second, p).
WILSON = [
    (0, 5, 0.0, 0.43448246478317476), (5, 5, 0.5655175352168252, 1.0), (1, 3, 0.061491944720396215, 0.7923403991979523),
    (37, 80, 0.35747993562785246, 0.5709564240873121), (599, 800, 0.7175540598239335, 0.7775684492637428),
    (0, 800, 0.0, 0.004778876205676033), (12345, 99999, 0.12142683341181693, 0.12550456472239666),
]  # fmt: skip
MCNEMAR = [(0, 0, 1.0), (3, 3, 1.0), (0, 7, 0.015625), (5, 3, 0.7265625), (40, 12, 0.00012753878385574546),
           (300, 352, 0.04570814364242261)]  # fmt: skip


@pytest.mark.parametrize(("k", "n", "low", "high"), WILSON)
def test_wilson_s_interval_is_that_of_the_formula_and_holds_its_value(k, n, low, high):
    found = wilson(k, n)
    assert (found.value, found.n) == (k / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), rel=0, abs=1e-12)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(("b", "c", "p"), MCNEMAR)
def test_mcnemar_is_the_exact_binomial_test_on_discordant_pairs(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p, rel=0, abs=1e-12)
    assert mcnemar(b, c) == mcnemar(c, b)


@pytest.mark.parametrize(("k", "n"), [(6, 5), (-1, 5), (0, 0)])
def test_a_share_of_nothing_or_more_than_all_is_refused(k, n):
    with pytest.raises(ValueError):
        wilson(k, n)


def test_bootstrap_interval_of_a_paired_difference_is_close_to_the_normal_one():
    generator = np.random.default_rng(3)
    a, b = (generator.random(800) < 0.7).astype(float), (generator.random(800) < 0.6).astype(float)
    found = paired_difference(a, b)
    half = 1.96 * (a - b).std(ddof=1) / 800**0.5
    assert found.value == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.006)
    assert (found.only_first, found.only_second) == (int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum()))
    assert found == paired_difference(a, b), "a fixed seed"


def test_pairing_sees_what_two_separate_intervals_cannot():
    easy = np.repeat([1.0, 0.0], 400)
    better = easy.copy()
    better[400:420] = 1  # 20 of 800 questions more, none lost
    found = paired_difference(better, easy)
    assert found.low > 0 and found.p < 1e-5
    assert wilson(420, 800).low < wilson(400, 800).high


def test_averaged_samples_have_no_mcnemar_test_and_an_interval_over_questions():
    found = paired_difference([0.5, 1.0, 0.25], [0.5, 0.0, 0.25])
    assert found.p is None
    values = [0.2, 0.4, 0.9, 0.5]
    expected = stats.norm.interval(0.95, np.mean(values), stats.sem(values))
    estimate = mean_interval(values)
    assert (estimate.low, estimate.high) == pytest.approx(expected, abs=1e-9)


def test_answers_to_different_questions_cannot_be_paired():
    with pytest.raises(ValueError, match="paired"):
        paired_difference([1, 0], [1])
