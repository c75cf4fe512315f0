"""A verifier's own process and the one that keeps it, started by ``pool.py``.

The *keeper* starts the worker, waits for it, and leaves nothing behind: whatever ends it (:data:`END` from the pool, the
trainer's death by any signal, the worker's own end), all processes that descend from it are killed.  In a process namespace
the kernel does that; elsewhere it adopts whoever loses its parent, and kills until nobody is left.

The *worker*, shut in by ``sandbox.py``, reads one comparison a line and answers each with one reply (``replies.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import astuple

from vold_nemo.config import ConfigError
from vold_nemo.rewards import kernel, processes, sandbox
from vold_nemo.rewards.registry import resolve
from vold_nemo.rewards.replies import packed
from vold_nemo.rewards.sandbox import END, MEMORY, RETIRE
from vold_nemo.rewards.verdict import Verdict

_SWEEP_SECONDS = 30.0


def _judge(name: str, text: str, truth: str) -> Verdict:
    try:
        return resolve(name).compute(text, truth)
    except (Exception, RecursionError, MemoryError) as error:  # whatever SymPy or a user's function raises
        return Verdict(0.0, None, f"error: {type(error).__name__}: {str(error)[:200]}", "error")


def _serve(names: list[str], apart: bool, isolated: bool) -> None:
    """The worker: import, say so, answer until nobody asks any more."""
    import _thread

    os.setpgrp()  # no session of its own: some kernels share out the cores by session
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, END):
        signal.signal(number, signal.SIG_IGN)
    kernel.signal_at_parents_death(signal.SIGKILL)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)  # not inherited by programs that a verifier runs
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # a verifier that reads finds nothing, one that prints does not write into the replies
    os.dup2(2, 1)
    sandbox.bound_memory(MEMORY)
    held = sandbox.shut_in(os.environ["TMPDIR"], apart) if isolated else sandbox.Held()
    for name in names:
        with contextlib.suppress(ConfigError):  # an import that fails: every answer says so
            warm_up = resolve(name).warm_up
            if warm_up is not None:
                warm_up()
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    sandbox.bound_addresses()
    _send(replies, packed(astuple(held), b""))
    threads = _thread._count()
    for line in requests:
        key, *asked = json.loads(line)
        verdict = _judge(*asked)
        # What an answer leaves running would work, print or end in another answer's time.
        left = _has_children() or _thread._count() > threads
        full = left or _resident() > RETIRE
        times = os.times()
        said = (*astuple(verdict), full, times.children_user + times.children_system)
        _send(replies, packed(said, bytes.fromhex(key)))


def _send(target: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


def _has_children() -> bool:
    """Whether any process descends from this one: orphans are its children, too."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _resident() -> int:
    """Not ru_maxrss: a child inherits the trainer's through vfork."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import psutil

        return psutil.Process().memory_info().rss


class _Ended(BaseException):
    pass


def _end(*_) -> None:
    signal.signal(END, signal.SIG_IGN)
    raise _Ended


def _sweep() -> None:
    """Kill all that descends from this process until nobody does."""
    end = time.monotonic() + _SWEEP_SECONDS
    while time.monotonic() < end:
        for pid in processes.descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _leave_as(status: int) -> None:
    """End as the worker did."""
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def main() -> None:
    parent, cores, isolated, *names = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the trainer
    signal.signal(END, _end)
    status = signal.SIGKILL
    try:
        kernel.signal_at_parents_death(END)
        kernel.adopt_orphans()
        if os.getppid() != int(parent):  # it died before that: the signal will never come
            return
        if cores:
            with contextlib.suppress(OSError):  # a cgroup of its own keeps each rank to its cores: these, then
                os.sched_setaffinity(0, map(int, cores.split(",")))
        apart = isolated == "isolated" and sandbox.move_out()
        kernel.signal_at_parents_death(END)  # a change of rights may have cleared it
        worker = os.fork()
        if worker == 0:
            try:
                _serve(names, apart, isolated == "isolated")
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitpid(worker, 0)[1]
    except _Ended:
        pass
    finally:
        with contextlib.suppress(_Ended):
            signal.signal(END, signal.SIG_IGN)
        _sweep()
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    _leave_as(status)


if __name__ == "__main__":
    main()
