"""What ``profile.*`` asks for against the run and the node, and the line that starts a rank under Nsight Systems.  No torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.errors import NodeError
from vold_nemo.config.tree import value_at

# What nsys leaves in the environment of the process that it watches, some of it only once a session has begun.
_WATCHED = ("NSYS_PROFILING_SESSION_ID", "NVTX_INJECTION64_PATH", "CUDA_INJECTION64_PATH")
# The capture begins and ends where the run calls CUDA's profiler, and the run goes on behind it.
_NSYS = ("nsys", "profile", "--trace=cuda,nvtx,osrt", "--sample=none", "--cpuctxsw=none", "--capture-range=cudaProfilerApi",
         "--capture-range-end=stop", "--force-overwrite=true")  # fmt: skip


def folder_in(run: Path, steps: Sequence[int]) -> Path:
    """Where the files of a profile lie: ``<run>/profile/steps_10-12``."""
    return run / "profile" / f"steps_{steps[0]}-{steps[1]}"


def folder_of(config: Config, stage: str) -> Path:
    """:func:`folder_in` the run of ``stage``."""
    return folder_in(Path(config.outputs) / value_at(config, f"{stage}.run"), config.profile.steps)


def nsys_line(folder: Path, rank: str) -> str:
    """What stands before ``python`` on the command line of a rank; ``rank``: the launcher's variable that numbers ranks."""
    return " ".join((*_NSYS, f"--output={folder}/rank_%q{{{rank}}}"))


def of_run(config: Config, stages: tuple[str, ...], world: int, wrong: set[str]) -> Iterator[ConfigError]:
    """Steps and ranks that are none of any of ``stages``, on ``world`` ranks."""
    asked, key = config.profile, "profile.steps"
    if not asked.steps or not stages or {key, *(f"{stage}.steps" for stage in stages)} & wrong:
        return
    if len(asked.steps) != 2 or asked.steps[0] > asked.steps[1]:
        yield ConfigError(key, asked.steps, "[first, last], or []", "give two steps, the earlier one first: [10,12]")
        return
    most = {stage: value_at(config, f"{stage}.steps") for stage in stages}
    if asked.steps[1] > max(most.values()):
        allowed = "within " + " or ".join(f"the {steps} steps of {stage}" for stage, steps in most.items())
        yield ConfigError(key, asked.steps, allowed, "name earlier ones, or [] for none")
    outside = [rank for rank in asked.ranks if rank >= world]
    if outside and "profile.ranks" not in wrong:
        allowed = f"0 to {world - 1}, the ranks of the run"
        yield ConfigError("profile.ranks", asked.ranks, allowed, f"leave {', '.join(map(str, outside))} out")


def of_node(config: Config, verb: str, gpus: bool, environment: Mapping[str, str]) -> Iterator[ConfigError]:
    """Why ``profile.tool`` cannot look into ``verb`` here; ``gpus``: whether the run is to use any."""
    key, tool, mend = "profile.tool", config.profile.tool, "set profile.tool=torch"
    if not config.profile.steps or tool != "nsys" or verb not in ("sft", "vold"):
        return
    if not gpus:
        yield NodeError(key, tool, "torch: Nsight Systems begins where CUDA's profiler is called, and no GPU is used", mend)
    elif not any(environment.get(name) for name in _WATCHED):
        rank = "SLURM_PROCID" if "SLURM_PROCID" in environment and "RANK" not in environment else "RANK"
        started = "srun" if rank == "SLURM_PROCID" else "torchrun --no-python --nproc-per-node N"
        line = f"{started} {nsys_line(folder_of(config, verb), rank)} python recipes/{verb}.py ..."
        if shutil.which("nsys") is None:
            allowed = "torch; nsys where Nsight Systems is installed"
            mend = f"{mend}, or load it (module load nsight-systems, or CUDA's own) and start ranks under it: {line}"
        else:
            allowed = "torch; nsys in a rank that was started under it"
            mend = f"start ranks under it, as the scripts of recipes/chain.py do: {line}"
        yield NodeError(key, tool, allowed, mend)
