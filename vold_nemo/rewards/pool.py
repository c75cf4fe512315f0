"""Killable verifier processes: an answer is judged within a hard limit, or it is wrong.

A thread cannot be stopped and ``signal.alarm`` is not heard inside a C loop, so each worker is a process of its own
(``worker.py``), started fresh (never forked from a trainer with threads and CUDA) and killed when an answer takes too
long.  The next answer goes to its replacement.  One thread drives all workers, and blocks on none of them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
import weakref
from collections import Counter, deque
from collections.abc import Collection, Sequence

from vold_nemo.rewards.verdict import Verdict

START_SECONDS = 120.0  # importing SymPy on a busy file system
MAX_FAILED_STARTS = 3
TRIES = 2  # a worker may die of what its answer has no part in (an operator, the kernel's memory killer)
TOGETHER = 16  # most answers to one truth that go to the same worker, which reads the truth once


class VerifierPool:
    """``workers`` processes that judge answers, each within ``seconds``.

    ``cores`` are those that the workers may run on (none named: those of this process).  Workers start with :meth:`start` or
    the first :meth:`judge` and live until :meth:`close`, the end of the process, or its death by any signal.
    """

    def __init__(self, workers: int, seconds: float, cores: Collection[int] = ()):
        self.size, self.seconds, self.cores = max(1, workers), seconds, tuple(cores)
        self.timeouts = self.crashes = 0
        self._names: set[str] = set()  # verifiers that a worker imports before its first answer
        self._failed_starts = 0
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        _POOLS.add(self)

    def start(self, names: Collection[str]) -> None:
        """Start all workers in the background, to be asked for these verifiers; returns at once."""
        self._expect(names)
        self._fill(self.size)

    def judge(self, comparisons: Sequence[Sequence[str]]) -> list[Verdict]:
        """Verdicts on comparisons that begin with (verifier name, text, truth), in order.

        Raises:
            RuntimeError: workers die before they are ready; with the last lines of their error output.
        """
        round_ = _Round(comparisons)
        self._expect({comparison[0] for comparison in comparisons})
        try:
            while round_.missing:
                self._fill(min(self.size, round_.missing))
                for worker in self._workers:
                    if worker.ready and worker.job is None and round_.deal(worker, self._workers):
                        job = worker.queue.popleft()
                        worker.send(job, comparisons[job], self.seconds)
                        self._watch(worker)
                self._wait(round_)
        except BaseException:  # an interrupted call: no worker may answer into the next one
            self.close()
            raise
        return round_.verdicts

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Kill all workers; a later :meth:`judge` starts new ones."""
        for worker in list(self._workers):
            self._remove(worker)

    def _expect(self, names: Collection[str]) -> None:
        """Workers that have not imported one of these are replaced: an answer would be charged for it."""
        if not self._names.issuperset(names):
            self.close()
            self._names.update(names)

    def _fill(self, wanted: int) -> None:
        while len(self._workers) < wanted:
            worker = _Worker(self._names, self.cores)
            self._workers.append(worker)
            self._selector.register(worker.replies, selectors.EVENT_READ, worker)

    def _watch(self, worker: _Worker) -> None:
        """Send what fits into the pipe now; ask to be told when more does."""
        key = worker.requests
        if worker.flush():
            with contextlib.suppress(KeyError):
                self._selector.unregister(key)
        elif key not in self._selector.get_map():
            self._selector.register(key, selectors.EVENT_WRITE, worker)

    def _wait(self, round_: _Round) -> None:
        """Handle replies, deaths and expired limits."""
        nearest = min(worker.deadline for worker in self._workers if worker.busy)
        for key, events in self._selector.select(max(0.0, nearest - time.monotonic())):
            worker = key.data
            if worker not in self._workers:
                continue
            if events & selectors.EVENT_WRITE:
                self._watch(worker)
            elif events & selectors.EVENT_READ:
                reply = worker.receive()
                if reply is None:
                    continue
                if reply == b"":
                    self._died(worker, round_)
                elif not worker.ready:
                    worker.ready, self._failed_starts = True, 0
                else:
                    *verdict, full = json.loads(reply)
                    round_.settle(worker.job, Verdict(*verdict))
                    worker.job = None
                    if full:
                        self._remove(worker, round_)
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.busy and worker.deadline <= now]:
            if not worker.ready:
                self._died(worker, round_)
                continue
            round_.settle(worker.job, Verdict(0.0, None, f"time-out: over {self.seconds:g} s", "time-out"))
            self.timeouts += 1
            self._remove(worker, round_)

    def _died(self, worker: _Worker, round_: _Round) -> None:
        """A worker ended by itself, or did not get ready."""
        self._remove(worker, round_)
        if worker.job is not None:
            self.crashes += 1
            round_.crashed(worker.job, worker.process.returncode)
        elif not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise RuntimeError(f"{self._failed_starts} verifier processes did not start:\n{worker.error_output()}")

    def _remove(self, worker: _Worker, round_: _Round | None = None) -> None:
        self._workers.remove(worker)
        for pipe in (worker.requests, worker.replies):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(pipe)
        worker.kill()
        if round_ is not None and worker.queue:
            round_.pending.appendleft(worker.queue)


class _Round:
    """One call of ``judge``: what is still to be judged, in parts with the same truth, and the verdicts so far."""

    def __init__(self, comparisons: Sequence[Sequence[str]]):
        self.missing = len(comparisons)
        self.verdicts: list[Verdict | None] = [None] * len(comparisons)
        self._deaths: Counter[int] = Counter()
        together: dict[str, list[int]] = {}
        for job, comparison in enumerate(comparisons):
            together.setdefault(comparison[2], []).append(job)
        self.pending = deque(
            deque(jobs[i : i + TOGETHER]) for jobs in together.values() for i in range(0, len(jobs), TOGETHER)
        )

    def deal(self, worker: _Worker, workers: Sequence[_Worker]) -> bool:
        """Give ``worker`` something to do: its own part, the next one, or one job of the longest part at the end."""
        if not worker.queue and self.pending:
            worker.queue = self.pending.popleft()
        if not worker.queue:
            longest = max((other.queue for other in workers), key=len)
            if longest:
                worker.queue = deque([longest.pop()])
        return bool(worker.queue)

    def settle(self, job: int, verdict: Verdict) -> None:
        self.verdicts[job] = verdict
        self.missing -= 1

    def crashed(self, job: int, status: int) -> None:
        self._deaths[job] += 1
        if self._deaths[job] < TRIES:
            self.pending.appendleft(deque([job]))
        else:
            self.settle(job, Verdict(0.0, None, f"the verifier crashed (exit {status})", "error"))


class _Worker:
    """One process and its two pipes, neither of which ever blocks."""

    def __init__(self, names: Collection[str], cores: Sequence[int]):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # imports as here
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when a start fails, gone with the worker
        arguments = [str(os.getpid()), ",".join(map(str, cores)), *sorted(names)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vold_nemo.rewards.worker", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment, bufsize=0,
        )  # fmt: skip
        self.requests, self.replies = self.process.stdin, self.process.stdout
        for pipe in (self.requests, self.replies):
            os.set_blocking(pipe.fileno(), False)
        self.ready = False
        self.job: int | None = None
        self.queue: deque[int] = deque()
        self.deadline = time.monotonic() + START_SECONDS
        self._outgoing = memoryview(b"")
        self._incoming = bytearray()

    @property
    def busy(self) -> bool:
        return not self.ready or self.job is not None

    def send(self, job: int, comparison: Sequence[str], seconds: float) -> None:
        self.job, self.deadline = job, time.monotonic() + seconds
        self._outgoing = memoryview(json.dumps(comparison[:3]).encode("ascii") + b"\n")  # surrogates and NULs survive

    def flush(self) -> bool:
        """Write what the pipe takes; true when nothing is left (or the reader is gone: the reply pipe tells)."""
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[os.write(self.requests.fileno(), self._outgoing) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self._outgoing = memoryview(b"")
        return True

    def receive(self) -> bytes | None:
        """A whole reply; None if it is not complete yet, ``b""`` if the process has ended."""
        try:
            chunk = os.read(self.replies.fileno(), 1 << 16)
        except BlockingIOError:
            return None
        if not chunk:
            return b""
        self._incoming += chunk
        if not self._incoming.endswith(b"\n"):
            return None
        reply, self._incoming = bytes(self._incoming), bytearray()
        return reply

    def error_output(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-2_000:].decode("utf-8", "replace")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.requests, self.replies):
            pipe.close()


_POOLS: weakref.WeakSet[VerifierPool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for pool in list(_POOLS):
        pool.close()
