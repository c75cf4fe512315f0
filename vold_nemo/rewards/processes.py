"""What a worker's processes use, seen from outside: processor time, memory, whether they wait or want a core.

On Linux from /proc, in tens of microseconds; elsewhere by psutil.  A process that is gone uses nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

_LINUX = sys.platform == "linux"
_TICK = os.sysconf("SC_CLK_TCK") if _LINUX else 100
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """Of a process and all that descend from it.

    ``seconds``: processor time, with that of children that ended and were waited for; ``bytes``: in memory, shared pages
    counted once; ``awake``: a thread runs, wants a core, or waits for a disk.
    """

    processes: int
    seconds: float
    bytes: int
    awake: bool


def clock(pid: int) -> float:
    """Processor time of all threads of ``pid``, without its children, in seconds; 0 if it is gone."""
    try:
        if _LINUX:
            return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
        import psutil

        return sum(psutil.Process(pid).cpu_times()[:2])
    except Exception:
        return 0.0


def children(pid: int) -> list[int]:
    try:
        if _LINUX:
            found: list[int] = []
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
            return found
    except FileNotFoundError:
        if os.path.exists("/proc/self/task") and not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            return _psutil_children(pid)  # a kernel without CONFIG_PROC_CHILDREN
        return []
    except OSError:
        return []
    return _psutil_children(pid)


def _psutil_children(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def descendants(pid: int, most: int = 4096) -> Iterator[int]:
    """Those of ``pid``, parents before their children, up to ``most``."""
    open_, count = [pid], 0
    while open_ and count < most:
        for child in children(open_.pop()):
            count += 1
            open_.append(child)
            yield child


def look(pid: int, most: int) -> Usage:
    """Usage of ``pid`` and its descendants; where they are more than ``most``, they are not all looked at."""
    seen = [pid, *descendants(pid, most + 1)]
    usages = [_look_linux(one) if _LINUX else _look_elsewhere(one) for one in seen]
    resident = sum(usage.bytes for usage in usages)
    return Usage(len(seen), sum(u.seconds for u in usages), resident, any(u.awake for u in usages))


def proportional(pid: int, most: int) -> int:
    """Bytes in memory of the same processes, each shared page divided among those that share it; takes milliseconds."""
    total = 0
    for one in (pid, *descendants(pid, most + 1)):
        try:
            with open(f"/proc/{one}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) << 10 for line in file if line.startswith("Pss:"))
        except OSError:
            continue
    return total


def _look_linux(pid: int) -> Usage:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        with open(f"/proc/{pid}/statm") as file:
            pages = int(file.read().split()[1])
        awake = fields[0] in "RD"
        if not awake:
            awake = any(_state(pid, thread) in "RD" for thread in os.listdir(f"/proc/{pid}/task"))
    except (OSError, IndexError, ValueError):
        return Usage(1, 0.0, 0, False)
    return Usage(1, sum(map(int, fields[11:15])) / _TICK, pages * _PAGE, awake)


def _state(pid: int, thread: str) -> str:
    try:
        with open(f"/proc/{pid}/task/{thread}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"


def _look_elsewhere(pid: int) -> Usage:
    import psutil

    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        seconds = sum(times[:4])
        return Usage(1, seconds, process.memory_info().rss, process.status() in ("running", "disk-sleep", "waking"))
    except psutil.Error:
        return Usage(1, 0.0, 0, False)
