"""What the system allows a rank: open files, locked memory, processes, stack; raised as far as it may be.

A soft limit is raised to what is needed, at most to the hard one, which only an administrator raises.  Slurm hands down those
of slurmd (``LimitNOFILE=``, ``LimitMEMLOCK=``, ``LimitNPROC=`` of its unit) or of the shell that submitted
(``PropagateResourceLimits``).  No torch.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")  # cgroup 2 puts a container's own group here
THREADS_OF_RANK = 512  # supposed: of torch's pools, NCCL's proxies, gloo, the verifier's processes and vLLM
MEMORY_LOCK = resource.RLIMIT_MEMLOCK
STACK = 8 << 20  # bytes: what compilers and recursion in libraries suppose


@dataclass(frozen=True)
class Limit:
    """One limit against what is needed; infinity where there is none."""

    topic: str
    what: int  # resource.RLIMIT_*
    need: float
    ask: str  # for where the hard limit is too low
    follows: str  # what happens then

    @property
    def now(self) -> tuple[float, float]:
        """(soft, hard)."""
        soft, hard = resource.getrlimit(self.what)
        return _number(soft), _number(hard)

    def raise_it(self) -> None:
        """As far as it is needed and allowed."""
        soft, hard = self.now
        if soft < self.need:
            most = max(soft, min(self.need, hard))
            resource.setrlimit(self.what, (_value(most), _value(hard)))

    @property
    def short(self) -> bool:
        """Whether even the hard limit is too low."""
        return self.now[1] < self.need

    def __str__(self) -> str:
        return f"{self.topic}: {_said(self.now[0])} allowed, {_said(self.now[1])} at most, {_said(self.need)} needed"


def files_of_rank(world: int) -> int:
    """Open files that a rank of ``world`` may come to: as many as rank 0, whom all others meet.

    It serves the rendezvous (two connections a rank: torch's, and that of NCCL's watchdog), and checkpoints' plans are
    gathered to it, over the default group and over the writing thread's.  Beside these stand CUDA's and NCCL's own, and files.
    """
    return 4 * world + 512


def limits(world: int, on_node: int) -> list[Limit]:
    """What ``on_node`` ranks of a world of ``world`` need on this node."""
    return [
        Limit("open files", resource.RLIMIT_NOFILE, files_of_rank(world), "LimitNOFILE of slurmd, ulimit -Hn",
              "connections will be refused"),
        # ibv_reg_mr counts what it pins against this limit; cudaHostRegister, which pins our slabs, does not everywhere.
        Limit("locked memory", MEMORY_LOCK, float("inf"), "LimitMEMLOCK=infinity of slurmd, and "
              "PropagateResourceLimitsExcept=MEMLOCK in slurm.conf", "InfiniBand cannot register buffers (ibv_reg_mr, "
              "ibv_create_cq: Cannot allocate memory), and memory that leaves the device may not be pinned: slower copies"),
        Limit("processes", resource.RLIMIT_NPROC, THREADS_OF_RANK * on_node, "LimitNPROC of slurmd, ulimit -Hu",
              "threads cannot start (Resource temporarily unavailable)"),
        Limit("stack", resource.RLIMIT_STACK, STACK, "LimitSTACK of slurmd, ulimit -Hs", "deep recursion in a library crashes"),
        Limit("address space", resource.RLIMIT_AS, float("inf"), "no ulimit -Hv, VSizeFactor=0 in slurm.conf",
              "CUDA reserves more addresses than there is memory, and fails"),
    ]  # fmt: skip


def raise_limits(world: int, on_node: int) -> list[Limit]:
    """Raise what this process may; those whose hard limit is too low."""
    found = limits(world, on_node)
    for limit in found:
        limit.raise_it()
    return [limit for limit in found if limit.short]


def raise_file_limit(world: int) -> None:
    """Take what the hard limit of open files allows, as far as a rank of ``world`` needs it."""
    limits(world, 1)[0].raise_it()


def warnings(short: list[Limit], adapters: bool) -> Iterator[str]:
    """What a node says of its hard limits; locked memory only where there are ``adapters`` that pin it."""
    for limit in short:
        if limit.what != MEMORY_LOCK or adapters:
            yield f"{limit}; {limit.follows}: ask for more ({limit.ask})"


def tasks_of_group(folder: Path = GROUP) -> int | None:
    """Processes and threads that the control group at ``folder`` may have; None where nothing limits them."""
    try:
        said = (folder / "pids.max").read_text().strip()
    except OSError:
        return None
    return int(said) if said.isdigit() else None


def core_dumps(pattern: Path = Path("/proc/sys/kernel/core_pattern")) -> str | None:
    """What an abort would write, where it would be a file beside the job as large as the rank; None where it is not."""
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        to = pattern.read_text().strip()
    except OSError:
        return None
    if soft == 0 or to.startswith("|"):
        return None
    return f"a rank that aborts leaves its memory as {to} (up to {_said(_number(soft))} bytes): ulimit -c 0 in launch.setup"


def _number(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def _value(limit: float) -> int:
    return resource.RLIM_INFINITY if limit == float("inf") else int(limit)


def _said(limit: float) -> str:
    return "any number" if limit == float("inf") else f"{limit:,.0f}"
