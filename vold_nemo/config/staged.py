"""Copies of checkpoints on this node's own disk: who reads the files of one asks here where they lie.

recipes/stage_weights.py fills the folder ``VOLD_STAGE`` on each node (slurm/stage.sbatch runs it before the ranks) and leaves
in it a record of the job: {folder of a checkpoint: folder of its copy}.  Only the places that open weights ask
(:func:`here`); the configuration, lineage, digests and what is written down keep the checkpoint's own path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from vold_nemo.config.errors import NodeError
from vold_nemo.config.sections.cluster import VERBS as VERBS
from vold_nemo.config.writing import replace_text

VARIABLE = "VOLD_STAGE"
KEY = "cluster.launch.stage"
FORMAT = 1


def expanded(folder: str) -> Path:
    """``folder`` with the variables of this node in place of their names: ``$TMPDIR/vold``.

    Raises:
        NodeError: one of them is not set here, or the path is not absolute.
    """
    path = os.path.expandvars(folder)
    if "$" in path or not os.path.isabs(path):
        said = folder if path == folder else f"{folder} = {path}"
        mend = "name a folder on the node's own disk: /local/scratch/$SLURM_JOB_ID, or set its variables on the nodes"
        raise NodeError(KEY, said, "an absolute path whose variables are all set on the node", mend)
    return Path(path)


def record_file(folder: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Where the copies of this job are written down in ``folder``: other jobs on the node have files of their own."""
    env = os.environ if environment is None else environment
    return folder / f"job_{env.get('SLURM_JOB_ID') or f'by_hand_{os.getuid()}'}.json"


def write_record(folder: Path, copies: Mapping[Path, Path]) -> None:
    """All copies are whole: from here on ranks read them."""
    table = {os.path.realpath(source): str(copy) for source, copy in copies.items()}
    replace_text(record_file(folder), json.dumps({"format": FORMAT, "copies": table}, indent=1) + "\n")


def copies() -> dict[str, str]:
    """{folder of a checkpoint: its copy} on this node; empty where nothing is staged.

    Raises:
        NodeError: ``VOLD_STAGE`` is set, and this job has left no record there.
    """
    if not os.environ.get(VARIABLE):
        return {}
    file = record_file(expanded(os.environ[VARIABLE]))
    try:
        return json.loads(file.read_text(encoding="utf-8"))["copies"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = (
            f"unset {VARIABLE}, or run recipes/stage_weights.py on every node first; a folder that differs between the "
            f"steps of a job (a TMPDIR of each step) will not do ({type(error).__name__})"
        )
        raise NodeError(VARIABLE, os.environ[VARIABLE], f"a folder with {file}, as staging leaves it", mend) from error


def here(folder: str | Path) -> Path:
    """The copy of checkpoint ``folder`` on this node; ``folder`` itself where there is none."""
    known = copies()
    return Path(known.get(os.path.realpath(folder), folder)) if known else Path(folder)
