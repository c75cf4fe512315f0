"""What started this process, and what its exit code says.  No torch.

torchrun's variables come first, then those of a Slurm job step; without either the process is alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from vold_nemo.config.errors import ConfigError

CONFIGURATION_ERROR = 2  # configuration or input: one message with key, value, what is allowed, how to mend
STOPPED_BY_SIGNAL = 85  # with a checkpoint written: submit again to go on
STUCK = 86  # a rank hung (models/heartbeat.py)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@dataclass(frozen=True)
class Launch:
    """What the launcher says about this process."""

    rank: int
    world: int
    local_rank: int
    host: str | None  # of rank 0; None = started by hand
    port: int

    @property
    def by_launcher(self) -> bool:
        return self.host is not None


def launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Read torchrun's variables, else srun's (one task per GPU), else be alone.

    :raises ConfigError: if a variable is missing or not a number.
    """
    env = os.environ if environment is None else environment

    def number(key: str) -> int:
        try:
            return int(env[key])
        except (KeyError, ValueError):
            raise ConfigError(key, env.get(key), "an integer", "start with torchrun or with srun") from None

    if "RANK" in env and "WORLD_SIZE" in env:
        local = number("LOCAL_RANK") if "LOCAL_RANK" in env else 0
        port = number("MASTER_PORT") if "MASTER_PORT" in env else 29500
        return Launch(number("RANK"), number("WORLD_SIZE"), local, env.get("MASTER_ADDR", "127.0.0.1"), port)
    # In a batch script itself SLURM_* names the whole job; only a step (srun) has a step id and tasks of its own.
    if "SLURM_PROCID" in env and "SLURM_STEP_NODELIST" in env and env.get("SLURM_STEP_ID", "").isdigit():
        host = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
        # One port per job step, the same on every rank without asking anybody.
        port = 20000 + (number("SLURM_JOB_ID") * 7 + number("SLURM_STEP_ID")) % 20000
        if "MASTER_PORT" in env:
            port = number("MASTER_PORT")
        return Launch(number("SLURM_PROCID"), number("SLURM_STEP_NUM_TASKS"), number("SLURM_LOCALID"), host, port)
    return Launch(0, 1, 0, None, 0)


def nodes(environment: Mapping[str, str] | None = None) -> int:
    """Nodes that the ranks of this launch lie on, as torchrun or srun say; 1 where neither does."""
    env = os.environ if environment is None else environment
    said = env.get("GROUP_WORLD_SIZE" if "RANK" in env else "SLURM_STEP_NUM_NODES", "")
    return int(said) if said.isdigit() else 1


def ranks_on_node(environment: Mapping[str, str] | None = None) -> int:
    """The most ranks that a node has: ``LOCAL_WORLD_SIZE``, or the largest of ``SLURM_STEP_TASKS_PER_NODE`` (``4(x2),1``)."""
    env = os.environ if environment is None else environment
    said = env.get("LOCAL_WORLD_SIZE" if "RANK" in env else "SLURM_STEP_TASKS_PER_NODE", "")
    return max((int(number) for number in re.findall(r"(?:^|,)(\d+)", said)), default=1)


def first_host(nodes: str) -> str:
    """First host of a Slurm node list: ``gpu[003-006,9],x1`` -> ``gpu003``."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    if not match:
        raise ConfigError("SLURM_STEP_NODELIST", nodes, "a Slurm node list", "start with srun or torchrun")
    return match[1] + (match[2] or "") + (match[3] or "")


def launched_world() -> int | None:
    """Ranks of the job step that this process belongs to; None if it was started by hand."""
    here = launch()
    return here.world if here.by_launcher else None


def stands_alone(verb: str) -> bool:
    """Whether this process is to do ``verb``, which is one process; of several tasks the first is, and knows no others then.

    They would write over each other, or wait for each other without end.  A launcher that cannot be understood is left to
    those who need it.
    """
    try:
        here = launch()
    except ConfigError:
        return True
    if here.world > 1 and here.rank == 0:
        print(f"note: {verb} is one process: task 0 of {here.world} does it, the others leave", file=sys.stderr, flush=True)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"):
            os.environ.pop(name, None)
    return here.rank == 0


def is_first_rank() -> bool:
    """Whether this process speaks for all; so does one whose launcher cannot be understood."""
    try:
        return launch().rank == 0
    except ConfigError:
        return True
