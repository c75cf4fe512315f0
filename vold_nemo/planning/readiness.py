"""What this node lacks for a run that means to use its GPUs: driver, torch's CUDA, GPUs for every rank, packages that fit.

Asked by every recipe that computes, after its configuration was found to be good and before torch or NeMo is imported, so
that a job that cannot work ends in its first second (``command/recipe.py``).  Plans, rehearsals and dry runs do not ask: they
are made on machines without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from vold_nemo.config import Config, ConfigError, driver, installed
from vold_nemo.config.errors import NodeError
from vold_nemo.config.launcher import launch
from vold_nemo.planning import profiling

BUILD = "slurm/build_gpu.sh makes an environment for GPUs"
TO_CPU = "device=cpu says that a CPU is meant"


def findings(config: Config, verb: str, environment: Mapping[str, str] | None = None) -> list[ConfigError]:
    """Every obstacle on this node; where no GPU is meant, there is none but a profiler that needs one."""
    env = os.environ if environment is None else environment
    gpus = means_gpus(config, verb, env)
    found = list(profiling.of_node(config, verb, gpus, env))
    return [*found, *_gpus(config, env), *_packages(config, verb)] if gpus else found


def means_gpus(config: Config, verb: str, environment: Mapping[str, str]) -> bool:
    """``device=cuda`` does; ``auto`` does in a Slurm job that was given some, and where a driver meets a torch built for CUDA
    and nobody has hidden the GPUs."""
    if config.device == "cpu" or (verb == "generate_traces" and config.traces.engine == "dataset"):
        return False
    if config.device == "cuda" or allotted(environment):
        return True
    return driver.kernel_module() is not None and installed.torch_cuda() is not None and not driver.hidden(environment)


def allotted(environment: Mapping[str, str]) -> int:
    """GPUs that Slurm gave this job on this node."""
    for key in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if environment.get(key):
            return len(environment[key].split(","))
    count = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(count) if count.isdigit() else 0


def _gpus(config: Config, env: Mapping[str, str]) -> Iterator[ConfigError]:
    """The first obstacle between torch and the GPUs: what lies behind it cannot be seen."""
    torch, cuda = installed.version("torch"), installed.torch_cuda()
    if torch is not None and cuda is None:
        asked = config.device if config.device == "cuda" else f"{config.device}, in a job that was given GPUs"
        allowed = f"a torch that was built for CUDA: {torch} is one for the CPU"
        yield NodeError("device", asked, allowed, f"{BUILD}; {TO_CPU}")
        return
    module, newest = driver.kernel_module(), driver.newest_cuda()
    if newest is None and module is None:
        mend = f"in Slurm ask for GPUs (cluster.launch.gres), in a container pass them in (apptainer --nv); {TO_CPU}"
        yield NodeError("NVIDIA driver", "none", "a node with GPUs", mend)
        return
    if newest is None:
        mend = "start the container with them (apptainer --nv, docker --gpus all), or add their folder to LD_LIBRARY_PATH"
        yield NodeError("NVIDIA driver", f"{module}, without {driver.CUDA}", "its libraries, too", mend)
        return
    if cuda is not None and newest[0] < cuda[0]:
        need = driver.OLDEST.get(cuda[0])
        older = "an environment for CUDA 12.9 (CUDA=12.9 slurm/build_gpu.sh), " if newest[0] == 12 else ""
        mend = f"take a node with a newer driver, {older}or NVIDIA's forward-compatibility package (cuda-compat)"
        what = f"{module or 'unknown'}, for CUDA {newest[0]}.{newest[1]}"
        allowed = f"{need} or newer: torch {torch} was built for CUDA {cuda[0]}.{cuda[1]}"
        yield NodeError("NVIDIA driver", what, allowed, mend)
        return
    yield from _enough(env)


def _enough(env: Mapping[str, str]) -> Iterator[ConfigError]:
    """A GPU for every rank of this node.  Under srun each task may have been given its own one: then it sees one alone."""
    there = driver.gpus()
    if there is None:
        return
    seen, named = driver.visible(there, env), env.get("CUDA_VISIBLE_DEVICES")
    if seen == 0:
        what = f"0 of {there}, CUDA_VISIBLE_DEVICES={named}" if named is not None else "0"
        mend = f"in Slurm ask for GPUs (cluster.launch.gres), else unset CUDA_VISIBLE_DEVICES; {TO_CPU}"
        yield NodeError("GPUs that this process sees", what, "at least one", mend)
        return
    ranks = ranks_here(env)
    have = allotted(env) if seen == 1 and "LOCAL_WORLD_SIZE" not in env else seen
    if have and ranks > have:
        mend = f"start {have} ranks on a node (--ntasks-per-node, --nproc-per-node), or ask for more GPUs: --gres=gpu:{ranks}"
        yield NodeError("ranks on a node", ranks, f"up to {have}, a GPU each", mend)


def ranks_here(env: Mapping[str, str]) -> int:
    """Ranks that the launcher started on this node, as far as it says."""
    if env.get("LOCAL_WORLD_SIZE", "").isdigit():  # torchrun
        return int(env["LOCAL_WORLD_SIZE"])
    each = env.get("SLURM_STEP_TASKS_PER_NODE", "")  # "4(x2)", "4,3"; the same on every node, or this one's is not known
    if each and "," not in each and each.split("(")[0].isdigit():
        return int(each.split("(")[0])
    return launch(env).local_rank + 1


def _packages(config: Config, verb: str) -> Iterator[ConfigError]:
    """Compiled packages that are not of one piece with this torch."""
    trouble = installed.engine_trouble()
    if trouble is not None:
        yield NodeError("Transformer Engine", trouble[0], "one version of its packages, for torch's CUDA", trouble[1])
    stale = installed.compiled_for_another_torch()
    if stale is not None:
        mend = "run slurm/build_gpu.sh on this environment again, or install that torch"
        yield NodeError("compiled packages", stale, "the torch that they were compiled for", mend)
    if uses_vllm(config, verb):
        unmet = installed.unmet("vllm", "torch")
        if unmet:
            mend = f"{BUILD}, with the versions of constraints-gpu-*.txt"
            yield NodeError("vllm", f"{installed.version('vllm')} wants {unmet[0]}", "the torch it was compiled for", mend)


def uses_vllm(config: Config, verb: str) -> bool:
    engines = {"vold": config.rollout.engine, "generate_traces": config.traces.engine, "evaluate": config.evaluate.engine}
    return engines.get(verb) == "vllm"
