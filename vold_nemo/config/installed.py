"""What is installed, by the packages' metadata: versions, the CUDA that they were built for, what they ask of each other.

Nothing is imported, so that a recipe can say in its first second what would fail after a minute of imports.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path

ENGINE = ("transformer-engine", "transformer-engine-torch", "transformer-engine-cu12", "transformer-engine-cu13")
# Left by slurm/build_gpu.sh in the environment: distribution -> version, of what was compiled and of the torch it was for.
COMPILED = "compiled.json"


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_cuda() -> tuple[int, int] | None:
    """The CUDA that torch was built for, (13, 0); None for a CPU build, or without torch."""
    try:
        torch = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    local = torch.version.partition("+")[2]
    named = re.fullmatch(r"cu(\d+)(\d)", local)
    if named:
        return int(named[1]), int(named[2])
    if local == "cpu":
        return None
    try:
        text = Path(str(torch.locate_file("torch/version.py"))).read_text()
    except OSError:
        return None
    found = re.search(r"^cuda[^=]*=\s*['\"](\d+)\.(\d+)", text, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def unmet(distribution: str, *names: str) -> list[str]:
    """What ``distribution`` asks of ``names`` (of all, without any) in vain: "transformers<5.20 (5.23.0 is installed)"."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        lines = [Requirement(line) for line in importlib.metadata.requires(distribution) or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    except InvalidRequirement as error:  # pip takes some that are not in the standard's form
        return [f"something unreadable ({error})"] if not names else []
    found = []
    for wanted in lines:
        if (names and wanted.name not in names) or (wanted.marker is not None and not wanted.marker.evaluate({"extra": ""})):
            continue
        here = version(wanted.name)
        if here is None or not wanted.specifier.contains(here, prereleases=True):
            found.append(f"{wanted.name}{wanted.specifier} ({f'{here} is' if here else 'not'} installed)")
    return found


def engine() -> dict[str, str]:
    """Transformer Engine's packages and their versions; empty without it.  A build from source has the first alone."""
    return {name: here for name in ENGINE if (here := version(name)) is not None}


def engine_trouble() -> tuple[str, str] | None:
    """Why Transformer Engine will not import, as far as metadata tell, and the mend; None if nothing speaks against it.

    It refuses packages of unequal versions, and its core is one for each major version of CUDA.
    """
    here, cuda = engine(), torch_cuda()
    if not here:
        return None
    mend = "slurm/build_gpu.sh installs the three in one version"
    if len(set(here.values())) > 1:
        return ", ".join(f"{name} {number}" for name, number in here.items()), mend
    cores = [name[-2:] for name in here if name.startswith("transformer-engine-cu")]
    if cuda is not None and cores and str(cuda[0]) not in cores:
        return f"transformer-engine-cu{cores[0]} with a torch for CUDA {cuda[0]}.{cuda[1]}", mend
    if "transformer-engine-torch" in here and not cores:
        return "transformer-engine-torch without its core, transformer-engine-cu12 or -cu13", mend
    if list(here) == ["transformer-engine"] and _is_hollow():
        return "transformer-engine alone, without its core and its extension for torch", mend
    return None


def _is_hollow() -> bool:
    """Whether the wheel is the index's, which holds no library; a build from source has one, or is editable."""
    files = {str(file) for file in importlib.metadata.files("transformer-engine") or []}
    return "transformer_engine/__init__.py" in files and not any(file.endswith(".so") for file in files)


def compiled_for_another_torch() -> str | None:
    """What slurm/build_gpu.sh compiled here and for which torch, if that is not the one that is installed now."""
    try:
        record = json.loads((Path(sys.prefix) / COMPILED).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    built, now = record.pop("torch", None), version("torch")
    if built is None or built == now:
        return None
    things = " and ".join(f"{name} {number}" for name, number in record.items())
    return f"{things} compiled for torch {built}, and {now} is installed"
