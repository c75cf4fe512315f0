"""Copies of checkpoints on this node's own disk: who reads the files of one asks here where they lie.

recipes/stage_weights.py fills the folder ``VOLD_STAGE`` on each node (slurm/stage.sbatch runs it before the ranks) and leaves
in it a record of the job: {folder of a checkpoint: its copy, and the state that was copied}.  Only the places that open weights
ask (:func:`here`); the configuration, lineage, digests and what is written down keep the checkpoint's own path.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from vold_nemo.config.errors import NodeError
from vold_nemo.config.sections.cluster import VERBS as VERBS
from vold_nemo.config.writing import replace_text

VARIABLE = "VOLD_STAGE"
KEY = "cluster.launch.stage"


def expanded(folder: str, key: str = KEY) -> Path:
    """``folder``, given as ``key``, with the variables of this node in place of their names: ``$TMPDIR/vold``.

    Raises:
        NodeError: one of them is not set here, or the path is not absolute.
    """
    path = os.path.expandvars(folder)
    if "$" in path or not os.path.isabs(path):
        said = folder if path == folder else f"{folder} = {path}"
        mend = "name a folder on the node's own disk: /local/scratch/$SLURM_JOB_ID, or set its variables on the nodes"
        raise NodeError(key, said, "an absolute path whose variables are all set on the node", mend)
    return Path(path)


def record_file(folder: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Where the copies of this job are written down in ``folder``: other jobs on the node have files of their own."""
    env = os.environ if environment is None else environment
    return folder / f"job_{env.get('SLURM_JOB_ID') or f'by_hand_{os.getuid()}'}.json"


def state(source: Path, names: Iterable[str]) -> str:
    """Hexadecimal digits of the files' sizes and times of change: another after a checkpoint was written anew."""
    digest = hashlib.blake2b(f"{os.getuid()} {os.path.realpath(source)}".encode(), digest_size=6)
    for name in sorted(names):
        at = (source / name).stat()
        digest.update(f"\n{name} {at.st_size} {at.st_mtime_ns}".encode())
    return digest.hexdigest()


def write_record(folder: Path, copies: Mapping[Path, tuple[Path, Iterable[str]]]) -> None:
    """All copies are whole: from here on ranks read them.  ``copies``: checkpoint -> its copy, and the files that are in it."""
    table = {
        os.path.realpath(source): {"copy": str(copy), "files": sorted(names), "state": state(source, names)}
        for source, (copy, names) in copies.items()
    }
    replace_text(record_file(folder), json.dumps(table, indent=1) + "\n")


def copies() -> dict[str, str]:
    """{folder of a checkpoint: its copy} on this node; empty where nothing is staged.

    Raises:
        NodeError: ``VOLD_STAGE`` is set, and this job has left no record there; a copy is gone, or its checkpoint was written
            anew since.
    """
    if not os.environ.get(VARIABLE):
        return {}
    file = record_file(expanded(os.environ[VARIABLE], VARIABLE))
    try:
        return _known(file, file.stat().st_mtime_ns)
    except NodeError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        mend = (
            f"unset {VARIABLE}, or run recipes/stage_weights.py on every node first; a folder that differs between the "
            f"steps of a job (a TMPDIR of each step) will not do ({type(error).__name__})"
        )
        raise NodeError(VARIABLE, os.environ[VARIABLE], f"a folder with {file}, as staging leaves it", mend) from error


@functools.lru_cache(maxsize=1)
def _known(file: Path, written: int) -> dict[str, str]:
    """The record of ``file``, of the time ``written``, each copy found to be that of its checkpoint as it is."""
    found = {}
    for source, kept in json.loads(file.read_text(encoding="utf-8")).items():
        copy, again = kept["copy"], "run recipes/stage_weights.py on every node again, or unset VOLD_STAGE"
        if not all(os.path.exists(os.path.join(copy, name)) for name in kept["files"]):
            raise NodeError(VARIABLE, f"{copy}: files are gone", f"the whole copy of {source}, as {file} has it", again)
        try:
            same = state(Path(source), kept["files"]) == kept["state"]
        except FileNotFoundError:
            same = False
        if not same:
            raise NodeError(VARIABLE, copy, f"a copy of {source} as it is now: that was written anew since", again)
        found[source] = copy
    return found


def here(folder: str | Path) -> Path:
    """The copy of checkpoint ``folder`` on this node; ``folder`` itself where there is none."""
    known = copies()
    return Path(known.get(os.path.realpath(folder), folder)) if known else Path(folder)
