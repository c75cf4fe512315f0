"""Persistent gloo workers: real process groups for tests at the price of one start.

``Workers(4).run(function, *args)`` calls ``function(*args)`` on every rank and returns the list of results by rank.
``function`` must be importable (module level) and leave no state behind; the default process group stays up between calls.
A raised exception is re-raised in the test with the rank's traceback; a call over its time limit kills the workers, and the
next call starts fresh ones.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import time
import traceback
from datetime import timedelta

import torch.multiprocessing as mp


def _serve(rank: int, world: int, port: int, inbox, outbox) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=120))
    while True:
        job = inbox.get()
        if job is None:
            break
        function, args = job
        try:
            outbox.put((rank, True, function(*args)))
        except BaseException:
            outbox.put((rank, False, traceback.format_exc()))


class Workers:
    """A world of gloo ranks, one process each."""

    def __init__(self, world: int):
        self.world = world
        self._processes: list = []

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = mp.get_context("spawn")
        self._outbox = context.Queue()
        self._inboxes = [context.Queue() for _ in range(self.world)]
        self._processes = [
            context.Process(target=_serve, args=(r, self.world, port, self._inboxes[r], self._outbox), daemon=True)
            for r in range(self.world)
        ]
        for process in self._processes:
            process.start()

    def run(self, function, *args, timeout: float = 240.0) -> list:
        """Call ``function(*args)`` on every rank; results in rank order."""
        if not self._processes:
            self._start()
        for inbox in self._inboxes:
            inbox.put((function, args))
        results: dict[int, object] = {}
        deadline = time.monotonic() + timeout
        while len(results) < self.world:
            try:
                rank, ok, value = self._outbox.get(timeout=max(0.1, min(1.0, deadline - time.monotonic())))
            except queue.Empty:
                dead = [r for r, p in enumerate(self._processes) if not p.is_alive()]
                if dead or time.monotonic() > deadline:
                    self.stop()
                    missing = sorted(set(range(self.world)) - set(results))
                    raise AssertionError(f"ranks {missing} gave no result in {timeout:.0f} s (dead: {dead})") from None
                continue
            if not ok:  # the other ranks may wait in a collective: start over for the next test
                self.stop()
                raise AssertionError(f"rank {rank} of {self.world} raised\n{value}")
            results[rank] = value
        return [results[rank] for rank in range(self.world)]

    def stop(self) -> None:
        for process in self._processes:
            with contextlib.suppress(Exception):
                process.kill()
                process.join(5)
        self._processes = []
