"""Where the time of some steps goes (``profile.*``): the phases of ``heartbeat.note`` as ranges that a profiler shows.

    <run>/profile/steps_10-12/rank_3.json.gz    every operator and kernel, as https://ui.perfetto.dev shows it
    <run>/profile/steps_10-12/rank_3.txt        seconds by phase, and the operators that take most (models/profile_table.py)

A phase lasts until the next begins, as in a rehearsal.  On a GPU the ranges are NVTX's, too, in every step of every run: they
cost less than a microsecond and are what ``nsys`` shows its kernels under.  Nothing here computes or draws a random number.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from vold_nemo.config.sections.training import ProfileConfig
from vold_nemo.megatron import device as devices
from vold_nemo.models import heartbeat
from vold_nemo.models.profile_table import PHASE, text
from vold_nemo.planning.profiling import folder_in

logger = logging.getLogger(__name__)


class Profiler:
    """``with Profiler(...) as profiler:`` around a loop that says :meth:`go_on` once, and :meth:`begin` and :meth:`end` of each
    step; the last thing that the first of the ranks does is to say what there is to open.

    Args:
        run: the run's folder, shared by all ranks.
    """

    def __init__(self, asked: ProfileConfig, run: Path, layout):
        self.asked, self.layout = asked, layout
        chosen = asked.steps and (not asked.ranks or layout.rank in asked.ranks)
        self.first, self.last = asked.steps if chosen else (0, 0)
        self.folder = folder_in(run, asked.steps) if chosen else run
        self.active = False
        self.looked_at: tuple[int, int] | None = None  # the first and last step, once it is over
        self._step = 0
        self._marks = layout.device.type == "cuda"
        self._marked = False
        self._range: torch.profiler.record_function | None = None
        self._torch: torch.profiler.profile | None = None

    def __enter__(self) -> Profiler:
        heartbeat.listeners.append(self._phase)
        return self

    def __exit__(self, *exc) -> None:
        heartbeat.listeners.remove(self._phase)
        if self.active:  # the loop ended early
            self._stop()
        self._close()
        if self.looked_at is not None and self.layout.rank == min(self.asked.ranks, default=0):
            print(self.said(), flush=True)

    def go_on(self, done: int) -> None:
        """The run has ``done`` steps behind it: those among them are past."""
        if self.last and self.last <= done and self.layout.rank == 0:
            logger.warning("profile.steps=%s are past: the run goes on with step %d", self.asked.steps, done + 1)
        self.first = max(self.first, done + 1)

    def begin(self, step: int) -> None:
        """Step ``step``, from 1, is about to begin."""
        self._step = step
        if not self.first <= step <= self.last or self.active:
            return
        self.active = True
        if self.asked.tool == "nsys":
            devices.synchronize(self.layout.device)
            devices.start_capture()
            return
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.layout.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._torch = torch.profiler.profile(activities=kinds)
        self._torch.start()

    def end(self, step: int) -> None:
        """Step ``step`` is over, its checkpoint included."""
        if self.active and step >= self.last:
            self._stop()

    def said(self) -> str:
        """What there is to open, and how."""
        first, last = self.looked_at or (0, 0)
        steps = f"step {last}" if first == last else f"steps {first} to {last}"
        if self.asked.tool == "nsys":
            return (
                f"profile of {steps}: a report of each rank, {self.folder}/rank_N.nsys-rep unless --output said otherwise; "
                "nsys-ui opens it, and nsys stats --report nvtx_sum FILE prints seconds by phase"
            )
        rank = self.layout.rank
        return (
            f"profile of {steps}: {self.folder}/rank_{rank}.txt has seconds by phase; rank_{rank}.json.gz beside it opens in "
            "https://ui.perfetto.dev, which keeps it in the browser"
        )

    # -- ranges ------------------------------------------------------------------------------------------------------------

    def _phase(self, phase: str) -> None:
        self._close()
        if self._marks:
            devices.open_range(phase)
            self._marked = True
        if self._torch is not None:
            self._range = torch.profiler.record_function(PHASE + phase)
            self._range.__enter__()

    def _close(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        if self._marked:
            devices.close_range()
            self._marked = False

    # -- the end -----------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        devices.synchronize(self.layout.device)
        self._close()
        self.active, self.looked_at = False, (self.first, self._step)
        if self._torch is None:
            devices.stop_capture()
            return
        done, self._torch = self._torch, None
        done.stop()
        heartbeat.note("profile")  # a trace may be long
        rank, world = self.layout.rank, self.layout.world
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            done.export_chrome_trace(str(self.folder / f"rank_{rank}.json.gz"))
            table = text(done.events(), title=f"rank {rank} of {world}", steps=self.looked_at)
            (self.folder / f"rank_{rank}.txt").write_text(table)
        except OSError as error:  # no part of the run
            self.looked_at = None
            logger.error("no profile: %s", error)
