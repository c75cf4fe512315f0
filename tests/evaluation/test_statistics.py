"""Intervals and tests against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vold_nemo.evaluation.statistics import mcnemar, mean_interval, paired_difference, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (1, 3), (37, 80), (599, 800), (0, 800)])
def test_wilson_interval_is_scipy_s(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    found = wilson(k, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 3), (0, 7), (40, 12), (300, 352)])
def test_mcnemar_is_the_exact_binomial_test_on_discordant_pairs(b, c):
    expected = stats.binomtest(min(b, c), b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


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
