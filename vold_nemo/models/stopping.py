"""Stopping in good order: a signal sets a flag, and one all-reduce a step makes all ranks agree on it.

Handlers do nothing else: a collective in a handler could meet another one that is half done.  The wall-clock budget needs no
signal: the step that would outlast it is not begun.
"""

from __future__ import annotations

import signal
import threading
import time

import torch
import torch.distributed as dist

from vold_nemo import STARTED

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_MARGIN = 1.5  # the next step and checkpoint may take this many times the longest so far


class Stop:
    """``with Stop(budget) as stop:`` and, once a step, ``stop.agreed(device)``.

    ``budget``: seconds since the process started that the run may last; None = as long as it likes.
    """

    def __init__(self, budget: float | None = None) -> None:
        self.asked = False
        self.reason = ""
        self.budget = budget
        self.longest = 0.0
        self.reserve = 0.0  # seconds for the last checkpoint, beyond what steps show of it
        self._last = time.monotonic()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # signals can be had nowhere else
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._last = time.monotonic()
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        self.asked = True
        self.reason = signal.Signals(number).name

    def _out_of_time(self) -> bool:
        """Whether a step as long as the longest, checkpoint included, would end behind the budget."""
        now = time.monotonic()
        self.longest, self._last = max(self.longest, now - self._last), now
        return self.budget is not None and now - STARTED + _MARGIN * (self.longest + self.reserve) > self.budget

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked to stop; the same answer on all.  One MAX all-reduce of a scalar over the world."""
        if self._out_of_time() and not self.asked:
            self.asked, self.reason = True, f"limits.wall_minutes = {self.budget / 60:g}"
        flag = torch.tensor(float(self.asked), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())
