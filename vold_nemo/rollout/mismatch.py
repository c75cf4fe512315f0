"""When the rollout engine drifts away from the trainer: the numbers of `step/metrics.py: mismatch`, watched over steps."""

from __future__ import annotations

from collections import deque
from statistics import median

from vold_nemo.config import Config

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # nats a token in the mean; what two correct programs show: docs/precision.md
_HISTORY, _FEWEST = 20, 5  # steps that the usual value is taken over, and needed for one
_LEAST_SIZE = 0.9  # effective sample size below which a warning is due
_UNNOTABLE = 50  # differences below this part of the tolerance are rounding, however they vary

CAUSES = (
    "likely causes: weights or a prefix cache that are older than this step (seconds.sync, the proof of the last load); an "
    "engine in another precision or quantised; a temperature, top-p or logprobs mode that the trainer does not know; answers "
    "that grew much longer; experts that route differently.  objective.correction.mode=token weighs such tokens"
)


def tolerance_of(config: Config) -> float:
    """``rollout.probe_tolerance``; where it is null, what the run's precision allows."""
    asked = config.rollout.probe_tolerance
    return TOLERANCE[config.precision] if asked is None else asked


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
        """A warning about ``found`` (`mismatch.*` of metrics.jsonl), or None where it is as ever."""
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
