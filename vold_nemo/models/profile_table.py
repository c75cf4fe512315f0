"""Seconds by phase out of what torch's profiler saw: operators on the host, kernels on the device."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

PHASE = "phase: "  # before a phase's name in the trace
SHOWN = 5  # operators of a phase
_US = 1e-6


@dataclass
class Row:
    """One phase, over all steps that were looked at; seconds."""

    times: int = 0
    wall: float = 0.0
    operators: Counter[str] = field(default_factory=Counter)  # own seconds on the host, by name, on all threads
    calls: Counter[str] = field(default_factory=Counter)
    of_main: float = 0.0  # of operators, on the thread that runs the loop
    kernels: Counter[str] = field(default_factory=Counter)  # seconds on the device, by name
    launches: int = 0
    busy: float = 0.0  # the device, with one kernel or several
    waits: int = 0  # the host for the device
    waited: float = 0.0

    @property
    def rest(self) -> float:
        """Of the loop's thread, outside of operators: Python, waiting for other threads and processes, files."""
        return max(0.0, self.wall - self.of_main)


def rows_of(events: Iterable[Any]) -> dict[str, Row]:
    """Phases in the order in which they first came.

    ``events``: of ``torch.profiler.profile.events()``.  An operator counts to the phase in which it began, a kernel to that in
    which it ran: the phases' clock waits for the device where each ends.
    """
    known = list(events)
    ranges = sorted(
        (one for one in known if one.name.startswith(PHASE) and _on_host(one)), key=lambda one: one.time_range.start
    )  # fmt: skip
    starts = [one.time_range.start for one in ranges]
    found: dict[str, Row] = {}
    for one in ranges:
        row = found.setdefault(one.name, Row())
        row.times += 1
        row.wall += one.time_range.elapsed_us() * _US
    running: dict[str, list[tuple[float, float]]] = {}
    for one in known:
        at = bisect_right(starts, one.time_range.start) - 1
        if at < 0 or one.name.startswith(PHASE) or one.time_range.start > ranges[at].time_range.end:
            continue
        row = found[ranges[at].name]
        if _on_host(one):
            own = one.self_cpu_time_total * _US
            row.operators[one.name] += own
            row.calls[one.name] += 1
            row.of_main += own if one.thread == ranges[at].thread else 0.0
            if one.name.startswith("cuda") and "Synchronize" in one.name:
                row.waits += 1
                row.waited += own
        elif not one.is_user_annotation:  # these are ranges of the host, drawn again over what they launched
            row.kernels[one.name] += one.time_range.elapsed_us() * _US
            row.launches += 1
            running.setdefault(ranges[at].name, []).append((one.time_range.start, one.time_range.end))
    for name, spans in running.items():
        found[name].busy = _covered(spans) * _US
    return {name.removeprefix(PHASE): row for name, row in found.items()}


def _on_host(event: Any) -> bool:
    return event.device_type == torch.autograd.DeviceType.CPU


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of ``spans``."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length


def text(events: Iterable[Any], *, title: str, steps: tuple[int, int]) -> str:
    """The table as a file holds it: seconds a step, and of each phase what takes most of it."""
    rows, count = rows_of(events), steps[1] - steps[0] + 1
    return "\n".join(_lines(rows, f"{title}, steps {steps[0]} to {steps[1]}, torch {torch.__version__}", count)) + "\n"


def _lines(rows: dict[str, Row], title: str, count: int) -> Iterator[str]:
    device = any(row.launches for row in rows.values())
    yield f"{title}: seconds a step.  A phase lasts until the next begins; the profiler itself slows short operators down."
    yield ""
    head = f"{'phase':<16}{'times':>7}{'wall':>10}{'operators':>11}{'the rest':>10}"
    yield head + (f"{'device':>10}{'busy':>7}{'launches':>10}{'waits':>7}{'waited':>9}" if device else "")
    for name, row in rows.items():
        line = f"{name:<16}{row.times:>7}{row.wall / count:>10.4f}{row.of_main / count:>11.4f}{row.rest / count:>10.4f}"
        if device:
            share = row.busy / row.wall if row.wall else 0.0
            line += f"{sum(row.kernels.values()) / count:>10.4f}{share:>7.0%}{row.launches / count:>10,.0f}"
            line += f"{row.waits / count:>7,.0f}{row.waited / count:>9.4f}"
        yield line
    whole = sum(row.wall for row in rows.values())
    yield f"{'all':<16}{'':>7}{whole / count:>10.4f}"
    yield ""
    yield "operators: of the thread that runs the loop; the rest: Python, other threads and processes, files" + (
        "; device: kernels one by one; busy: share of the wall with at least one" if device else ""
    )
    for name, row in rows.items():
        for what, each in (("on the device", row.kernels), ("", row.operators)):
            most = [(one, seconds) for one, seconds in each.most_common(SHOWN) if seconds >= 0.01 * row.wall]
            if most:
                yield ""
                yield f"{name}{', ' if what else ''}{what}"
            for one, seconds in most:
                calls = f"{row.calls[one] / count:>10,.0f} calls" if not what else ""
                yield f"  {seconds / count:>9.4f} {seconds / row.wall:>5.0%}{calls}  {one[:100]}"
