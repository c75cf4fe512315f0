"""The NVIDIA driver and the GPUs of this node, asked without torch and without making a CUDA context: milliseconds.

``libcuda`` says which CUDA it is for, ``libnvidia-ml`` how many GPUs this process may use (Slurm's device cgroup included),
and ``/proc/driver/nvidia`` is there wherever the kernel's module is, also in a container that was not given the libraries.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from pathlib import Path

PROC = Path("/proc/driver/nvidia")
CUDA, MANAGEMENT = "libcuda.so.1", "libnvidia-ml.so.1"
# Oldest driver for each major version of CUDA; within one, newer minor versions run on it, too
# (docs.nvidia.com/deploy/cuda-compatibility, "Minor Version Compatibility", table 1).
OLDEST = {11: 450, 12: 525, 13: 580}
HIDDEN = ("", "-1", "NoDevFiles", "none", "void")  # values of CUDA_VISIBLE_DEVICES that leave no GPU


def kernel_module() -> str | None:
    """Version of the driver, "580.82.07"; None if the kernel has none."""
    try:
        text = (PROC / "version").read_text()
    except OSError:
        return None
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else "unknown"


def newest_cuda() -> tuple[int, int] | None:
    """The CUDA that ``libcuda`` is for, (13, 0): NVIDIA's forward-compatibility package counts.  None without the library."""
    try:
        library, version = ctypes.CDLL(CUDA), ctypes.c_int(0)
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return (version.value // 1000, version.value % 1000 // 10) if version.value else None


def gpus() -> int | None:
    """GPUs that this process may use, before ``CUDA_VISIBLE_DEVICES``; None if nobody can be asked."""
    try:
        library, count = ctypes.CDLL(MANAGEMENT), ctypes.c_uint(0)
        if library.nvmlInit_v2() != 0:
            raise OSError
        answered = library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
        library.nvmlShutdown()
        if answered:
            return count.value
    except (OSError, AttributeError):
        pass
    folder = PROC / "gpus"
    return len(list(folder.iterdir())) if folder.is_dir() else None


def compute_capability() -> float | None:
    """Of this node's first GPU, 9.0 for Hopper; None if nobody can be asked."""
    try:
        library, handle, major, minor = ctypes.CDLL(MANAGEMENT), ctypes.c_void_p(), ctypes.c_int(0), ctypes.c_int(0)
        if library.nvmlInit_v2() != 0:
            return None
        answered = (
            library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) == 0
            and library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) == 0
        )
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return major.value + minor.value / 10 if answered else None


def visible(count: int, environment: Mapping[str, str] | None = None) -> int:
    """Of ``count`` GPUs those that ``CUDA_VISIBLE_DEVICES`` leaves: CUDA reads it up to the first that is none, or not there,
    and where one is named twice it leaves none at all."""
    named = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return count
    taken: list[int | str] = []
    for word in map(str.strip, named.split(",")):
        device = _device(word)
        if device is None or (isinstance(device, int) and device >= count):
            break
        taken.append(device)
    return len(taken) if len(set(taken)) == len(taken) else 0


def _device(word: str) -> int | str | None:
    """A number, as C reads one at the head of ``word``, or a name by which CUDA knows a device; None for anything else."""
    number = re.match(r"\+?(\d+)", word)
    return int(number[1]) if number else word if word.startswith(("GPU-", "MIG-")) else None


def misread(environment: Mapping[str, str] | None = None) -> str | None:
    """Why ``CUDA_VISIBLE_DEVICES`` leaves fewer GPUs than it names, whatever the node has; None where it says what it does."""
    named = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if named is None or named.strip() in HIDDEN:
        return None
    words = [word.strip() for word in named.split(",")]
    known = [_device(word) for word in words]
    if None in known:
        wrong = words[known.index(None)]
        behind = "all GPUs are" if known[0] is None else f"what stands from {wrong or 'the empty place'} on is"
        return f"{behind} hidden: {wrong or 'nothing'} is no number and no name of a GPU (GPU-..., MIG-...)"
    return "all GPUs are hidden: one is named twice" if len(set(known)) < len(known) else None


def hidden(environment: Mapping[str, str] | None = None) -> bool:
    """Whether ``CUDA_VISIBLE_DEVICES`` hides every GPU on purpose, as ``-1`` does, with or without others behind it."""
    named = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    return named is not None and named.split(",")[0].strip() in HIDDEN
