"""Where the files beside the package lie, in a checkout or an installed wheel: conf, slurm, recipes, lists of versions."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def root() -> Path:
    """The folder that holds them: the checkout, or where a wheel puts them (setup.py)."""
    shipped = _PACKAGE / "_shipped"
    return shipped if shipped.is_dir() else _PACKAGE.parent


def conf() -> Path:
    """The configuration files that come with the package."""
    return root() / "conf"


def slurm() -> Path:
    """The launchers."""
    return root() / "slurm"


def recipes() -> Path:
    """The verbs, and the demo's script."""
    return root() / "recipes"


def constraints(cuda: tuple[int, int] | None) -> Path:
    """The versions that go with a torch for this CUDA (None: a CPU build) and this Python.  It need not be there."""
    if cuda is None:
        return root() / ("constraints.txt" if sys.version_info < (3, 12) else "constraints-py312.txt")
    return root() / f"constraints-gpu-cu{cuda[0]}{cuda[1]}.txt"
