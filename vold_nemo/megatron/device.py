"""Which device a process computes on: the one place that asks ``torch.cuda`` what is here, and waits for it.

Of the trainer's floors nothing else does (``tests/test_floors.py``), so that whoever runs them on another kind of device, or
on one that is only supposed, has one file to look at.  ``megatron/cpu.py`` stands in for ``torch.cuda`` where megatron-core
asks, ``megatron/diagnosis.py`` looks at the machine, and ``rollout/`` and ``evaluation/`` do without this floor.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vold_nemo.config import ConfigError


def has_gpu() -> bool:
    return torch.cuda.is_available()


def pick_device(device: str, local_rank: int) -> torch.device:
    """``auto | cpu | cuda`` -> the device of the node's ``local_rank``-th process; one visible GPU is everybody's."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError("device", device, "auto | cpu | cuda", "set device to one of these")
    if device == "cuda" and not has_gpu():
        raise ConfigError("device", device, "auto | cpu", "no CUDA device is visible: set device=cpu, or find one")
    if device == "cpu" or not has_gpu():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def pick_training_device(device: str, local_rank: int) -> torch.device:
    """As :func:`pick_device`; megatron-core computes on a GPU wherever it sees one."""
    where = pick_device(device, local_rank)
    if where.type == "cpu" and has_gpu():
        mend = "megatron-core uses a CUDA device that it sees: hide it with CUDA_VISIBLE_DEVICES= first"
        raise ConfigError("device", device, "auto | cuda", mend)
    return where


def visible() -> list[str]:
    """Names of the GPUs that this process sees, as ``CUDA_VISIBLE_DEVICES`` would call them; none without one."""
    if not has_gpu():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def use(device: torch.device) -> None:
    """Make it what "cuda" without a number means to this process."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def of_parameters(config) -> torch.device | int:
    """Where a layer of megatron-core's ``config`` allocates its parameters; a GPU by its number, as megatron-core does it."""
    return torch.device("cpu") if config.use_cpu_initialization else torch.cuda.current_device()


def capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability, (9, 0) for Hopper; None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def cuda_version() -> str:
    """Of the CUDA that torch was built with; empty for a CPU build."""
    return torch.version.cuda or ""


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done what it was asked for.  A CPU has, whenever it is asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def empty_cache(device: torch.device) -> None:
    """Give what torch keeps in reserve back to the device: it is of use to others there, not to torch."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_bytes(device: torch.device) -> int:
    """Most memory this process has held so far: on the device, or resident in the host's memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def open_range(name: str) -> None:
    """Name what follows for a profiler that follows CUDA (an NVTX range of this thread), until :func:`close_range`."""
    torch.cuda.nvtx.range_push(name)


def close_range() -> None:
    torch.cuda.nvtx.range_pop()


def start_capture() -> None:
    """Begin what a profiler outside this process waits for: ``nsys profile --capture-range=cudaProfilerApi``."""
    torch.cuda.profiler.start()


def stop_capture() -> None:
    torch.cuda.profiler.stop()


def random_state() -> Tensor | None:
    """Of the device's own generator; None without a GPU."""
    return torch.cuda.get_rng_state() if has_gpu() else None


def set_random_state(state: Tensor) -> None:
    torch.cuda.set_rng_state(state)


def host_memory(size: int, device: torch.device) -> tuple[Tensor, Callable[[], object] | None]:
    """``size`` bytes of the host, of which a GPU copies at full rate, since their pages are locked.

    Returns:
        the memory, and what unlocks it and has to be called before it is freed; None in its place if nothing is locked: for a
        CPU, and where CUDA refuses.
    """
    memory, portable = torch.empty(size, dtype=torch.uint8), 1
    if device.type == "cpu" or not size:
        return memory, None
    cudart, address = torch.cuda.cudart(), memory.data_ptr()
    if int(cudart.cudaHostRegister(address, size, portable)) == 0:
        return memory, partial(cudart.cudaHostUnregister, address)
    with contextlib.suppress(RuntimeError):  # the next kernel would be blamed for the error: let one report it and be done
        torch.zeros(1, device=device)
    return memory, None
