"""Processor seconds and resident memory of this process; it needs no library, so that every environment can import it."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path


def seconds() -> float:
    """Of this process and of its children, those that run (in ticks of the kernel's clock) and those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for child in Path("/proc/self/task").glob("*/children"):
        for pid in child.read_text().split():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            ticks += sum(map(int, fields[11:15]))
    return time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def resident(name: str = "VmRSS") -> int:
    """Bytes; ``VmHWM``: the most so far."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


class Record:
    """Steps of a training run: seconds from the end of one step to the end of the next, and what part of them is whose."""

    def __init__(self):
        self.imported = resident()
        self.steps: list[dict] = []
        self.phases: dict[str, float] = {}
        self.began = seconds()

    def watch(self, owner, name: str, phase: str) -> None:
        """Add the seconds of each call of ``owner.name`` to ``phase``, less those of calls inside it that are watched, too."""
        inner = getattr(owner, name)

        def timed(*arguments, **options):
            began, before = seconds(), sum(self.phases.values())
            try:
                return inner(*arguments, **options)
            finally:
                within = sum(self.phases.values()) - before
                self.phases[phase] = self.phases.get(phase, 0.0) + seconds() - began - within

        setattr(owner, name, timed)

    def step(self, tokens: float, reward: float | None) -> None:
        now = seconds()
        took, phases = now - self.began, self.phases
        phases = phases | {"rest": took - sum(phases.values())}
        self.steps.append({"seconds": took, "phases": phases, "tokens": tokens, "reward": reward})
        self.phases, self.began = {}, seconds()

    def write(self, path: str, versions: str) -> None:
        said = {"imported": self.imported, "peak": resident("VmHWM"), "steps": self.steps, "versions": versions}
        Path(path).write_text(json.dumps(said))
