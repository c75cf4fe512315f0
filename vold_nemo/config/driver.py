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


def visible(count: int, environment: Mapping[str, str] | None = None) -> int:
    """Of ``count`` GPUs those that ``CUDA_VISIBLE_DEVICES`` leaves; CUDA reads it up to the first that is not there."""
    named = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return count
    left = 0
    for word in map(str.strip, named.split(",")):
        if word in HIDDEN or (word.lstrip("-").isdigit() and not 0 <= int(word) < count):
            break
        left += 1
    return left


def hidden(environment: Mapping[str, str] | None = None) -> bool:
    """Whether ``CUDA_VISIBLE_DEVICES`` hides every GPU: somebody wants the CPU."""
    named = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    return named is not None and named.strip() in HIDDEN
