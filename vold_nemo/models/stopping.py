"""Stopping in good order: a signal sets a flag, and one all-reduce a step makes all ranks agree on it.

Handlers do nothing else: a collective in a handler could meet another one that is half done.  The wall-clock budget needs no
signal: the step that would outlast it is not begun.

Ctrl-C is such a signal, once.  The second one ends the process at once, wherever it is: a thread sees it that waits for nothing
else, while the main thread may be in a collective, where Python's handlers do not run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import torch
import torch.distributed as dist

from vold_nemo import STARTED
from vold_nemo.config.launcher import INTERRUPTED, is_first_rank

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
SAME = 1.5  # seconds within which another SIGINT is the same Ctrl-C: the terminal sends one, torchrun passes another one on
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
        self._pipe: tuple[int, int] | None = None
        self._woken = -1

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # signals can be had nowhere else
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._woken = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=_watch_interrupts, args=(self._pipe[0],), name="Ctrl-C", daemon=True).start()
        self._last = time.monotonic()
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._woken)
            os.close(self._pipe[1])  # the thread reads the end, and closes the other

    def _note(self, number, frame) -> None:
        self.asked = True
        self.reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name

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


def _watch_interrupts(pipe: int) -> None:
    """Read the numbers of signals as the interpreter's own handler writes them, whatever the main thread is doing."""
    first: float | None = None
    with os.fdopen(pipe, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] != signal.SIGINT:
                continue
            now = time.monotonic()
            if first is None:
                first = now
                _say("Ctrl-C: this step is finished and a checkpoint written; once more to leave at once, without one")
            elif now - first > SAME:
                _say("Ctrl-C again: left at once; the run goes on from its newest checkpoint")
                os._exit(INTERRUPTED)


def _say(text: str) -> None:
    if is_first_rank():
        with contextlib.suppress(OSError):
            os.write(2, f"\n{text}\n".encode())
