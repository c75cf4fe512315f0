"""β of eq. 6 over the steps of stage 2: a pure function of the step, so a resumed run goes on where it stopped."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


class BetaSchedule:
    """Warm-up, then constant or an anneal from ``value`` to ``final``, then perhaps off.

    β(step) for step = 0, 1, ...:  0 from ``off_step`` on;  v·(step + 1) / ``warmup_steps`` while warming up;  then, with
    x = min(1, (step - warmup_steps) / max(1, steps - 1 - warmup_steps)):  v (``constant``), v + x (final - v)
    (``linear``), v (final / v)^x (``exponential``).  ``final`` is reached at step ``steps`` - 1.

    Args:
        config: anything with BetaConfig's attributes: value, final, schedule, steps, warmup_steps, off_step.
        steps: the run's length, used where ``config.steps`` is null.

    Raises:
        ValueError: a schedule that its numbers do not define.
    """

    def __init__(self, config, steps: int | None = None):
        self._start, self._final, self._schedule = config.value, config.final, config.schedule
        self._steps: Any = steps if config.steps is None else config.steps  # None only where nothing anneals
        self._warmup, self._off = config.warmup_steps, config.off_step
        anneals = self._schedule in ("linear", "exponential")
        positive = self._start > 0 and (self._final or 0) > 0
        for name, value, good, allowed in (
            ("schedule", self._schedule, anneals or self._schedule == "constant", "constant | linear | exponential"),
            ("value", self._start, self._start >= 0, "0 or more"),
            ("warmup_steps", self._warmup, self._warmup >= 0, "0 or more"),
            ("off_step", self._off, self._off is None or self._off >= 0, "0 or more, or null"),
            ("final", self._final, anneals == (self._final is not None), "a number with an anneal, null with constant"),
            ("final", self._final, self._final is None or self._final >= 0, "0 or more"),
            ("final", self._final, self._schedule != "exponential" or positive, "above 0, as value is, with exponential"),
            ("steps", self._steps, not anneals or (self._steps or 0) > self._warmup, "more than warmup_steps"),
        ):
            if not good:
                raise ValueError(f"objective.kl.beta.{name} = {value!r}; allowed: {allowed}")

    def state_dict(self) -> dict[str, Any]:
        """What fixes the curve, for the checkpoint; the step is the run's."""
        return {
            "value": self._start, "final": self._final, "schedule": self._schedule, "steps": self._steps,
            "warmup_steps": self._warmup, "off_step": self._off,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A schedule configured otherwise than before is obeyed, and said aloud: β may jump where the run goes on."""
        for name, now in self.state_dict().items():
            if state[name] != now:
                logger.warning("resumed with another beta schedule: %s was %s, is %s", name, state[name], now)

    def value(self, step: int) -> float:
        """β of step ``step``, counted from 0."""
        if self._off is not None and step >= self._off:
            return 0.0
        if step < self._warmup:
            return self._start * (step + 1) / self._warmup
        if self._schedule == "constant":
            return self._start
        done = min(1.0, (step - self._warmup) / max(1, self._steps - 1 - self._warmup))
        if self._schedule == "linear":
            return self._start + done * (self._final - self._start)
        return self._start * (self._final / self._start) ** done
