"""Batches made ahead of their step, so that a slow disk delays the thread that reads and not the ranks that train."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """``make(step)`` for steps asked for in order, computed up to ``depth`` steps ahead in one background thread.

    ``make`` is a function of the step alone and does no collective; what it raises is raised by :meth:`get` of its step.  A
    step that is not the next one (after a resume) is made anew.  The thread starts with the first step and ends with the
    process.

    Args:
        steps: nothing is made beyond this many.
    """

    def __init__(self, make: Callable[[int], T], steps: int, depth: int = 2):
        self._make, self._steps, self._depth = make, steps, depth
        self._coming: dict[int, Future[T]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def get(self, step: int) -> T:
        """The batch of ``step``; waits for it only where the thread has fallen behind."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        wanted = range(step, max(step + 1, min(step + 1 + self._depth, self._steps)))
        for other in [s for s in self._coming if s not in wanted]:
            self._coming.pop(other).cancel()
        for coming in wanted:
            if coming not in self._coming:
                self._coming[coming] = self._thread.submit(self._make, coming)
        return self._coming.pop(step).result()
