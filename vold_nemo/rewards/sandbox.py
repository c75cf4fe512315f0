"""A verifier's process, shut in: no network, a view of the files that cannot be changed, nothing left over when it ends.

Two ways lead to each, and both are gone where the kernel allows it to an ordinary user:

    what                 first                                   else
    no network           a network namespace without a network   a filter of system calls: no socket (both, where both can be)
    files read-only      a mount namespace, all of it read-only  Landlock (both, where both can be)
    nothing left over    a process namespace                     the keeper (worker.py), whom Landlock lets nobody inside kill

Containers and some clusters forbid user namespaces, older kernels have no Landlock, other systems have neither: what is
missing is said (the log of a run, recipes/doctor.py), and refused where ``reward.isolation=required``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from vold_nemo.rewards import kernel

MEMORY = 4 << 30  # bytes a verifier may allocate: beyond it the answer is wrong (MemoryError)
RETIRE = 1 << 30  # resident bytes after which a worker asks to be replaced: SymPy's caches grow
# The pool's signal to a keeper, and the kernel's when the trainer dies: one that no launcher and no terminal sends.
END = signal.SIGRTMIN + 7 if sys.platform == "linux" else signal.SIGTERM
SCRATCH = 512 << 20  # bytes of the folder for temporary files, TMPDIR
SHARED = 256 << 20  # of /dev/shm
LARGEST_FILE = 1 << 30
MOST_PROCESSES = 64  # with threads, of a worker
ADDRESSES = 16 << 30  # bytes that a worker may map beyond what it mapped when it was ready, shared memory included
_READS_ANY_FILE = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@dataclass(frozen=True)
class Held:
    """By what each is held: in words, empty where nothing holds it."""

    network: str = ""
    files: str = ""
    processes: str = ""

    def missing(self) -> str:
        """What a verifier could do here, in words; empty if nothing of it."""
        open_doors = {
            "use the network": self.network, "change files": self.files, "end its keeper": self.processes,
        }  # fmt: skip
        able = [what for what, held in open_doors.items() if not held]
        return " and ".join([", ".join(able[:-1]), able[-1]] if len(able) > 1 else able)

    def describe(self) -> str:
        said = {"no network": self.network, "files read-only": self.files, "nothing left over": self.processes}
        return "; ".join(f"{what} ({held})" for what, held in said.items() if held) or "nothing is held"


def move_out() -> bool:
    """The keeper's half, before it forks: its child will be the first process of a namespace, and end with all the others.

    Root owns no rights over other users' files in a namespace of its own, so it first looks whether what is imported from
    can still be read there.
    """
    return (os.geteuid() != 0 or _in_a_child(_reads_all_the_same)) and _leave()


def _leave() -> bool:
    user, group = os.geteuid(), os.getegid()
    if not kernel.leave(kernel.NEW_USER | kernel.NEW_PID | kernel.NEW_NET | kernel.NEW_IPC):
        return False
    kernel.keep_names(user, group)
    return True


def _in_a_child(question) -> bool:
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if question() else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _reads_all_the_same() -> bool:
    needed = [path for path in (*sys.path, sys.executable, os.getcwd()) if path and os.access(path, os.R_OK)]
    return _leave() and all(os.access(path, os.R_OK) for path in needed)


def shut_in(scratch: str, apart: bool) -> Held:
    """The worker's half.  ``apart``: whether :func:`move_out` was granted to its keeper; ``scratch`` stays writable."""
    user = os.geteuid()
    mounts = apart and kernel.read_only_mounts({scratch: SCRATCH, "/dev/shm": SHARED})
    ruled = kernel.write_only_below((scratch, "/dev/shm") if mounts else (scratch,))
    kernel.give_up_capabilities(0 if apart or user != 0 else _READS_ANY_FILE)
    filtered = kernel.deny_calls()
    if apart and _new_kernel():  # in a namespace of its own the limit counts this worker's processes alone
        resource.setrlimit(resource.RLIMIT_NPROC, (MOST_PROCESSES, MOST_PROCESSES))
    kept = "its keeper, out of its reach" if ruled and kernel.landlock_version() >= 6 else ""
    return Held(
        network=" and ".join(["a network namespace"] * apart + ["a filter of system calls"] * filtered),
        files=" and ".join(["read-only mounts"] * mounts + [f"Landlock {kernel.landlock_version()}"] * ruled),
        processes="a process namespace" if apart else kept,
    )


def _new_kernel() -> bool:
    """From Linux 5.14 on, processes are counted by namespace; before it, all of the user's would be."""
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (5, 14)


def bound_memory(private: int) -> None:
    """At most ``private`` bytes of its own, as much as it has and :data:`ADDRESSES` more with what is shared."""
    resource.setrlimit(resource.RLIMIT_DATA, (private, private))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def bound_addresses() -> None:
    """Once all is imported: libraries map much more than they use."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES, mapped + ADDRESSES))


def probe() -> Held:
    """What would be held here: tried in a process that ends at once."""
    import tempfile

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            apart = move_out()
            with tempfile.TemporaryDirectory() as scratch:
                _tell(writer, apart, scratch)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return Held(**json.loads(said)) if said else Held()


def _tell(writer: int, apart: bool, scratch: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(asdict(shut_in(scratch, apart))).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def environment(names: Sequence[str]) -> dict[str, str]:
    """Variables of this process that a verifier may see: what Python and the C library need, and ``names``."""
    return {name: value for name, value in os.environ.items() if name in _KNOWN or name.startswith("LC_") or name in names}


_KNOWN = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV",
    "CONDA_PREFIX", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE",
}  # fmt: skip
