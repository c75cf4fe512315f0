"""A rank that hangs is found, and says where: one small file a rank, one daemon thread, no collective after the start.

    <run>/heartbeat/rank_3.json     step, phase, seconds in it, host, process; rewritten every few seconds (recipes/watch.py)
    <run>/stacks/rank_3.txt         every thread's stack, written once when the run is found to be stuck

The main thread calls :func:`note` when it enters a phase.  A rank that has spent ``limit`` seconds in one phase writes its
stacks; that file is the alarm on which all others write theirs, wherever they wait, before any of them leaves.  Then all
leave with 86: whether the culprit spins, sleeps or waits for a file system, its line is in ``stacks/``.

The thread needs the interpreter's lock.  C code that never gives it back is left to faulthandler's own thread, which needs
none: it writes the same stacks later, and ends the process with 1.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from vold_nemo.config.launcher import STUCK
from vold_nemo.config.writing import writing

logger = logging.getLogger(__name__)

listeners: list[Callable[[str], None]] = []  # others who want to know the phase

_PART_OF_LIMIT = 20  # looks at the clock and at the others this often within the limit
_MOST_SECONDS = 10.0  # and at least every so many seconds: what `watch` shows is never older


class Heartbeat:
    """``with Heartbeat(folder, rank=, world=, limit=) as heart:`` around a loop; the loop calls ``heart.note``.

    Entering is collective: the stacks of an attempt before this one are out of the way before any rank looks for an alarm.

    Args:
        folder: of the run, shared by all ranks.
        limit: seconds that a phase may take; None = keep the file, never raise the alarm.
        total: steps of the whole run, for those who watch.
    """

    def __init__(self, folder: Path, *, rank: int, world: int, limit: float | None, total: int | None = None):
        self.file = folder / "heartbeat" / f"rank_{rank}.json"
        self.stacks = folder / "stacks"
        self.rank, self.world, self.limit, self.total = rank, world, limit, total
        self.period = min(_MOST_SECONDS, limit / _PART_OF_LIMIT) if limit else _MOST_SECONDS
        self.step, self.phase, self.since = 0, "start", time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._last_resort = None
        self._troubled = False

    def __enter__(self) -> Heartbeat:
        global _current
        with writing("outputs", self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.stacks.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:  # a former attempt's stacks are evidence, but no alarm of this attempt's
            for path in self._stack_files():
                path.rename(path.with_suffix(".before"))
        if dist.is_initialized():
            dist.barrier()
        if self.limit:
            with writing("outputs", self.stacks):
                self._last_resort = (self.stacks / f"rank_{self.rank}.last_resort").open("w")
        self.note("start")
        self._thread.start()
        _current = self
        return self

    def __exit__(self, kind, error, trace) -> None:
        global _current
        _current = None
        self._done.set()
        if self._last_resort is not None:
            faulthandler.cancel_dump_traceback_later()
            self._last_resort.close()
            Path(self._last_resort.name).unlink(missing_ok=True)
            self._last_resort = None
        self._thread.join(timeout=self.period)
        if isinstance(error, Exception):
            error.add_note(f"rank {self.rank} of {self.world}: {self.where()}")
        # For those who watch: no more beats will come, and why.
        self.note("done" if kind is None else "stopped" if issubclass(kind, SystemExit) else "failed")
        self._write()

    def note(self, phase: str, step: int | None = None) -> None:
        """The main thread goes on to ``phase`` (of ``step``)."""
        _tell(phase)
        self.phase, self.since = phase, time.monotonic()
        if step is not None:
            self.step = step
        if self._last_resort is not None:
            faulthandler.dump_traceback_later(2 * self.limit + 60, exit=True, file=self._last_resort)

    def where(self) -> str:
        return f"step {self.step + 1}, phase {self.phase}"

    def _stack_files(self) -> list[Path]:
        return list(self.stacks.glob("rank_*.txt"))

    def _watch(self) -> None:
        self._write()
        while not self._done.wait(self.period):
            self._write()
            if self.limit and (time.monotonic() - self.since > self.limit or self._alarm()):
                self._leave()

    def _write(self) -> None:
        state = {
            "rank": self.rank, "world": self.world, "step": self.step, "total": self.total, "phase": self.phase,
            "host": socket.gethostname(), "process": os.getpid(), "time": time.time(),
            "seconds_in_phase": round(time.monotonic() - self.since, 1), "job": os.environ.get("SLURM_JOB_ID"),
        }  # fmt: skip
        aside = self.file.with_suffix(".part")
        try:
            aside.write_text(json.dumps(state))
            os.replace(aside, self.file)
        except OSError as error:  # a full disk is the checkpoint's business; a run does not end over its pulse
            if not self._troubled:
                logger.warning("rank %d cannot write %s: %s", self.rank, self.file, error)
            self._troubled = True

    def _alarm(self) -> bool:
        """Whether any rank of this attempt has written its stacks."""
        return bool(self._stack_files())

    def _leave(self) -> None:
        seconds = time.monotonic() - self.since
        file_name = self.stacks / f"rank_{self.rank}.txt"
        aside = file_name.with_suffix(".part")
        with aside.open("w") as file:
            print(f"rank {self.rank} on {socket.gethostname()}: {self.where()}, for {seconds:.0f} s", file=file, flush=True)
            faulthandler.dump_traceback(file=file, all_threads=True)
        os.replace(aside, file_name)
        message = (
            f"rank {self.rank} is stuck: {self.where()}, for {seconds:.0f} s (limits.stuck_minutes = {self.limit / 60:g}); "
            f"stacks of all ranks: {self.stacks}"
        )
        os.write(2, f"error: {message}\n".encode())
        time.sleep(3 * self.period)  # the others see the file and write theirs before the launcher ends them
        os._exit(STUCK)


_current: Heartbeat | None = None


def note(phase: str, step: int | None = None) -> None:
    """Tell the heartbeat of this process, if it has one, and :data:`listeners` which phase begins."""
    if _current is not None:
        _current.note(phase, step)
    else:
        _tell(phase)


def _tell(phase: str) -> None:
    for listen in listeners:
        listen(phase)
