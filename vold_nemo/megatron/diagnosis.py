"""What this node or allocation has: the findings of recipes/doctor.py, each with what follows from it.

Every probe stands alone: one that fails says so in its own line and the others go on.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.config import Config, ConfigError, driver
from vold_nemo.config.installed import compiled_for_another_torch, engine_trouble, version
from vold_nemo.megatron.architecture import Architecture

GOOD, NOTE, BAD = "ok", "note", "missing"


@dataclass(frozen=True)
class Finding:
    """``what`` was found, and, where it is not as it could be, what ``follows`` and how to mend it."""

    grade: str  # GOOD | NOTE | BAD
    topic: str
    what: str
    follows: str = ""

    def __str__(self) -> str:
        tail = f"\n{'':28}{self.follows}" if self.follows else ""
        return f"{self.grade:<8}{self.topic:<20}{self.what}{tail}"


def output_of(*command: str) -> str | None:
    """First line that a program prints; None if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def node() -> Finding:
    import psutil

    memory, cores = psutil.virtual_memory(), len(os.sched_getaffinity(0))
    what = f"{socket.gethostname()}: {cores} cores, {memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GiB free"
    return Finding(GOOD, "node", f"{what}, Python {platform.python_version()}, {platform.system()} {platform.release()}")


def gpus() -> list[Finding]:
    import torch

    found = chosen()
    if not torch.cuda.is_available():
        return [*found, _unseen(torch.__version__, torch.version.cuda)]
    for index in range(torch.cuda.device_count()):
        at = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        fp8 = (at.major, at.minor) >= (8, 9)
        what = f"{index}: {at.name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, compute {at.major}.{at.minor}"
        busy = free < 0.95 * total
        follows = "memory is in use by another process" if busy else ""
        found.append(Finding(NOTE if busy else GOOD, "GPU", f"{what}, {'FP8' if fp8 else 'no FP8: a bf16 teacher'}", follows))
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    found.append(Finding(GOOD, "CUDA", f"{torch.version.cuda}, driver {driver.kernel_module() or 'not told'}, NCCL {nccl}"))
    return found


def chosen() -> list[Finding]:
    """What ``CUDA_VISIBLE_DEVICES`` says that CUDA reads otherwise than it looks; a node without a driver only notes it."""
    why, named = driver.misread(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if why is None:
        return []
    grade = NOTE if driver.hidden() or driver.kernel_module() is None else BAD
    return [Finding(grade, "visible GPUs", f"CUDA_VISIBLE_DEVICES={named}: {why}", "name each once, 0,1,2, or unset it")]


def _unseen(torch_version: str, cuda: str | None) -> Finding:
    """Why torch sees no GPU."""
    module, newest = driver.kernel_module(), driver.newest_cuda()
    if module is None and newest is None:
        return Finding(NOTE, "GPU", "no NVIDIA driver", "the miniature runs on the CPU; in Slurm ask for --gres=gpu:N")
    name = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "a GPU"
    what = f"{name} with driver {module or 'unknown'} is here, but torch {torch_version} does not see it"
    if cuda is None:
        mend = "this torch is a CPU build: slurm/build_gpu.sh makes an environment for GPUs"
    elif newest is None:
        mend = f"{driver.CUDA} is missing: start the container with it (apptainer --nv, docker --gpus all)"
    elif newest[0] < int(cuda.split(".")[0]):
        need = f"a driver from {driver.OLDEST.get(int(cuda.split('.')[0]), 'a later date')} on, or a torch for an older CUDA"
        mend = f"the driver is for CUDA {newest[0]}.{newest[1]}, torch for {cuda}: take {need}"
    else:
        mend = f"torch is for CUDA {cuda}, which this driver runs: check CUDA_VISIBLE_DEVICES and the job's --gres"
    return Finding(BAD, "GPU", what, mend)


def libraries() -> list[Finding]:
    import torch

    found = [Finding(GOOD, "torch", torch.__version__)]
    for name in ("megatron-core", "nemo-toolkit", "transformers"):
        there = version(name)
        mend = "" if there else "make install"
        found.append(Finding(GOOD if there else BAD, name, there or "not installed", mend))
    optional = {
        "transformer-engine": "fused layers and FP8 need it: slurm/build_gpu.sh compiles it against the torch that is here",
        "vllm": "rollouts run on transformers' engine, which is slower: slurm/build_gpu.sh installs it",
    }
    grade = BAD if torch.cuda.is_available() else NOTE
    for name, mend in optional.items():
        there = version(name)
        if name == "transformer-engine" and engine_broken():  # told by packages.engine
            continue
        found.append(Finding(GOOD if there else grade, name, there or "not installed", "" if there else mend))
    return [*found, apex()]


def engine_broken() -> bool:
    """Whether what is here of Transformer Engine does not fit together, or this torch."""
    return engine_trouble() is not None or compiled_for_another_torch() is not None


def apex() -> Finding:
    """NVIDIA's apex is told from PyPI's package of that name by the kernels it compiles."""
    kernels = {"amp_C": "fused Adam", "fused_weight_gradient_mlp_cuda": "gradient-accumulation fusion"}
    present = [use for module, use in kernels.items() if importlib.util.find_spec(module) is not None]
    if present:
        return Finding(GOOD, "apex", f"NVIDIA's: {', '.join(present)}")
    if importlib.util.find_spec("apex") is not None:
        return Finding(BAD, "apex", "without NVIDIA's kernels", "PyPI's is another project: pip uninstall apex")
    return Finding(NOTE, "apex", "not installed", "torch's own Adam and no gradient fusion; WITH_APEX=1 slurm/build_gpu.sh")


def slurm() -> Finding:
    there = output_of("sinfo", "--version")
    if there is None and shutil.which("sinfo") is not None:
        return Finding(NOTE, "Slurm", "a client that finds no configuration", "set SLURM_CONF, or use a login node")
    if there is None:
        return Finding(NOTE, "Slurm", "no Slurm client here", "torchrun starts the ranks instead (README)")
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return Finding(GOOD, "Slurm", f"{there}; not inside a job", "for the compute nodes: srun ... recipes/doctor.py")
    return Finding(GOOD, "Slurm", f"{there}; job {job} on {os.environ.get('SLURM_JOB_NODELIST', '?')}")


def open_files(world: int) -> Finding:
    """The limit of open files against what a rank of ``world`` needs (``limits.files_of_rank``)."""
    from vold_nemo.config.limits import files_of_rank

    topic, need = "open files", files_of_rank(world)
    soft, hard = (
        float("inf") if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    what = f"{soft:,.0f} allowed, {hard:,.0f} at most; a rank of {world:,} needs up to {need:,}"
    if hard < need:
        mend = f"connections will be refused: have the hard limit raised (LimitNOFILE of slurmd, ulimit -Hn) to {need:,}"
        return Finding(BAD, topic, what, mend)
    if soft < need:
        return Finding(NOTE, topic, what, "every rank raises its own limit when it joins")
    return Finding(GOOD, topic, what)


def verifiers() -> Finding:
    """By what a verifier's process is shut in here, asked of a process that ends at once (``rewards/sandbox.py``)."""
    program = "from vold_nemo.rewards import sandbox; held = sandbox.probe(); print(held.describe(), held.missing(), sep='|')"
    said = output_of(sys.executable, "-c", program)
    if said is None:
        return Finding(NOTE, "verifiers", "isolation could not be tried", "they run with limits of time and memory alone")
    what, _, missing = said.partition("|")
    mend = f"a verifier could {missing}: user namespaces or Landlock would forbid it (docs/verifiers.md)" if missing else ""
    return Finding(NOTE if missing else GOOD, "verifiers", what, mend)


def teachers(config: Config, device, architecture_of: Callable[[str], Architecture]) -> list[Finding]:
    """The precision in which each teacher of ``config`` is held on ``device``, and why."""
    from vold_nemo.megatron import fp8, precision

    found = []
    for name, asked in {"teacher": config.teacher, **config.teachers}.items():
        try:
            shapes = architecture_of(asked.path)
        except ConfigError as error:
            found.append(Finding(NOTE, name, f"{asked.path}: shapes not known here", error.mend))
            continue
        try:
            chosen = precision.choose(asked, config.precision, fp8.hardware(device), shapes, config.parallel.tensor)
        except ConfigError as error:
            found.append(Finding(BAD, name, f"{error.key} = {error.value}: here {error.allowed}", error.mend))
        else:
            found.append(Finding(GOOD, name, chosen.describe()))
    return found


def storage(folder: Path, mebibytes: int = 256) -> Finding:
    """Write and sync ``mebibytes`` in ``folder``; room for checkpoints."""
    topic = "storage"
    asked, folder = folder, next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    probe = folder / f".doctor_{socket.gethostname()}_{os.getpid()}"
    block = os.urandom(2**20)
    try:
        began = time.perf_counter()
        with probe.open("wb") as file:
            for _ in range(mebibytes):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        rate = mebibytes / (time.perf_counter() - began)
    except OSError as error:
        where = f"{asked}: " if asked == folder else f"{asked}: in {folder}: "
        return Finding(BAD, topic, f"{where}{error.strerror}", "give a folder that can be written: outputs=...")
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    return Finding(GOOD, topic, f"{folder}: writes {rate:,.0f} MiB/s (synced, one process), {free / 2**30:,.0f} GiB free")


def all_reduce(device, mebibytes: int = 64, rounds: int = 5) -> Finding:
    """Bus bandwidth 2(w-1)/w x bytes/seconds of an all-reduce over the world.  Collective: every rank calls it."""
    import torch
    import torch.distributed as dist

    world = dist.get_world_size()
    if world == 1:
        return Finding(NOTE, "all-reduce", "one rank: nothing to measure", "start with srun or torchrun on several")
    tensor = torch.ones(mebibytes * 2**18, device=device)
    dist.all_reduce(tensor)
    if not bool((tensor == world).all()):
        return Finding(BAD, "all-reduce", f"a sum over {world} ranks is wrong", "the network or a GPU is broken")

    def wait() -> None:
        dist.barrier()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    for _ in range(rounds):
        dist.all_reduce(tensor)
    wait()
    seconds = (time.perf_counter() - began) / rounds
    rate = 2 * (world - 1) / world * tensor.numel() * 4 / seconds / 1e9
    return Finding(GOOD, "all-reduce", f"{world} ranks on {device.type}: {rate:.1f} GB/s bus bandwidth at {mebibytes} MiB")


def attempt(topic: str, probe: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """``probe``'s findings; a probe that breaks is a finding itself."""
    try:
        found = probe()
    except ConfigError as error:
        return [Finding(BAD, topic, f"{error.key} = {error.value!r}: here {error.allowed}", error.mend)]
    except Exception as error:
        return [Finding(BAD, topic, f"the probe failed: {type(error).__name__}: {error}")]
    return found if isinstance(found, list) else [found]
