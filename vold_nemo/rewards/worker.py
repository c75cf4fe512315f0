"""A verifier's own process, started by ``pool.py``: reads one comparison a line, writes one verdict a line.

It cannot outlive the trainer: the kernel kills it when its parent dies, whatever it is computing.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from dataclasses import astuple

import psutil

from vold_nemo.config import ConfigError
from vold_nemo.rewards.registry import resolve
from vold_nemo.rewards.verdict import Verdict

MEMORY = 4 << 30  # bytes a verifier may allocate: beyond it the answer is wrong (MemoryError)
RETIRE = 1 << 30  # resident bytes after which a worker asks to be replaced: SymPy's caches grow
PR_SET_PDEATHSIG = 1


def _bind_to(parent: int, cores: str) -> None:
    """Die with ``parent``, by SIGKILL from the kernel; leave all signals meant for the trainer to the trainer."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl: the signal will never come
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if cores:
        with contextlib.suppress(OSError):  # a cgroup of its own keeps each rank to its cores: these, then
            os.sched_setaffinity(0, map(int, cores.split(",")))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _judge(line: bytes) -> Verdict:
    try:
        name, text, truth = json.loads(line)
        return resolve(name).compute(text, truth)
    except (Exception, RecursionError, MemoryError) as error:  # whatever SymPy or a user's function raises
        return Verdict(0.0, None, f"error: {type(error).__name__}: {str(error)[:200]}", "error")


def main() -> None:
    _bind_to(int(sys.argv[1]), sys.argv[2])
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a verifier that prints must not write into the replies
    for name in sys.argv[3:]:
        with contextlib.suppress(ConfigError):  # an import that fails: every answer says so
            warm_up = resolve(name).warm_up
            if warm_up is not None:
                warm_up()
    process = psutil.Process()
    replies.write(b'"ready"\n')
    replies.flush()
    for line in sys.stdin.buffer:
        verdict = _judge(line)
        full = process.memory_info().rss > RETIRE  # not ru_maxrss: a child inherits the trainer's through vfork
        replies.write(json.dumps([*astuple(verdict), full]).encode("ascii") + b"\n")
        replies.flush()


if __name__ == "__main__":
    main()
