"""What benchmarks share: settings from ``key=value`` arguments, and the highest memory of a stretch of work."""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.process import resident


def parse(arguments: list[str], defaults: dict) -> dict:
    """``key=value`` pairs over ``defaults``, each in its default's type."""
    settings = dict(defaults)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in defaults:
            raise SystemExit(f"{argument}: unknown key; allowed: {', '.join(defaults)}")
        kind = type(defaults[key])
        try:
            settings[key] = value.lower() in ("true", "1") if kind is bool else kind(value)
        except ValueError:
            raise SystemExit(f"{argument}: the value must be a {kind.__name__}, as in {key}={defaults[key]}") from None
    return settings


class Peak:
    """Highest memory since the start, beyond what was there then.

    On a CPU the high-water mark of the resident set (Linux, /proc), on CUDA the allocator's.
    """

    def __init__(self, device: str):
        import torch

        self.cuda = torch.cuda if device == "cuda" else None
        if self.cuda:
            self.cuda.synchronize()
            self.cuda.reset_peak_memory_stats()
            self.start = self.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self.start = resident()

    def stop(self) -> int:
        """Bytes above the start at the highest point; the next period begins, above the same start."""
        if self.cuda:
            self.cuda.synchronize()
            highest = self.cuda.max_memory_allocated()
            self.cuda.reset_peak_memory_stats()
        else:
            highest = resident("VmHWM")
            Path("/proc/self/clear_refs").write_text("5")
        return highest - self.start


def machine(device: str) -> str:
    """What the numbers were measured on, in words."""
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ": CPU")
    return f"{model.partition(':')[2].strip()}, {os.cpu_count()} cores, torch {torch.__version__}"


def tell(settings: dict, found: dict, where: str, text: str) -> None:
    """Print ``text``, keep it and the numbers beside ``results`` (.md, .json), and print these where ``json`` asks for them."""
    print(text)
    line = json.dumps({**settings, "machine": where, "results": found})
    if settings["results"]:
        path = Path(settings["results"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".md").write_text(text)
        path.with_suffix(".json").write_text(line + "\n")
    if settings["json"]:
        print(line)
