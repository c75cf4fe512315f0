"""How a run goes on: what an attempt is compared with and leaves behind, and whether its archive is of its last checkpoint.

Rank 0 looks at files and all ranks do the same: each function here but :func:`archive_is_of` and :func:`command` is collective.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from vold_nemo.checkpoint import archive_file, attempts, loading
from vold_nemo.checkpoint.nemo_archive import ArchiveNotWritten
from vold_nemo.checkpoint.run_folder import Run
from vold_nemo.config import ConfigError

if TYPE_CHECKING:
    from vold_nemo.models.student import MegatronStudent

logger = logging.getLogger(__name__)

ARCHIVE = "student.nemo"  # in the run folder, of the finished run


def attempt(model: MegatronStudent, run: Run, found: Path | None) -> dict[str, Any]:
    """The record of this attempt, which goes on from the checkpoint ``found``, or from nothing.

    What differs from the attempt that wrote ``found`` is said.

    :raises ConfigError: on all ranks: the run would become another one (checkpoint/attempts.py).
    """
    told: list[Any] = [{}, None]
    config = model.config
    if model.layout.rank == 0:
        try:
            record = attempts.describe(
                config, model.verb, data=model.data_name(), world=model.layout.world, number=attempts.next_number(run.folder)
            )
            before = attempts.of_checkpoint(found) if found else None
            if found and before and before.get("data") in model.data_names():  # else the checkpoint's own check refuses it
                said = attempts.compare(before, record, config.checkpoint.accept, found)
                if said:
                    logger.warning("%s", said)
            told = [record, None]
        except ConfigError as error:
            told = [{}, (error.key, error.value, error.allowed, error.mend)]
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise ConfigError(*told[1])
    return told[0]


def archive_is_of(run: Run, done: int) -> bool:
    """Whether ``student.nemo`` is of the checkpoint after ``done`` steps.

    It is not there, or of an earlier one, where an attempt was killed between its last checkpoint and the archive.
    """
    archive = run.folder / ARCHIVE
    if not archive.exists():
        return False
    try:
        said = archive_file.about(archive)
    except ConfigError as error:
        logger.warning("%s is written again: %s", archive, error.value)
        return False
    same = said.get("checkpoint") == _checkpoint(run, done)
    if not same:
        logger.warning("%s is of step %s, and is written again from step_%d", archive, said.get("step"), done)
    return same


def save_archive(model: MegatronStudent, run: Run, done: int) -> None:
    """``student.nemo`` of the checkpoint after ``done`` steps, whose weights are the model's.

    :raises ConfigError: it cannot be written; the checkpoint is there, and starting again writes the archive alone.
    """
    if model.layout.rank == 0:
        said = {"step": done, "attempt": model.attempt.get("attempt"), "checkpoint": _checkpoint(run, done)}
        model.archive_about = said
    try:
        model.save_to(str(run.folder / ARCHIVE))
    except ArchiveNotWritten as error:
        mend = f"the run is done and step_{done} is kept ({error}): make room and start again, which writes this file alone"
        raise ConfigError("outputs", str(run.folder / ARCHIVE), "a path that can be written", mend) from error


def command() -> str:
    """What to type, or to submit, for the same run once more."""
    if "SLURM_JOB_ID" in os.environ:
        return "submit again"
    return f"the same command again ({shlex.join(['python', *sys.argv])})" if sys.argv[0].endswith(".py") else "start again"


def _checkpoint(run: Run, done: int) -> str | None:
    """What tells the checkpoint after ``done`` steps from any other."""
    try:
        return loading.read_manifest(run.checkpoints / f"step_{done}")["digest"]
    except loading.Damaged:
        return None  # no archive is of it
