"""One worker as the pool sees it: its keeper, two pipes that never block, and what it has used of its limits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Collection, Sequence

from vold_nemo.rewards import processes
from vold_nemo.rewards.replies import Replies
from vold_nemo.rewards.sandbox import END, MEMORY, MOST_PROCESSES, RETIRE, environment

LOOK = 0.1  # seconds between two looks at what a worker uses; an answer that is ready before the first is not looked at
STALLED = 600.0  # seconds without any processor time, asleep or not, after which nothing is waited for any more
KEEPER_SECONDS = 60.0  # that a keeper on a busy node may take to end its worker
RESTLESS = 0.1  # seconds of processor time between two answers that show that something was left running


def too_long(seconds: float) -> tuple[str, str]:
    return f"time-out: over {seconds:g} s of processor time", "time-out"


class Worker:
    """One keeper, the process it keeps, and two pipes, neither of which ever blocks."""

    def __init__(self, names: Collection[str], cores: Sequence[int], *, isolated: bool, variables: Sequence[str] = ()):
        self.scratch = tempfile.mkdtemp(prefix="vold-verifier-")
        variables_ = {
            **environment(variables),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # imports as here
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TMPDIR": self.scratch,
        }
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when a start fails, gone with the worker
        arguments = [str(os.getpid()), ",".join(map(str, cores)), "isolated" if isolated else "open", *sorted(names)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vold_nemo.rewards.worker", *arguments], process_group=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=variables_, bufsize=0,
        )  # fmt: skip
        self.requests, self.replies = self.process.stdin, self.process.stdout
        for pipe in (self.requests, self.replies):
            os.set_blocking(pipe.fileno(), False)
        self.ready, self.pid = False, self.process.pid  # the keeper's, until the worker itself is known
        self.job: int | None = None
        self.queue: deque[int] = deque()
        self._outgoing, self._incoming, self._key = memoryview(b""), Replies(), b""
        self._of_children = self._clock = 0.0  # processor time up to the last answer
        self._count_from(0.0)

    @property
    def busy(self) -> bool:
        return not self.ready or self.job is not None

    def _count_from(self, used: float) -> None:
        self.next_look = self._looked = self._moved = time.monotonic()
        self.next_look += LOOK
        self._base = self._seen = used
        self._slept = 0.0

    def begin(self) -> None:
        """The worker is ready."""
        self.ready, self.pid = True, next(iter(processes.children(self.process.pid)), self.process.pid)
        self._clock = processes.clock(self.pid)
        self._of_children = processes.look(self.pid, MOST_PROCESSES).seconds - self._clock  # of programs run by imports
        if self._of_children < 0.05:  # /proc counts in hundredths
            self._of_children = 0.0

    def send(self, job: int, comparison: Sequence[str]) -> None:
        self.job, self._key = job, os.urandom(16)
        asked = [self._key.hex(), *comparison[:3]]
        self._outgoing = memoryview(json.dumps(asked).encode("ascii") + b"\n")  # surrogates and NULs survive
        self._count_from(self._clock + self._of_children)

    def restless(self) -> bool:
        """Whether it worked although nothing was asked: the next answer would be charged for it."""
        now = processes.clock(self.pid)
        restless, self._clock = now - self._clock > RESTLESS, now
        return restless

    def finish(self, of_children: float) -> float:
        """The answer came: processor seconds that it used."""
        self._clock, self._of_children = processes.clock(self.pid), of_children
        return self._clock + self._of_children - self._base

    def look(self, now: float, seconds: float, wall: float) -> tuple[str, str | None]:
        """Reason and trouble, if a limit is met."""
        usage = processes.look(self.pid, MOST_PROCESSES)
        passed, moved = now - self._looked, usage.seconds - self._seen
        self._looked, self.next_look, self._seen = now, now + LOOK, max(self._seen, usage.seconds)
        if moved > 0.0:
            self._moved = now
        if not usage.awake and moved < passed / 10:
            self._slept += passed
        if usage.seconds - self._base > seconds:
            return too_long(seconds)
        if self._slept > wall or now - self._moved > STALLED:
            return f"time-out: asleep for {min(self._slept, wall):g} s", "time-out"
        if usage.processes > MOST_PROCESSES:
            return f"more than {MOST_PROCESSES} processes", "error"
        if usage.bytes > MEMORY + RETIRE and processes.proportional(self.pid, MOST_PROCESSES) > MEMORY:
            return f"over {MEMORY >> 30} GiB of memory", "error"
        return "", None

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

    def receive(self):
        """A whole reply; None if it is not complete yet, ``b""`` if the processes have ended.

        Raises:
            Broken: something else was written there.
        """
        try:
            chunk = os.read(self.replies.fileno(), 1 << 16)
        except BlockingIOError:
            return None
        return self._incoming.feed(chunk, self._key) if chunk else b""

    def error_output(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-2_000:].decode("utf-8", "replace")

    def end(self) -> None:
        """Ask the keeper to end everything."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(END)

    def kill(self) -> None:
        """End everything, and wait until it is gone."""
        self.end()
        try:
            self.process.wait(KEEPER_SECONDS)
        except subprocess.TimeoutExpired:  # it was stopped, or killed its keeper's time: the kernel ends the worker with it
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        for pipe in (self.requests, self.replies):
            pipe.close()
