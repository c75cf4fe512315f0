"""How far the rollout engine is from the trainer: the same tokens, the same weights, two programs.

With d_t = log π_trainer(y_t) - log π_engine(y_t) over the n tokens that are trained on, before any weight moves, and
w_t = exp(d_t):

    mean |d|, max |d|;   k3 = mean(w - 1 - d), an estimate of KL(engine || trainer), never negative;
    effective sample size = (Σ w)² / (n Σ w²), 1 where nothing has to be weighed anew.

`objective.correction` weighs each token with min(w_t, cap); these numbers say how much it has to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor

_BOUND = 20.0  # as the correction itself: exp of more than this is past every cap
_HISTORY, _FEWEST = 20, 5  # steps that the usual value is taken over, and needed for one
_LEAST_SIZE = 0.9  # effective sample size below which a warning is due
_UNNOTABLE = 50  # differences below this part of the tolerance are rounding, however they vary

CAUSES = (
    "likely causes: weights or a prefix cache that are older than this step (seconds.sync, the proof of the last load); an "
    "engine in another precision or quantised; a temperature, top-p or logprobs mode that the trainer does not know; answers "
    "that grew much longer; experts that route differently.  objective.correction.mode=token weighs such tokens"
)


class Mismatch:
    """Sums over tokens, so that they can be added up over updates and ranks."""

    def __init__(self):
        self.sums = torch.zeros(5, dtype=torch.float64)  # n, Σ|d|, Σ(w - 1 - d), Σw, Σw²
        self.largest = 0.0

    def add(self, gaps: Iterable[float]) -> None:
        """Log-probs of the trainer minus the engine's."""
        d = torch.as_tensor(list(gaps), dtype=torch.float64)
        if d.numel():
            bounded = d.clamp(-_BOUND, _BOUND)
            w = bounded.exp()
            self.sums += torch.stack([torch.ones_like(d), d.abs(), bounded.expm1() - bounded, w, w * w]).sum(1)
            self.largest = max(self.largest, float(d.abs().max()))

    @staticmethod
    def summary(sums: Tensor, largest: float) -> dict[str, float]:
        """``mismatch.*`` of metrics.jsonl from sums and maximum over all ranks."""
        n, absolute, k3, w, squares = sums.tolist()
        if not n:
            return {"mean": 0.0, "max": 0.0, "k3": 0.0, "effective_sample_size": 1.0}
        return {"mean": absolute / n, "max": largest, "k3": k3 / n, "effective_sample_size": w * w / (n * squares)}


class MismatchWatch:
    """Says when the mismatch leaves its usual range.

    Args:
        factor: how many times the median of the last steps the mean difference may be.
        tolerance: the mean that stops a run (``rollout.probe_tolerance``); half of it is told of in any case.
    """

    def __init__(self, factor: float, tolerance: float):
        self.factor, self.tolerance = factor, tolerance
        self.recent: deque[float] = deque(maxlen=_HISTORY)

    def look(self, found: dict[str, float]) -> str | None:
        """A warning about ``found`` (see `Mismatch.summary`), or None where it is as ever."""
        mean, size = found["mean"], found["effective_sample_size"]
        usual = median(self.recent) if len(self.recent) >= _FEWEST else None
        said = None
        if mean > self.tolerance / 2:
            said = f"more than half of what stops the run (rollout.probe_tolerance = {self.tolerance:g})"
        elif size < _LEAST_SIZE:
            said = f"the effective sample size is {size:.3f}"
        elif usual is not None and mean > self.factor * usual and mean > self.tolerance / _UNNOTABLE:
            said = f"{mean / usual:.1f} times the median of the last {len(self.recent)} steps ({usual:.3g})"
        else:
            self.recent.append(mean)  # what is out of range does not widen it
        if said is None:
            return None
        return f"engine and trainer differ by {mean:.3g} a token in the mean, {found['max']:.3g} at most: {said}; {CAUSES}"
