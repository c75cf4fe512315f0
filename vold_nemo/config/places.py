"""Where the files beside the package lie: ``conf/``, ``slurm/`` and ``recipes/``, of a checkout or of an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def root() -> Path:
    """The folder that holds the three: the checkout, or where a wheel puts them (setup.py)."""
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
