"""Where a checkpoint or a data set lies: a folder stays a folder, a hub id becomes its snapshot in the local cache.

Nothing is ever downloaded here: compute nodes have no network, and a download that starts in the middle of a job, on
every rank, is worse than an error at the door.  ``hf download`` fills the cache beforehand.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from vold_nemo.config import Config

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(path: str) -> bool:
    """Whether ``path``, where nothing lies, has the form owner/name."""
    return not Path(path).exists() and _HUB_ID.fullmatch(path) is not None


def local_folder(path: str, revision: str | None = None, kind: str = "model") -> str:
    """The folder of ``path``; ``path`` itself where there is none, for the check that names the key.

    ``kind``: model | dataset, whichever a hub id is the name of.
    """
    if Path(path).is_dir() or not _HUB_ID.fullmatch(path):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(path, repo_type=kind, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return path


def at_home(value: Any) -> Any:
    """``value`` with ``~`` and ``~/...`` in its texts, however deep, as the shell expands them.

    It does so in front of no argument like ``student.path=~/mine``, and in no file.
    """
    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or value.startswith("~/") else value
    if isinstance(value, dict):
        return {name: at_home(item) for name, item in value.items()}
    if isinstance(value, list):
        return [at_home(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value))
        return dataclasses.replace(value, **{name: at_home(getattr(value, name)) for name in fields})
    return value


def with_local_folders(config: Config) -> Config:
    """``config`` with the folders of student, teacher, start and evaluated models in place of hub ids, and homes for ``~``."""
    config = at_home(config)
    student = dataclasses.replace(config.student, path=local_folder(config.student.path, config.student.revision))
    teacher, *more = (
        dataclasses.replace(one, path=local_folder(one.path, one.revision))
        for one in (config.teacher, *config.teachers.values())
    )
    # Keys that are interpolations of student.path by default must follow it.
    moved = {config.student.path: student.path, config.teacher.path: teacher.path}

    def follow(path: str) -> str:
        return moved.get(path) or local_folder(path)

    return dataclasses.replace(
        config,
        student=student,
        teacher=teacher,
        teachers=dict(zip(config.teachers, more, strict=True)),
        export=dataclasses.replace(config.export, source=follow(config.export.source)),
        vold=dataclasses.replace(config.vold, start=follow(config.vold.start)),
        evaluate=dataclasses.replace(
            config.evaluate, models={arm: follow(path) for arm, path in config.evaluate.models.items()}
        ),
    )
