"""Engine against trainer: the numbers are the textbook's."""

import numpy as np
import pytest
import torch

from vold_nemo.step.metrics import mismatch


def test_mismatch_is_the_textbooks():
    gaps = np.random.default_rng(0).normal(0, 0.3, 1000)
    found, weights = mismatch(torch.from_numpy(gaps)), np.exp(gaps)
    assert found["mean"] == pytest.approx(np.abs(gaps).mean()) and found["max"] == pytest.approx(np.abs(gaps).max())
    assert found["k3"] == pytest.approx((weights - 1 - gaps).mean())
    assert found["effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (1000 * (weights**2).sum()))


def test_k3_estimates_the_kl_of_the_engine_to_the_trainer():
    engine, trainer = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    counts = (engine * 1000).round().astype(int)  # the engine's samples, in their exact proportions
    gaps = torch.from_numpy(np.repeat(np.log(trainer / engine), counts))
    assert mismatch(gaps)["k3"] == pytest.approx((engine * np.log(engine / trainer)).sum())


def test_nothing_trained_on_is_no_mismatch():
    assert mismatch(torch.zeros(0, dtype=torch.float64))["effective_sample_size"] == 1.0
