"""One run, one folder, one writer: ``run.lock`` in the run's folder, on whatever file system that is, seen from any node.

    {"id": ..., "host": ..., "boot": ..., "names": ..., "process": ..., "started": ..., "job": ..., "restart": ...,
     "since": ...}

The file is made complete under another name and linked to its own, which one of several can do, on NFS and Lustre as well; that
of a dead process is replaced by whoever made a claim on it in the same way.  Locks of the operating system are not asked for,
since many clusters mount without them.  A thread touches it every few seconds, which takes no room on a full disk.  Whether a
holder lives is known at once on its own node (process and the tick it started at), from Slurm where the job is over or has been
requeued, and else by waiting for a touch: times of change are compared with each other and never with a clock, so nodes may
disagree about the time.

What a holder has lost (it was stopped for minutes, and another process took over) it notices before it next writes
(:func:`still_ours`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vold_nemo.config import ConfigError

logger = logging.getLogger(__name__)

FILE = "run.lock"
BEAT = 10.0  # seconds between two touches
PATIENCE = 120.0  # seconds without one after which a holder on another node is dead; NFS may show a touch a minute late
_LOOK = 2.0
_CLAIM = 30.0  # seconds that a take-over may last; it takes milliseconds
_OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}

_current: Lock | None = None


@contextlib.contextmanager
def held(folder: Path, rank: int) -> Iterator[None]:
    """Nobody else writes into ``folder`` within this block.  Collective: rank 0 holds the lock, and all ranks fail together.

    :raises ConfigError: a living process holds it, or the folder cannot be written.
    """
    lock, told = Lock(folder) if rank == 0 else None, [None]
    if lock is not None:
        try:
            lock.take()
        except ConfigError as error:
            told = [(error.key, error.value, error.allowed, error.mend)]
    if dist.is_initialized():
        dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        raise ConfigError(*told[0])
    global _current
    _current = lock
    try:
        yield
    finally:
        _current = None
        if lock is not None:
            lock.release()


def still_ours() -> None:
    """Called by the process that holds a lock, if it does, before it writes.

    :raises ConfigError: another process has taken the folder over.
    """
    if _current is not None:
        _current.check()


class Lock:
    """The lock of ``folder``; ``who``: what it says of its holder (None = of this process)."""

    def __init__(self, folder: Path, who: Mapping[str, Any] | None = None):
        self.file = Path(folder) / FILE
        self.me = dict(who if who is not None else this_process())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def take(self) -> None:
        """
        :raises ConfigError: a living process holds it, or the folder cannot be written.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            while not self._make(self.file):
                if self.file.exists() and self._take_over(self._unless_alive()):
                    break
        except OSError as error:
            mend = f"{error.strerror or error}: give another path, or make room and permission"
            raise ConfigError("outputs", str(self.file), "a path that can be written", mend) from error
        self._thread.start()

    def release(self) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(timeout=BEAT)
        if _read(self.file).get("id") == self.me["id"]:
            with contextlib.suppress(OSError):
                self.file.unlink()

    def check(self) -> None:
        other = _read(self.file)
        if other.get("id", self.me["id"]) != self.me["id"]:  # one that is gone or torn is nobody's
            raise ConfigError(
                "outputs", str(self.file.parent), "a run folder that no other process writes into",
                f"it was taken over by {words(other)} while this process gave no sign of life: this one stops",
            )  # fmt: skip

    def _make(self, file: Path) -> bool:
        """Whether ``file`` was not there, and says now who we are: of several who try at once, one makes it."""
        aside = self._aside()
        try:
            try:
                os.link(aside, file)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                try:
                    with file.open("x", encoding="utf-8") as opened:
                        opened.write(json.dumps(self.me) + "\n")
                except FileExistsError:
                    return False
            return True
        finally:
            aside.unlink(missing_ok=True)

    def _aside(self) -> Path:
        aside = self.file.with_name(f"{FILE}.{self.me['id']}")
        aside.write_text(json.dumps(self.me) + "\n", encoding="utf-8")
        return aside

    def _unless_alive(self) -> tuple[dict[str, Any], str]:
        """The holder, and how it is known to be dead.

        :raises ConfigError: it is alive.
        """
        other = _read(self.file)
        dead = self._dead(other)
        if dead is None:
            raise ConfigError(
                "outputs", str(self.file.parent), f"a run folder that no other process writes into; {words(other)} does",
                f"wait for it, end it, or name another run (sft.run, vold.run); if it is surely dead, remove {self.file}",
            )  # fmt: skip
        return other, dead

    def _dead(self, other: dict[str, Any]) -> str | None:
        """Why the holder ``other`` is dead; None if it lives."""
        if other and all(other.get(key) == self.me[key] for key in ("host", "boot", "names")):
            return None if _runs(other) else "its process is gone"
        if other.get("job") is not None and other["job"] == self.me["job"] and other.get("restart", 0) < self.me["restart"]:
            return f"job {other['job']} has been requeued since"
        if over := _job_over(other.get("job"), other.get("cluster")):
            return over
        if _touched(self.file) is None:
            return "it has ended"
        logger.warning("%s holds %s: waiting up to %.0f s for a sign of life", words(other), self.file, PATIENCE)
        seen, until = _touched(self.file), time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(min(_LOOK, PATIENCE / 4))
            if (now := _touched(self.file)) != seen:
                if now is None:  # released
                    return "it has ended"
                return None
        return f"no sign of life for {PATIENCE:.0f} s"

    def _take_over(self, found: tuple[dict[str, Any], str]) -> bool:
        """Whether the lock of the dead is ours now.

        Who makes the claim on it, a file of the dead one's name, may put the own lock into its place, in one step: it is never
        away, so that no third can make one meanwhile, and nobody else replaces that of a living process.
        """
        other, why = found
        claim = self.file.with_name(f"{FILE}.after.{hashlib.sha256(str(other.get('id')).encode()).hexdigest()[:16]}")
        if not self._make(claim):  # another is about to, or died on the way
            seen, until = _touched(claim), time.monotonic() + _CLAIM
            while seen is not None and _touched(claim) == seen:
                if time.monotonic() > until:
                    claim.unlink(missing_ok=True)
                time.sleep(0.05)
            return False
        try:
            if not self.file.exists() or _read(self.file).get("id") != other.get("id"):
                return False  # another was first, or it was released
            logger.warning("%s is taken over from %s: %s", self.file, words(other), why)
            self._aside().replace(self.file)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):
                if _read(self.file).get("id") == self.me["id"]:
                    os.utime(self.file)


def this_process() -> dict[str, Any]:
    restart = os.environ.get("SLURM_RESTART_COUNT", "")
    return {
        "id": uuid.uuid4().hex, "host": socket.gethostname(), "boot": _text("/proc/sys/kernel/random/boot_id"),
        "names": _link("/proc/self/ns/pid"), "process": os.getpid(), "started": _started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"), "cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "restart": int(restart) if restart.isdigit() else 0, "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def words(who: Mapping[str, Any]) -> str:
    """``process 7 on node3 (job 12) since 2026-01-01T00:00:00+00:00``."""
    if not who:
        return "an unknown process"
    job = f" (job {who['job']})" if who.get("job") else ""
    return f"process {who.get('process')} on {who.get('host')}{job} since {who.get('since')}"


def _read(file: Path) -> dict[str, Any]:
    """What the lock says; empty where it is not there or says nothing."""
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(1 << 16))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("restart", 0), int) else {}


def _touched(file: Path) -> int | None:
    """When the file was last touched, as its server has it: opening asks it, a stat alone may be answered from a cache."""
    try:
        with file.open("rb") as opened:
            return os.fstat(opened.fileno()).st_mtime_ns
    except OSError:
        return None


def _runs(who: Mapping[str, Any]) -> bool:
    """Whether the process, of this node, is there and the one that was meant."""
    number = who.get("process")
    if not isinstance(number, int) or number <= 0:
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return _started(number) == who.get("started")


def _started(process: int) -> int | None:
    """The tick at which a process started; None where it cannot be asked, or the process is a zombie."""
    stat = _text(f"/proc/{process}/stat")
    after = stat.rpartition(")")[2].split()  # its name may hold blanks and brackets
    return int(after[19]) if len(after) > 19 and after[0] not in "ZX" else None


def _job_over(job: Any, cluster: Any) -> str | None:
    """That Slurm says so, of a job of this cluster; None where it does not, or cannot be asked."""
    if not isinstance(job, str) or not job.isdigit() or cluster != os.environ.get("SLURM_CLUSTER_NAME"):
        return None
    ask = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    try:
        asked = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    states = set(asked.stdout.split())
    gone = (asked.returncode == 0 and not states) or "Invalid job id" in asked.stderr
    return f"Slurm's job {job} is over" if gone or (states and states <= _OVER) else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
