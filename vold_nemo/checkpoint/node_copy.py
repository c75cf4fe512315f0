"""A checkpoint folder copied to a node's own disk: whole files or none, several at a time, shared by the jobs of the node.

    <stage>/<name>.<digest>/       copied files, and links to the files that this node does not need
    <stage>/<name>.<digest>/.lock  held while somebody copies

The digest is of the source's path and of its files' names, sizes and times of change: a checkpoint that was written anew gets a
folder of its own, and who reads the old one is not disturbed.  A file is written under another name, checked (size, and
SHA-256 where it is known), synced, and renamed: what bears its name is whole, and is kept when a copy is begun again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from vold_nemo.config.errors import NodeError
from vold_nemo.config.staged import KEY, state

BLOCK = 16 << 20  # bytes read and written at a time
READERS = 8  # files at a time: one stream rarely fills a parallel file system's or a disk's rate
SPARE = 1 << 30  # bytes that are left free on the disk
MINUTES = "cluster.launch.stage_minutes"


@dataclass(frozen=True)
class Wanted:
    """``files`` (relative names) of the checkpoint ``source`` to copy, ``links`` to point to; SHA-256 by name where known."""

    key: str  # of the configuration
    source: Path
    files: tuple[str, ...]
    links: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)

    def size(self, name: str) -> int:
        with _reading(self.key, self.source / name):
            return (self.source / name).stat().st_size

    def target(self, stage: Path) -> Path:
        with _reading(self.key, self.source):
            found = state(self.source, (*self.files, *self.links))
        # a snapshot of the hub cache is named by its commit: the model's name is two folders above
        name = self.source.parents[1].name if self.source.parent.name == "snapshots" else self.source.name
        return stage / f"{name}.{found}"

    def left(self, stage: Path) -> list[str]:
        """Files that are not in ``stage`` yet."""
        target = self.target(stage)
        return [name for name in self.files if not _is_whole(target / name, self.size(name))]


class Copier:
    """Copies into ``stage`` until ``deadline`` (of ``time.monotonic``); ``say`` gets a line every ``every`` seconds."""

    def __init__(self, stage: Path, deadline: float, say: Callable[[str], None], every: float = 10.0):
        self.stage, self.deadline, self.say, self.every = stage, deadline, say, every
        self.done, self.total = 0, 0
        self._stop, self._lock = threading.Event(), threading.Lock()

    def run(self, wanted: Sequence[Wanted]) -> dict[Path, Path]:
        """{source: copy} of all; what was copied by an earlier job of this node is kept.

        Raises:
            NodeError: too little room (before anything is copied), a file that cannot be read, written or is not as it should
                be, or the deadline.  Files that are whole stay.
        """
        with _writing(self.stage):
            self.stage.mkdir(parents=True, exist_ok=True)
        self._room(wanted)
        return {one.source: self._copy(one) for one in wanted}

    def _room(self, wanted: Sequence[Wanted]) -> None:
        missing = {one.key: sum(map(one.size, one.left(self.stage))) for one in wanted}
        self.total, free = sum(missing.values()), shutil.disk_usage(self.stage).free
        if self.total and self.total + SPARE > free:
            parts = ", ".join(f"{key} {_gigabytes(size)}" for key, size in missing.items() if size)
            allowed = f"a disk with {_gigabytes(self.total + SPARE)} free: {parts}, and {_gigabytes(SPARE)} to spare"
            mend = f"it has {_gigabytes(free)}: name a larger disk, clear it, or set {KEY}=null and read the file system"
            raise NodeError(KEY, str(self.stage), allowed, mend)

    def _copy(self, one: Wanted) -> Path:
        target = one.target(self.stage)
        with _writing(target):
            target.mkdir(mode=0o700, exist_ok=True)
        if target.stat().st_uid != os.getuid():
            raise NodeError(KEY, str(target), "a folder of your own", "it is another user's: name another folder")
        with _held(target / ".lock", self.deadline, self.say):
            for part in target.rglob("*.part"):  # of a job that was killed
                part.unlink(missing_ok=True)
            names = one.left(self.stage)
            if names:
                self._copy_files(one, target, sorted(names, key=one.size, reverse=True))
            with _writing(target):
                for name in one.links:
                    _link(one.source / name, target / name)
        return target

    def _copy_files(self, one: Wanted, target: Path, names: Sequence[str]) -> None:
        began, before = time.monotonic(), self.done
        with ThreadPoolExecutor(READERS) as pool:
            running = {pool.submit(self._copy_file, one, name, target) for name in names}
            try:
                while True:
                    ended, running = wait(running, timeout=self.every, return_when=FIRST_EXCEPTION)
                    for each in ended:
                        each.result()
                    if not running:
                        return
                    rate = max(1.0, (self.done - before) / (time.monotonic() - began))
                    left = (self.total - self.done) / rate
                    self.say(f"{one.key}: {_gigabytes(self.done)} of {_gigabytes(self.total)}, {rate / 1e9:.2f} GB/s, "
                             f"{left:,.0f} s to go")  # fmt: skip
                    if time.monotonic() > self.deadline:
                        self._late()
            finally:
                self._stop.set()  # after a failure the others end at their next block
                pool.shutdown(cancel_futures=True)
                self._stop.clear()

    def _late(self) -> None:
        allowed = "minutes that the copy takes on this node"
        mend = f"{_gigabytes(self.done)} of {_gigabytes(self.total)} are there: raise it, or set {KEY}=null"
        raise NodeError(MINUTES, "reached", allowed, mend)

    def _copy_file(self, one: Wanted, name: str, target: Path) -> None:
        source, file = one.source / name, target / name
        part, expected = file.with_name(f"{file.name}.part"), one.size(name)
        digest = hashlib.sha256() if name in one.sha256 else None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            size = 0
            with source.open("rb", buffering=0) as reader, part.open("wb") as writer:
                block = memoryview(bytearray(BLOCK))
                while count := _read(reader, block, one.key, source):
                    if self._stop.is_set():
                        raise _Stopped
                    writer.write(block[:count])
                    if digest is not None:
                        digest.update(block[:count])
                    size += count
                    with self._lock:
                        self.done += count
                writer.flush()
                os.fsync(writer.fileno())
            if size != expected:
                mend = "it changes while it is read, or does not read whole"
                raise NodeError(one.key, f"{source}: {size} bytes read", f"{expected} bytes", mend)
            if digest is not None and digest.hexdigest() != one.sha256[name]:
                allowed = f"{one.sha256[name]}, as prefetch.lock has it"
                mend = "run recipes/prefetch.py again where there is internet"
                raise NodeError(one.key, f"{source}: SHA-256 {digest.hexdigest()}", allowed, mend)
            if file.is_symlink():  # of a job that did not need it
                file.unlink()
            os.replace(part, file)
        except OSError as error:
            mend = f"{error.strerror or error}: make room there, name another disk, or set {KEY}=null"
            raise NodeError(KEY, str(file), f"{expected} bytes that can be written", mend) from error
        finally:
            part.unlink(missing_ok=True)


class _Stopped(Exception):
    """Another file could not be copied."""


def _read(reader, block: memoryview, key: str, source: Path) -> int:
    with _reading(key, source):
        return reader.readinto(block)


def _is_whole(file: Path, size: int) -> bool:
    return file.is_file() and not file.is_symlink() and file.stat().st_size == size


def _link(source: Path, file: Path) -> None:
    if not file.is_symlink() and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(source.resolve())


@contextlib.contextmanager
def _held(file: Path, deadline: float, say: Callable[[str], None]) -> Iterator[None]:
    """The lock of a copy, which ends with its holder; another job of this node that stages the same is waited for."""
    with _writing(file):
        handle = file.open("w")
    with handle:
        said = False
        while not _locked(handle):
            if not said:
                say(f"another job of this node copies to {file.parent}: waiting for it")
            said = True
            if time.monotonic() > deadline:
                mend = "raise it, or end what holds the lock (lsof)"
                raise NodeError(MINUTES, "reached", f"minutes in which {file} becomes free", mend)
            time.sleep(0.5)
        yield


def _locked(handle) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _reading(key: str, file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = "look at the file from another node: the file system, or this node's link to it, may be ill"
        raise NodeError(key, f"{file}: {error.strerror or error}", "a file that can be read", mend) from error


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = f"{error.strerror or error}: name a folder on the node's own disk that this account may write"
        raise NodeError(KEY, str(path), "a path that can be written", mend) from error


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
