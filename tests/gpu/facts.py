"""What every line says besides: versions, GPU, and whether the environment is the project's own.  No torch.

    python -m tests.gpu.facts    # what torch sees, as JSON: in a process of its own, since a broken driver may hang it
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIBRARIES = {
    "torch": "torch", "megatron-core": "megatron-core", "nemo-toolkit": "nemo-toolkit",
    "transformer-engine": "transformer-engine", "transformers": "transformers", "triton": "triton", "vllm": "vllm",
    "liger": "liger-kernel",
}  # fmt: skip


def versions() -> dict[str, str | None]:
    """Of Python and of the libraries that an item may meet; None = not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in LIBRARIES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def pins(root: Path = ROOT) -> dict[str, str]:
    """Distribution: version, as the project's constraints have it on this Python, those for GPUs above the others."""
    from packaging.requirements import Requirement

    found = {}
    for name in ("constraints.txt", "constraints-gpu.txt"):
        file = root / name
        for line in file.read_text().splitlines() if file.is_file() else ():
            text = line.partition("#")[0].strip()
            if not text or text.startswith("-"):
                continue
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate():
                found[wanted.name.lower().replace("_", "-")] = str(wanted.specifier).removeprefix("==")
    return found


def evidence(found: dict[str, str | None], pinned: dict[str, str]) -> tuple[str, dict[str, str]]:
    """("pinned" | "unpinned", what differs: "found, pinned: version"); a build's local label (+cu130) is no difference."""
    other = {}
    for name, distribution in LIBRARIES.items():
        here, wanted = found.get(name), pinned.get(distribution)
        if here and wanted and here.partition("+")[0] != wanted.partition("+")[0]:
            other[name] = f"{here}, pinned: {wanted}"
    return ("unpinned" if other else "pinned"), other


def driver() -> str | None:
    """NVIDIA's, by its own tool; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def seen() -> dict[str, Any]:
    """What torch sees; ``gpu`` is None where it sees none."""
    import torch

    found: dict[str, Any] = {"cuda": torch.version.cuda, "gpu": None, "capability": None, "memory_gib": None}
    if torch.cuda.is_available():
        at = torch.cuda.get_device_properties(0)
        free, _ = torch.cuda.mem_get_info(0)
        found |= {"gpu": at.name, "capability": f"{at.major}.{at.minor}", "memory_gib": round(at.total_memory / 2**30, 1),
                  "free_gib": round(free / 2**30, 1), "gpus_visible": torch.cuda.device_count()}  # fmt: skip
    return found


if __name__ == "__main__":
    print("SEEN " + json.dumps(seen()))
