"""Killable verifier processes: an answer is judged within a limit, or it is wrong.

A thread cannot be stopped and ``signal.alarm`` is not heard inside a C loop, so each worker is a process of its own
(``worker.py``), started fresh (never forked from a trainer with threads and CUDA) and killed when an answer takes too much.
The next answer goes to its replacement.  One thread drives all workers, and blocks on none of them.

What is limited is what an answer uses, not how long a busy node lets it wait: processor time of the worker and all that
descends from it, and the time in which none of them runs or wants a core.  So the same answer has the same reward on every
machine and under any load.  An answer that meets a limit, or whose worker dies, is asked once more, of a fresh worker.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import selectors
import time
import weakref
from collections import Counter, deque
from collections.abc import Collection, Sequence

from vold_nemo.config import ConfigError
from vold_nemo.rewards import processes
from vold_nemo.rewards.handle import Worker, too_long
from vold_nemo.rewards.replies import Broken
from vold_nemo.rewards.sandbox import Held
from vold_nemo.rewards.verdict import Verdict, is_verdict

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # of processor time, or asleep: importing SymPy and the user's module
MAX_FAILED_STARTS = 3
TRIES = 2  # a worker may die, or take long, of what its answer has no part in (an operator, the kernel's memory killer)
TOGETHER = 16  # most answers to one truth that go to the same worker, which reads the truth once
WALL = 10.0  # times reward.seconds that an answer may sleep, unless reward.wall_seconds says it


class VerifierPool:
    """``workers`` processes that judge answers, each within ``seconds`` of processor time and ``wall`` seconds of sleep.

    ``cores`` are those that the workers may run on (none named: those of this process).  ``isolation``: see
    ``reward.isolation``; ``variables``: those of the environment that workers see beside the few they need.  Workers start with
    :meth:`start` or the first :meth:`judge` and live until :meth:`close`, the end of the process, or its death by any signal.
    """

    def __init__(
        self, workers: int, seconds: float, cores: Collection[int] = (), *, wall: float | None = None,
        isolation: str = "auto", variables: Sequence[str] = (),
    ):  # fmt: skip
        self.size, self.seconds, self.cores = max(1, workers), seconds, tuple(cores)
        self.wall, self.isolation, self.variables = wall, isolation, tuple(variables)
        self.timeouts = self.crashes = 0
        self.held: Held | None = None  # what the first worker said of itself
        self._names: set[str] = set()  # verifiers that a worker imports before its first answer
        self._failed_starts = 0
        self._workers: list[Worker] = []
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
            ConfigError: ``isolation`` is required, and this node's kernel does not give it.
        """
        round_ = _Round(comparisons)
        self._expect({comparison[0] for comparison in comparisons})
        try:
            while round_.missing:
                self._fill(min(self.size, round_.missing))
                for worker in list(self._workers):
                    if worker.ready and worker.job is None and worker.restless():
                        self._remove(worker, round_)
                    elif worker.ready and worker.job is None and round_.deal(worker, self._workers):
                        job = worker.queue.popleft()
                        worker.send(job, comparisons[job])
                        self._watch(worker)
                self._wait(round_)
        except BaseException:  # an interrupted call: no worker may answer into the next one
            self.close()
            raise
        return round_.verdicts

    def pids(self) -> list[int]:
        """The processes that judge, or their keepers where they have not begun yet."""
        return [next(iter(processes.children(w.process.pid)), w.process.pid) for w in self._workers]

    def keepers(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Kill all workers; a later :meth:`judge` starts new ones."""
        for worker in self._workers:
            worker.end()
        for worker in list(self._workers):
            self._remove(worker)

    def _expect(self, names: Collection[str]) -> None:
        """Workers that have not imported one of these are replaced: an answer would be charged for it."""
        if not self._names.issuperset(names):
            self.close()
            self._names.update(names)

    def _fill(self, wanted: int) -> None:
        while len(self._workers) < wanted:
            worker = Worker(self._names, self.cores, isolated=self.isolation != "off", variables=self.variables)
            self._workers.append(worker)
            self._selector.register(worker.replies, selectors.EVENT_READ, worker)

    def _watch(self, worker: Worker) -> None:
        """Send what fits into the pipe now; ask to be told when more does."""
        key = worker.requests
        if worker.flush():
            with contextlib.suppress(KeyError):
                self._selector.unregister(key)
        elif key not in self._selector.get_map():
            self._selector.register(key, selectors.EVENT_WRITE, worker)

    def _wait(self, round_: _Round) -> None:
        """Handle replies, deaths and limits."""
        nearest = min((worker.next_look for worker in self._workers if worker.busy), default=0.0)
        for key, events in self._selector.select(max(0.0, nearest - time.monotonic())):
            worker = key.data
            if worker not in self._workers:
                continue
            if events & selectors.EVENT_WRITE:
                self._watch(worker)
            elif events & selectors.EVENT_READ:
                self._read(worker, round_)
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.busy and worker.next_look <= now]:
            limits = (self.seconds, self.wall or WALL * self.seconds) if worker.ready else (START_SECONDS, START_SECONDS)
            reason, trouble = worker.look(now, *limits)
            if trouble is not None:
                self._over(worker, round_, reason, trouble)

    def _read(self, worker: Worker, round_: _Round) -> None:
        try:
            reply = worker.receive()
            if reply is None:
                return
            if reply == b"":
                self._died(worker, round_)
            elif not worker.ready:
                self._is_ready(worker, reply)
            elif worker.job is None:
                raise Broken("nothing was asked")
            else:
                self._answered(worker, round_, reply)
        except Broken as error:
            if worker.job is not None:
                self.crashes += 1
                round_.again(worker.job, Verdict(0.0, None, f"the verifier wrote into its replies ({error})", "error"))
            self._remove(worker, round_)
            if not worker.ready:
                self._failed_start(worker)

    def _is_ready(self, worker: Worker, reply) -> None:
        try:
            held = Held(*reply)
        except TypeError:
            raise Broken("not what a worker begins with") from None
        worker.begin()
        self._failed_starts = 0
        if self.held is None:
            self.held = held
            self._tell(held)

    def _tell(self, held: Held) -> None:
        missing = held.missing()
        if self.isolation == "off" or not missing:
            return
        if self.isolation == "required":
            raise ConfigError(
                "reward.isolation", "required", f"a kernel that lets an ordinary user take it: here a verifier could {missing}",
                "use reward.isolation=auto, or have user namespaces or Landlock enabled (docs/verifiers.md)",
            )  # fmt: skip
        logger.warning("verifiers are not wholly isolated on this node: one could %s (docs/verifiers.md)", missing)

    def _answered(self, worker: Worker, round_: _Round, reply) -> None:
        if not (isinstance(reply, list) and len(reply) == 6 and is_verdict(reply[:4])):
            raise Broken("not a verdict")
        *verdict, full, of_children = reply
        if worker.finish(of_children) > self.seconds:  # several threads, or children: between two looks
            self._over(worker, round_, *too_long(self.seconds))
            return
        round_.settle(worker.job, Verdict(*verdict))
        worker.job = None
        if full:
            self._remove(worker, round_)

    def _over(self, worker: Worker, round_: _Round, reason: str, trouble: str) -> None:
        """A limit was met."""
        job, worker.job = worker.job, None
        self._remove(worker, round_)
        if job is None:
            self._failed_start(worker)
            return
        again = round_.again(job, Verdict(0.0, None, reason, trouble))
        self.timeouts += trouble == "time-out" and not again

    def _died(self, worker: Worker, round_: _Round) -> None:
        """A worker ended by itself, or did not get ready."""
        job, worker.job = worker.job, None
        self._remove(worker, round_)
        if job is not None:
            self.crashes += 1
            status = worker.process.returncode
            round_.again(job, Verdict(0.0, None, f"the verifier crashed (exit {status})", "error"))
        elif not worker.ready:
            self._failed_start(worker)

    def _failed_start(self, worker: Worker) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise RuntimeError(f"{self._failed_starts} verifier processes did not start:\n{worker.error_output()}")

    def _remove(self, worker: Worker, round_: _Round | None = None) -> None:
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
        self._failures: Counter[int] = Counter()
        together: dict[str, list[int]] = {}
        for job, comparison in enumerate(comparisons):
            together.setdefault(comparison[2], []).append(job)
        self.pending = deque(
            deque(jobs[i : i + TOGETHER]) for jobs in together.values() for i in range(0, len(jobs), TOGETHER)
        )

    def deal(self, worker: Worker, workers: Sequence[Worker]) -> bool:
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

    def again(self, job: int, verdict: Verdict) -> bool:
        """Ask once more, behind all others and of another worker; ``verdict`` stands if that was the last try."""
        self._failures[job] += 1
        if self._failures[job] < TRIES:
            self.pending.append(deque([job]))
            return True
        self.settle(job, verdict)
        return False


_POOLS: weakref.WeakSet[VerifierPool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for pool in list(_POOLS):
        pool.close()
