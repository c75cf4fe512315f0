"""Files that a recipe writes: what cannot be written is an error that names its key, and a file is whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vold_nemo.config import ConfigError


@contextlib.contextmanager
def writing(key: str, path: str | Path) -> Iterator[None]:
    """An OSError of the block becomes a ConfigError of ``key``, which gave ``path``.  Only writing belongs into the block."""
    try:
        yield
    except OSError as error:
        mend = f"{error.strerror or error}: give another path, or make room and permission"
        raise ConfigError(key, str(path), "a path that can be written", mend) from error


def replace_text(file: Path, text: str, *, durable: bool = False) -> None:
    """Write ``file`` beside its place and then into it, with its folder; ``durable``: its bytes are on disk before that."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        if durable:
            sync(aside)
        os.replace(aside, file)
    except OSError:
        aside.unlink(missing_ok=True)  # on a full disk it takes room that others need
        raise


class Forgiving:
    """``file``, a log that may lie on a full disk: what cannot be written there is no reason to end."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def sync(path: Path) -> None:
    """A file's bytes, or a folder's entries, are on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
