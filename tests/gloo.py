"""Persistent workers: real gloo groups for tests at the price of one start.

``Ranks().of(4).run(function, *args)`` calls ``function(*args)`` on four ranks and returns the list of results by rank.
``function`` must be importable (module level) and leave no state behind.  A world of two is the first two of the same
processes, under a default group of their own.  They are forked off one process that has imported what most of them need.  A
raised exception is re-raised in the test with the rank's traceback; a call over its time limit kills the workers, and the next
call starts fresh ones.
"""

from __future__ import annotations

import contextlib
import os
import queue
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch.multiprocessing as mp


def _serve(number: int, inbox, outbox) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    joined = None
    while True:
        job = inbox.get()
        if job is None:
            break
        size, meeting, function, args = job
        try:
            if meeting != joined:  # another world than the last
                if dist.is_initialized():
                    dist.destroy_process_group()
                os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(size))
                dist.init_process_group(
                    "gloo", init_method=f"file://{meeting}", rank=number, world_size=size, timeout=timedelta(seconds=120)
                )
                joined = meeting
            outbox.put((number, True, function(*args)))
        except BaseException:
            outbox.put((number, False, traceback.format_exc()))


class Ranks:
    """The processes."""

    def __init__(self):
        self._processes: dict[int, tuple] = {}  # by number: process, inbox
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["vold_nemo.models.vold", "vold_nemo.models.sft"])
        self._outbox = self._context.Queue()
        self._world = 0
        self._meetings = Path(tempfile.mkdtemp(prefix="gloo"))
        self._meeting = 0

    def of(self, size: int) -> World:
        return World(self, size)

    def run(self, size: int, function, args, timeout: float) -> list:
        for number in range(size):
            if number not in self._processes:
                inbox = self._context.Queue()
                process = self._context.Process(target=_serve, args=(number, inbox, self._outbox), daemon=True)
                process.start()
                self._processes[number] = process, inbox
        if size != self._world:
            self._world, self._meeting = size, self._meeting + 1
        meeting = str(self._meetings / str(self._meeting))
        for number in range(size):
            self._processes[number][1].put((size, meeting, function, args))
        results: dict[int, object] = {}
        deadline = time.monotonic() + timeout
        while len(results) < size:
            try:
                number, ok, value = self._outbox.get(timeout=max(0.1, min(1.0, deadline - time.monotonic())))
            except queue.Empty:
                dead = [number for number in range(size) if not self._processes[number][0].is_alive()]
                if dead or time.monotonic() > deadline:
                    self.stop()
                    missing = sorted(set(range(size)) - set(results))
                    raise AssertionError(f"ranks {missing} gave no result in {timeout:.0f} s (dead: {dead})") from None
                continue
            if not ok:  # the other ranks may wait in a collective: start over for the next test
                self.stop()
                raise AssertionError(f"rank {number} of {size} raised\n{value}")
            results[number] = value
        return [results[number] for number in range(size)]

    def stop(self) -> None:
        for process, _ in self._processes.values():
            with contextlib.suppress(Exception):
                process.kill()
                process.join(5)
        self._processes, self._world, self._outbox = {}, 0, self._context.Queue()


class World:
    """``size`` ranks of the persistent processes."""

    def __init__(self, ranks: Ranks, size: int):
        self.ranks, self.size = ranks, size

    def run(self, function, *args, timeout: float = 240.0) -> list:
        """Call ``function(*args)`` on every rank; results in rank order."""
        return self.ranks.run(self.size, function, args, timeout)
