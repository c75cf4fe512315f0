"""Writing checkpoints: a snapshot while training waits, then its files, in a thread while training goes on.

    write(folder, step, state, ...)          both, one after the other
    with Writer(later=True) as writer:
        writer.save(folder, step, state, ...)  training waits for the copy to host memory; the rest is the thread's

What a thread has to agree upon with the other ranks' threads goes through a gloo group of its own: it never meets a
collective of training.  Files are written aside, the folder renamed when every rank's are on disk, ``latest`` moved last; a run
that is killed at any moment leaves the checkpoint before (loading.py says what lies where).
"""

from __future__ import annotations

import io
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vold_nemo.checkpoint.loading import (
    Retention,
    TrainingState,
    complete_checkpoints,
    describe_layout,
    random_state,
    step_of,
)
from vold_nemo.checkpoint.optimizer_state import sharded_state
from vold_nemo.checkpoint.run_lock import still_ours
from vold_nemo.checkpoint.sharded import Staged, model_state
from vold_nemo.config import manifest
from vold_nemo.config.manifest import FORMAT, describe_file
from vold_nemo.config.writing import replace_text, sync
from vold_nemo.megatron.optimizer import steps_taken
from vold_nemo.megatron.pinned import Room

logger = logging.getLogger(__name__)

_PATIENCE = timedelta(hours=1)  # of a rank's thread with the slowest disk among the others'
_RANK_IN_NAME = re.compile(r"(?:__|rank_)(\d+)[_.]")  # shards/__3_0.distcp, ranks/rank_3.pt


class CheckpointNotWritten(OSError):
    """A rank could not write its part (disk full, quota, permissions); the checkpoints before it are untouched."""


class Snapshot:
    """What a checkpoint of ``step`` holds, at the moment this is made.  Making one is collective; so is :meth:`write`.

    Args:
        folder: of all checkpoints of the run, on storage that all ranks share.
        state: of training, as it is now.
        extra: this rank's own state (data position, engine seed, ...): tensors, numbers, strings, lists and dicts of these,
            as ``torch.load(weights_only=True)`` reads back.
        metric: what the manifest notes, for ``retention.best``.
        retention: which checkpoints stay once this one is there.
        notes: {name: text} of files that rank 0 puts beside the manifest, which covers them.
        room: training goes on before :meth:`write`: this rank's part is copied into host memory of this.
        checked: a checkpoint of this very state has been made before (:class:`sharded.Staged`).

    Raises:
        CheckpointNotWritten: on every rank, if one of them could not write.
    """

    def __init__(
        self, folder: str | Path, step: int, state: TrainingState, *, retention: Retention,
        extra: dict[str, Any] | None = None, metric: float | None = None, room: Room | None = None, checked: bool = False,
        notes: Mapping[str, str] | None = None,
    ):  # fmt: skip
        self.step, self.rank = step, state.layout.rank
        self.final = Path(folder) / f"step_{step}"
        self.aside = self.final.with_name(self.final.name + ".tmp")
        self._retention, self._notes = retention, notes or {}
        self._says = {"format": FORMAT, "step": step, "layout": describe_layout(state.layout), "metric": metric}
        mine = {
            "random": random_state(), "schedule": state.schedule.state_dict(), "adam_steps": steps_taken(state.optimizer),
            "extra": extra or {},
        }  # fmt: skip
        self._mine = io.BytesIO()
        torch.save(mine, self._mine)
        self._staged: Staged | None = None
        self._checksums: dict[str, str] = {}  # of files in shards/ that this rank wrote, summed up on their way

        def stage() -> None:
            weights = model_state(state.model)
            optimizer = sharded_state(state.optimizer, weights)
            self._staged = Staged({"model": weights, "optimizer": optimizer}, room=room, checked=checked)

        self._together(self._make_room)
        self._together(stage)

    def write(self, group=None) -> Path:
        """The folder ``step_<step>``, complete and on disk; then those that no rule keeps are dropped.

        Once only.  Saving a step again replaces it.  ``group`` carries the collectives: see :meth:`sharded.Staged.write`.
        """
        self._together(self._write_own, group)
        self._together(lambda: self._write_shards(group), group)
        self._staged = None
        files = {name: entry for part in self._together(self._describe_mine, group) for name, entry in part.items()}
        self._together(lambda: self._publish(files), group)
        return self.final

    def _make_room(self) -> None:
        if self.rank == 0:
            for left_over in self.final.parent.glob("step_*.tmp*"):
                shutil.rmtree(left_over)
            (self.aside / "shards").mkdir(parents=True)
            (self.aside / "ranks").mkdir()

    def _write_own(self) -> None:
        if self.rank == 0:
            self._staged.write_common(self.aside / "shards")
            for name, text in self._notes.items():
                (self.aside / name).write_text(text, encoding="utf-8")
        (self.aside / "ranks" / f"rank_{self.rank}.pt").write_bytes(self._mine.getbuffer())

    def _write_shards(self, group) -> None:
        self._checksums = self._staged.write(self.aside / "shards", group)

    def _describe_mine(self) -> dict[str, dict[str, Any]]:
        """The manifest's entries of the files this rank wrote (rank 0: and of those that are common), now on disk.

        A rank looks only for its own: over a network file system others' new files may show late.
        """
        described = {}
        for path in self.aside.rglob("*"):
            writer = _RANK_IN_NAME.search(path.name)
            if path.is_file() and int(writer[1] if writer else 0) == self.rank:
                sync(path)
                known = self._checksums.get(path.name) if path.parent.name == "shards" else None
                described[str(path.relative_to(self.aside))] = describe_file(path, known)
        return described

    def _publish(self, files: dict[str, dict[str, Any]]) -> None:
        if self.rank != 0:
            return
        still_ours()
        folder = self.final.parent
        said = {**self._says, "files": dict(sorted(files.items()))}
        replace_text(self.aside / manifest.FILE, manifest.text(said), durable=True)
        for below in ("shards", "ranks", "."):
            sync(self.aside / below)
        replaced = [_set_aside(self.final)] if self.final.exists() else []
        self.aside.rename(self.final)
        sync(folder)
        replace_text(folder / "latest", self.final.name + "\n", durable=True)
        there = complete_checkpoints(folder)
        for later in [path for path in there if step_of(path) > self.step]:
            logger.warning("%s is of a step that this run, started before it, has not done: put aside", _out_of_the_way(later))
        there = [path for path in there if step_of(path) <= self.step]
        kept = self._retention.kept(there)
        for old in [*replaced, *(_set_aside(old) for old in there if old not in kept)]:
            shutil.rmtree(old)

    def _together(self, work: Callable[[], Any], group=None) -> list:
        """Do this rank's part; returns what all ranks' parts gave, by rank.  Collective over ``group``.

        If any rank failed in its own, all raise :class:`CheckpointNotWritten` (for an error that has nothing to do with disks:
        the rank itself that, the others a RuntimeError): a rank that stopped alone would leave its peers in the next
        collective.  What was written aside is then removed: on a full disk it takes the room that the next attempt needs.
        """
        from torch.distributed.checkpoint import CheckpointException

        result, problem, surprise = None, None, None
        try:
            result = work()
        except (OSError, RuntimeError, CheckpointException) as error:  # torch reports a short write as a RuntimeError
            problem = f"rank {self.rank}: {(str(error).strip() or repr(error)).splitlines()[-1]}"
        except Exception as error:
            surprise, problem = error, f"rank {self.rank}: {error!r}"
        told: list = [None] * dist.get_world_size()
        dist.all_gather_object(told, (result if problem is None else None, problem, surprise is not None), group=group)
        problems = [text for _, text, _ in told if text is not None]
        if problems:
            if self.rank == 0:
                shutil.rmtree(self.aside, ignore_errors=True)
            dist.barrier(group=group)
            said = f"checkpoint of step {self.step} not written: {'; '.join(problems[:4])}"
            if any(surprised for *_, surprised in told):
                raise surprise or RuntimeError(said)
            raise CheckpointNotWritten(said)
        return [result for result, *_ in told]


def write(folder: str | Path, step: int, state: TrainingState, **options: Any) -> Path:
    """Write ``folder/step_<step>`` and come back when it is there.  Collective.  Arguments and errors: :class:`Snapshot`."""
    return Snapshot(folder, step, state, **options).write()


class Writer:
    """Saves a run's checkpoints, one at a time.  Entering the ``with`` is collective; so is every call.

    ``later``: a save returns once the state is copied, and a thread of each rank writes it.  One that cannot be written is
    said aloud by rank 0, and the run goes on: that is for the caller to want or not, by ``wait``.
    """

    def __init__(self, later: bool):
        self._later = later
        self._group = None
        self._room = Room()
        self._checked = False
        self._thread: threading.Thread | None = None
        self._began = 0.0
        self._longest = 0.0  # seconds of a write
        self._surprise: Exception | None = None  # of the thread: neither a full disk nor the like

    @property
    def measured(self) -> bool:
        """Whether a checkpoint has been written, and it is known how long that takes."""
        return self._longest > 0

    @property
    def ahead(self) -> float:
        """Seconds that a save with ``wait`` would take now, beyond what training has waited for saves so far.

        That is the rest of the write that is under way, and another one.
        """
        if not self._later:
            return 0.0
        writing = self._thread is not None and self._thread.is_alive()
        gone = time.monotonic() - self._began if writing else self._longest
        return max(self._longest, gone) + max(0.0, self._longest - gone)

    def save(self, folder: str | Path, step: int, state: TrainingState, *, wait: bool, **options: Any) -> None:
        """Write a checkpoint, after the one before it is done.

        ``wait``: it is there when this returns, or :class:`CheckpointNotWritten` is raised, on every rank; without it, too,
        where nothing is written later.  ``options``: as :class:`Snapshot` has them.
        """
        self._join()
        if not wait:
            self._raise_surprise()
        later = self._later and not wait
        room = self._room if later else None
        snapshot = Snapshot(folder, step, state, room=room, checked=self._checked, **options)
        self._checked = True  # shapes and layout of a run do not change
        self._began = time.monotonic()
        if not later:
            snapshot.write()
            self._longest = max(self._longest, time.monotonic() - self._began)
            self._raise_surprise()  # only now: it concerns another checkpoint, and this one is needed
            return
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name=f"checkpoint {step}", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Wait for the write that is under way."""
        self._join()
        self._raise_surprise()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise_surprise(self) -> None:
        if self._surprise is not None:
            surprise, self._surprise = self._surprise, None
            raise surprise

    def _write(self, snapshot: Snapshot) -> None:
        try:
            path = snapshot.write(self._group)
            if snapshot.rank == 0:
                logger.info("%s written in %.1f s while training went on", path, time.monotonic() - self._began)
        except CheckpointNotWritten as error:
            if snapshot.rank == 0:
                logger.error("%s; the ones before it are kept, and the run goes on", error)
        except Exception as error:
            self._surprise = error
        self._longest = max(self._longest, time.monotonic() - self._began)

    def __enter__(self) -> Writer:
        if self._later:
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Every rank's thread needs the others' to end its write: one that leaves for an error of its own waits, too."""
        if kind is None:
            self.settle()
            return
        self._join()
        if self._surprise is not None:
            logger.error("the checkpoint that was being written is lost: %s", self._surprise)


def _set_aside(path: Path) -> Path:
    """Rename a checkpoint that is to be deleted: a half-deleted one never bears a complete one's name."""
    return path.rename(path.with_name(path.name + ".tmp_old"))


def _out_of_the_way(path: Path) -> Path:
    """Rename a checkpoint that is no longer one of this run's, and is nobody's to delete but a person's."""
    name = path.with_name(path.name + ".left")
    while name.exists():
        name = name.with_name(name.name + "_")
    return path.rename(name)
