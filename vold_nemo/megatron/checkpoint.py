"""Checkpoints of a run: written aside, renamed when whole, checked before they are read.

    checkpoints/
      step_50/
        shards/            model and optimizer, torch_dist, every rank its own (sharded.py)
        ranks/rank_0.pt    random states, schedule and the caller's state of each rank
        manifest.json      step, layout, size and SHA-256 of every file
      latest               name of the newest; written last, for people and scripts: the folders are the truth

A folder named ``step_N`` is complete: it was renamed from ``step_N.tmp`` after every byte was on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from vold_nemo.config import ConfigError
from vold_nemo.megatron.optimizer import load_state, steps_taken
from vold_nemo.megatron.sharded import load_model, load_shards, model_state, save_shards, set_model

logger = logging.getLogger(__name__)

FORMAT = 1
_STEP = re.compile(r"step_(\d+)$")
# The whole optimizer state in the shape of the parameters: what every layout could read.
_OPTIMIZER_LAYOUT = {"distrib_optim_sharding_type": "fully_reshardable"}


class CheckpointNotWritten(OSError):
    """A rank could not write its part (disk full, quota, permissions); the checkpoints before it are untouched."""


def save(
    folder: str | Path, step: int, *, model, optimizer, schedule, layout, extra: dict[str, Any] | None = None, keep: int,
    keep_every: int = 0, keep_best: int = 0, metric: float | None = None, highest: bool = False,
) -> Path:  # fmt: skip
    """Write ``folder/step_<step>`` and drop those that no rule keeps.  Collective; returns the folder.

    Kept are the newest ``keep``, each whose step is a multiple of ``keep_every``, and the ``keep_best`` with the lowest
    (``highest``: highest) ``metric``, which the manifest notes.  Raises :class:`CheckpointNotWritten` on every rank if one
    of them could not write.

    ``extra`` is this rank's own state (data position, engine seed, ...): tensors, numbers, strings, lists and dicts of
    these, as ``torch.load(weights_only=True)`` reads back.  ``folder`` is on storage that all ranks share.  A run killed at
    any moment leaves the last complete checkpoint; saving the same step again replaces it.
    """
    folder = Path(folder)
    final, aside = folder / f"step_{step}", folder / f"step_{step}.tmp"

    def prepare() -> None:
        if layout.rank == 0:
            for left_over in folder.glob("step_*.tmp*"):
                shutil.rmtree(left_over)
            (aside / "shards").mkdir(parents=True)
            (aside / "ranks").mkdir()

    def write_shards() -> None:
        weights = model_state(model)
        state = optimizer.sharded_state_dict(weights, metadata=_OPTIMIZER_LAYOUT)
        save_shards({"model": weights, "optimizer": state}, aside / "shards")

    def write_rank() -> None:
        mine = {
            "random": random_state(), "schedule": schedule.state_dict(), "adam_steps": steps_taken(optimizer),
            "extra": extra or {},
        }  # fmt: skip
        with (aside / "ranks" / f"rank_{layout.rank}.pt").open("wb") as file:
            torch.save(mine, file)
            file.flush()
            os.fsync(file.fileno())

    def publish() -> None:
        if layout.rank != 0:
            return
        manifest = {"format": FORMAT, "step": step, "layout": describe_layout(layout), "metric": metric, "files": files}
        _write(aside / "manifest.json", json.dumps(manifest, indent=1))
        _sync_folder(aside)
        replaced = _set_aside(final) if final.exists() else None
        aside.rename(final)
        _sync_folder(folder)
        _write(folder / "latest", final.name + "\n")
        kept = retained(_complete(folder), keep=keep, every=keep_every, best=keep_best, highest=highest)
        doomed = [_set_aside(old) for old in _complete(folder) if old not in kept]
        for old in [replaced, *doomed] if replaced else doomed:
            shutil.rmtree(old)

    _together(prepare, step, aside, layout)
    _together(write_shards, step, aside, layout)
    _together(write_rank, step, aside, layout)
    files = _checksums(aside, _files(aside))
    _together(publish, step, aside, layout)
    return final


def _together(work, step: int, aside: Path, layout) -> None:
    """Do this rank's part of a save; if any rank failed in its own, all raise :class:`CheckpointNotWritten`.  Collective.

    A rank that stopped alone would leave its peers in the next barrier.  What was written aside is removed: on a full disk
    it takes the room that the next attempt needs.
    """
    from torch.distributed.checkpoint import CheckpointException

    problem = None
    try:
        work()
    except (OSError, RuntimeError, CheckpointException) as error:  # torch reports a short write as a RuntimeError
        problem = f"rank {layout.rank}: {str(error).strip().splitlines()[-1]}"
    problems: list = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    problems = [text for text in problems if text is not None]
    if problems:
        if layout.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        dist.barrier()
        raise CheckpointNotWritten(f"checkpoint of step {step} not written: {'; '.join(problems[:4])}")


def retained(complete: list[Path], *, keep: int, every: int, best: int, highest: bool) -> set[Path]:
    """Which of the ``complete`` checkpoints (newest first) stay.  The newest always does."""
    kept = set(complete[: max(1, keep)])
    if every:
        kept |= {path for path in complete if int(_STEP.match(path.name)[1]) % every == 0}
    if best:
        scores = {path: score for path in complete if (score := _metric(path)) is not None}
        kept |= set(sorted(scores, key=scores.get, reverse=highest)[:best])
    return kept


def _metric(path: Path) -> float | None:
    """What a checkpoint was judged by; None if it was not, or not by a number, or its manifest cannot be read."""
    try:
        value = read_manifest(path).get("metric")
    except (OSError, ValueError):
        return None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def find_latest(folder: str | Path) -> Path | None:
    """The newest checkpoint whose every byte is as it was written, or None.  Collective where ranks are many.

    One that is torn or corrupt is named in a warning with what is wrong with it, and the next older one is tried.
    """
    names = [path.name for path in _complete(Path(folder))]
    if dist.is_initialized():
        agreed = [names]
        dist.broadcast_object_list(agreed, src=0)
        names = agreed[0]
    for name in names:
        path = Path(folder) / name
        problems = verify(path)
        if not problems:
            return path
        logger.warning("checkpoint %s is damaged and is passed over: %s", path, "; ".join(problems[:5]))
    return None


def verify(path: str | Path) -> list[str]:
    """What is wrong with a checkpoint folder; empty if nothing.  Collective: the ranks share out the checksums."""
    path = Path(path)
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        expected = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"manifest.json: {error}"]
    if manifest["format"] != FORMAT:
        return [f"manifest.json: format {manifest['format']}, this version reads {FORMAT}"]
    present = {name: (path / name).stat().st_size for name in expected if (path / name).is_file()}
    problems = [f"{name}: missing" for name in expected if name not in present]
    problems += [
        f"{name}: {size} bytes instead of {expected[name]['bytes']}"
        for name, size in present.items()
        if size != expected[name]["bytes"]
    ]
    if dist.is_initialized():  # every rank must see the same, or some would wait below for others that do not come
        seen: list = [None] * dist.get_world_size()
        dist.all_gather_object(seen, problems)
        problems = sorted({problem for rank in seen for problem in rank})
    if problems:
        return problems
    found = _checksums(path, sorted(expected))
    return [f"{name}: checksum differs" for name in expected if found[name]["sha256"] != expected[name]["sha256"]]


def read_manifest(path: str | Path) -> dict[str, Any]:
    return json.loads((Path(path) / "manifest.json").read_text())


def load(path: str | Path, *, model, optimizer, schedule, layout, reshard: bool = False) -> tuple[int, dict[str, Any]]:
    """Take up a run where :func:`save` left it; returns ``(step, extra of this rank)``.  Collective.

    Bit for bit on the layout that wrote it; another one is a :class:`ConfigError`, unless ``reshard``: then weights, optimizer
    and schedule are taken over exactly, and ``extra`` is rank 0's, but random states start anew (they belong to ranks), and
    sums over other shards round otherwise.  Not between a distributed optimizer and a plain one: megatron-core writes the two
    in different forms.
    """
    path = Path(path)
    manifest = read_manifest(path)
    before, now = {"context": 1, **manifest["layout"]}, describe_layout(layout)
    if before != now and not reshard:
        raise ConfigError(
            "parallel", now, f"{manifest['layout']}, which wrote {path}",
            "resume with that layout, or set checkpoint.reshard=true (random states start anew), or export the checkpoint and "
            "start a new run from the exported weights",
        )
    weights = model_state(model)
    state = {
        "model": weights,
        "optimizer": optimizer.sharded_state_dict(weights, is_loading=True, metadata=_OPTIMIZER_LAYOUT),
    }
    loaded = load_shards(state, path / "shards")
    set_model(model, loaded["model"])
    mine = torch.load(path / "ranks" / f"rank_{layout.rank if before == now else 0}.pt", weights_only=True)
    load_state(optimizer, loaded["optimizer"], mine["adam_steps"])
    schedule.load_state_dict(mine["schedule"])
    if before == now:
        set_random_state(mine["random"])
    elif layout.rank == 0:
        logger.warning("%s was written by %s and is read by %s: random states start anew", path, before, now)
    return manifest["step"], mine["extra"]


def load_weights(path: str | Path, *, model) -> None:
    """Only the model of a checkpoint, into any tensor x pipeline layout.  Collective."""
    load_model(model, Path(path) / "shards")


def describe_layout(layout) -> dict[str, Any]:
    """The part of a layout that a resumed run must share."""
    return {
        "tensor": layout.tensor, "pipeline": layout.pipeline, "data": layout.data, "sequence": layout.sequence,
        "context": layout.context,
    }


def random_state() -> dict[str, Any]:
    """Every generator of this process: Python, NumPy, torch, the device, Megatron's tracker."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "megatron": {name: value.clone() for name, value in get_cuda_rng_tracker().get_states().items()},
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(dict(state["megatron"]))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _checksums(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of each file, the files dealt out over the ranks; the result is the same on all of them."""
    many = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
    mine = {}
    for name in names[rank::world]:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        mine[name] = {"bytes": (folder / name).stat().st_size, "sha256": digest}
    if not many:
        return mine
    parts: list = [None] * world
    dist.all_gather_object(parts, mine)
    merged = {name: entry for part in parts for name, entry in part.items()}
    return {name: merged[name] for name in names}


def _complete(folder: Path) -> list[Path]:
    """Folders named step_N, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step_*") if (match := _STEP.match(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _set_aside(path: Path) -> Path:
    """Rename a checkpoint that is to be deleted: a half-deleted one never bears a complete one's name."""
    return path.rename(path.with_name(path.name + ".tmp_old"))


def _write(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
