"""What a run writes beside its checkpoints, on a disk that may be full: kept back, said once, and written when there is room.

A run does not end over its diary.  Its checkpoints decide (saving.py): as long as one can be kept, steps are taken.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)


class Journal:
    """Lines that are appended to ``file``, each whole or not there.  Nobody else writes into it."""

    def __init__(self, file: Path):
        self.file = file
        self.waiting: list[str] = []
        self._good: int | None = None  # bytes of whole lines, once this journal has written
        self._troubled = False

    def add(self, line: str) -> bool:
        """Write ``line`` behind all that waits; false if it waits, too."""
        self.waiting.append(line)
        return self.flush()

    def flush(self) -> bool:
        """Write what waits; false if it goes on waiting."""
        if not self.waiting:
            return True
        size = self._good
        try:
            if size is None:
                size = self.file.stat().st_size if self.file.exists() else 0
            elif self.file.exists() and self.file.stat().st_size > size:
                os.truncate(self.file, size)  # what an attempt before left of a line
            text = "".join(line + "\n" for line in self.waiting).encode()
            with self.file.open("ab") as file:  # closing it is part of it: network file systems report there
                file.write(text)
        except OSError as error:
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(self.file, size)
                self._good = size
            if not self._troubled:
                logger.error("%s cannot be written (%s): its lines are kept, and the run goes on", self.file, _said(error))
            self._troubled = True
            return False
        self._good = size + len(text) if self.file.exists() else None
        if self._troubled:
            logger.warning("%s: %d lines caught up", self.file, len(self.waiting))
        self._troubled = False
        self.waiting.clear()
        return True

    def close(self) -> None:
        """Write what waits, here or, if there is still no room, into a file of the system's temporary folder, by name."""
        if self.flush():
            return
        try:
            handle, name = tempfile.mkstemp(suffix=self.file.suffix, prefix=f"{self.file.stem}-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in self.waiting)
        except OSError as error:
            logger.error("%d lines of %s are lost: %s", len(self.waiting), self.file, _said(error))
        else:
            logger.error("%d lines of %s lie in %s: append them when there is room", len(self.waiting), self.file, name)
        self.waiting.clear()


class Backlog:
    """Files of a run, each written by a function; of those that could not be, the last ``most`` are tried again."""

    def __init__(self, most: int):
        self._most = most
        self._waiting: deque[tuple[str, Callable[[], object]]] = deque()
        self._troubled = False

    def do(self, name: str, write: Callable[[], object]) -> None:
        """``write``, after all that waits.  ``name``: of the file, in messages."""
        self._waiting.append((name, write))
        self.flush()
        while len(self._waiting) > self._most:
            logger.error("%s is not kept: there was no room for it", self._waiting.popleft()[0])

    def flush(self) -> None:
        """Write what waits, as far as there is room."""
        while self._waiting:
            name, write = self._waiting[0]
            try:
                write()
            except OSError as error:
                if not self._troubled:
                    logger.error("%s cannot be written (%s): the run goes on, and tries again", name, _said(error))
                self._troubled = True
                return
            self._waiting.popleft()
            if self._troubled:
                logger.warning("%s caught up", name)
        self._troubled = False

    def close(self) -> None:
        self.flush()
        if self._waiting:
            logger.error("not written: %s", ", ".join(name for name, _ in self._waiting))
        self._waiting.clear()


def _said(error: OSError) -> str:
    return error.strerror or str(error)
