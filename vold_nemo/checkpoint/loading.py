"""Checkpoints of a run, as they lie on disk: checked before they are read.  saving.py writes them.

    checkpoints/
      step_50/
        shards/            model and optimizer, every rank its own (sharded.py), and where each piece lies (index.py)
        ranks/rank_0.pt    random states, schedule and the caller's state of each rank
        attempt.json       who wrote it under which configuration (attempts.py)
        manifest.json      step, layout, size and SHA-256 of every file, and its own digest (config/manifest.py)
      latest               name of the newest; written last, for people and scripts: the folders are the truth

A folder named ``step_N`` is complete: it was renamed from ``step_N.tmp`` after every byte was on disk.
"""

from __future__ import annotations

import logging
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from vold_nemo.checkpoint.optimizer_state import sharded_state, take_up
from vold_nemo.checkpoint.sharded import load_model, load_shards, model_state, read_data, set_model
from vold_nemo.config import CheckpointConfig, ConfigError, manifest
from vold_nemo.config.manifest import Damaged, describe_file, shown
from vold_nemo.megatron import device as devices

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step_(\d+)$")


@dataclass(frozen=True)
class TrainingState:
    """What steps change, and how it lies on the ranks."""

    model: Any
    optimizer: Any
    schedule: Any
    layout: Any


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest ``keep``, each whose step is a multiple of ``every``, and the ``best`` with the lowest
    (``highest``: highest) metric."""

    keep: int
    every: int = 0
    best: int = 0
    highest: bool = False

    @classmethod
    def of(cls, config: CheckpointConfig) -> Retention:
        return cls(config.keep, config.keep_every, config.keep_best, highest=config.metric_best == "max")

    def kept(self, complete: list[Path]) -> set[Path]:
        """Of the ``complete`` ones, newest first.  The newest always stays."""
        kept = set(complete[: max(1, self.keep)])
        if self.every:
            kept |= {path for path in complete if step_of(path) % self.every == 0}
        if self.best:
            scores = {path: score for path in complete if (score := _metric(path)) is not None}
            kept |= set(sorted(scores, key=scores.__getitem__, reverse=self.highest)[: self.best])
        return kept


def _metric(path: Path) -> float | None:
    """What a checkpoint was judged by; None if it was not, or not by a number, or its manifest cannot be read."""
    try:
        value = read_manifest(path).get("metric")
    except (OSError, ValueError):
        return None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def find_latest(folder: str | Path) -> Path | None:
    """The newest checkpoint whose every byte is as it was written; None if there is none of any kind.  Collective where ranks
    are many.

    One that is torn or corrupt is named in a warning with what is wrong with it, and the next older one is tried.

    :raises ConfigError: there are checkpoints, and all of them are damaged: to begin again is not what anybody asked for.
    """
    found, damaged = newest(folder)
    if found is None and damaged:
        raise ConfigError(
            "checkpoint", "; ".join(f"{path}: {shown(said)}" for path, said in damaged.items()), "one that is whole",
            "restore one of them from a copy; or checkpoint.resume=never begins again at step 0 and drops what is there",
        )  # fmt: skip
    for path, said in damaged.items():
        logger.warning("checkpoint %s is damaged and is passed over: %s", path, shown(said))
    return found


def chosen(folder: Path, step: int | None) -> Path | None:
    """The checkpoint of ``step``, or the newest (None = there is none of any kind), if it is whole.  Collective.

    :raises ConfigError: it is damaged, or not there: an older one is not taken in silence.
    """
    if step is not None:
        path = folder / f"step_{step}"
        if said := (verify(path) if path.is_dir() else ["there is no such folder"]):
            there = ", ".join(str(step_of(one)) for one in complete_checkpoints(folder)) or "none"
            raise ConfigError("export.step", step, f"a whole checkpoint in {folder} ({there}); {shown(said)}", "choose another")
        return path
    found, damaged = newest(folder)
    if damaged:
        path, said = next(iter(damaged.items()))
        older = f"export.step={step_of(found)} takes the newest that is whole" if found else "all others are damaged, too"
        raise ConfigError("export.run", f"{path}, which is damaged: {shown(said)}", "a whole newest checkpoint",
                          f"restore it from a copy; {older}")  # fmt: skip
    return found


def newest(folder: str | Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """The newest whole checkpoint (None = there is none), and what is wrong with each that is newer.  Collective."""
    names = [path.name for path in complete_checkpoints(Path(folder))]
    if dist.is_initialized():
        agreed = [names]
        dist.broadcast_object_list(agreed, src=0)
        names = agreed[0]
    damaged: dict[Path, list[str]] = {}
    for name in names:
        path = Path(folder) / name
        if not (said := verify(path)):
            return path, damaged
        damaged[path] = said
    return None, damaged


def verify(path: str | Path) -> list[str]:
    """What is wrong with a checkpoint folder; empty if nothing.  Collective: the ranks share out the checksums."""
    path, problems = Path(path), []
    expected: dict[str, dict[str, Any]] = {}
    try:
        said = read_manifest(path)
        expected = said["files"]
        problems = manifest.misfits(path, expected)
    except Damaged as error:
        problems = [str(error)]
    except OSError as error:
        problems = [f"{error.filename}: {error.strerror}"]
    if dist.is_initialized():  # every rank must see the same, or some would wait below for others that do not come
        seen: list = [None] * dist.get_world_size()
        dist.all_gather_object(seen, problems)
        problems = sorted({problem for rank in seen for problem in rank})
    if problems:
        return problems
    found = _checksums(path, sorted(expected))
    return [f"{name}: checksum differs" for name, entry in expected.items() if found[name] != entry]


def read_manifest(path: str | Path) -> dict[str, Any]:
    """What ``path`` says of itself.

    :raises Damaged: nothing that can be believed, or another step than the folder is named after.
    """
    path = Path(path)
    found = manifest.read(path)
    if (type(found.get("step")) is not int or f"step_{found['step']}" != path.name) and _STEP.match(path.name):
        raise Damaged(f"{manifest.FILE}: of step {found.get('step')!r}, in a folder named {path.name}")
    if not isinstance(found.get("layout"), dict):
        raise Damaged(f"{manifest.FILE}: no layout")
    return found


def load(path: str | Path, into: TrainingState, *, reshard: bool | str = False) -> tuple[int, dict[str, Any]]:
    """Take up a run where :func:`saving.write` left it; returns ``(step, extra of this rank)``.  Collective.

    Bit for bit on the layout that wrote it; another one is a :class:`ConfigError`, unless ``reshard`` (``auto``: where no more
    differs than how many data ranks there are, as when a node is lost): then weights, optimizer
    and schedule are taken over exactly, and ``extra`` is rank 0's, but random states start anew (they belong to ranks), and
    sums over other shards round otherwise.  Not between a distributed optimizer and a plain one: megatron-core writes the two
    in different forms.
    """
    path = Path(path)
    known = read_manifest(path)
    before, now = {"context": 1, **known["layout"]}, describe_layout(into.layout)
    if before != now and not may_reshard(before, now, reshard):
        raise ConfigError(
            "parallel", now, f"{known['layout']}, which wrote {path}",
            "resume with that layout, or set checkpoint.reshard=true (random states start anew; auto is for other data ranks "
            "alone), or export the checkpoint and start a new run from the exported weights",
        )
    weights = model_state(into.model)
    state = {
        "model": weights,
        "optimizer": sharded_state(into.optimizer, weights, loading=True),
    }
    loaded = load_shards(state, path / "shards")
    set_model(into.model, loaded["model"])
    mine = read_data(path / "ranks" / f"rank_{into.layout.rank if before == now else 0}.pt")
    take_up(into.optimizer, loaded["optimizer"], mine["adam_steps"])
    into.schedule.load_state_dict(mine["schedule"])
    if before == now:
        set_random_state(mine["random"])
    elif into.layout.rank == 0:
        logger.warning("%s was written by %s and is read by %s: random states start anew", path, before, now)
    return known["step"], mine["extra"]


def may_reshard(before: dict[str, Any], now: dict[str, Any], reshard: bool | str) -> bool:
    """Whether a run of layout ``before`` may go on in ``now``; batches are of the whole world, so neither changes them."""
    alike = all(before.get(name) == now.get(name) for name in {*before, *now} - {"data"})
    return reshard in (True, "true") or (reshard == "auto" and alike)


def load_weights(path: str | Path, *, model) -> None:
    """Only the model of a checkpoint, into any tensor x pipeline layout.  Collective."""
    load_model(model, Path(path) / "shards")


def describe_layout(layout) -> dict[str, Any]:
    """The part of a layout that a resumed run must share."""
    return {
        "tensor": layout.tensor, "pipeline": layout.pipeline, "data": layout.data, "sequence": layout.sequence,
        "context": layout.context, **({"virtual": layout.virtual} if layout.virtual > 1 else {}),
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
    if (own := devices.random_state()) is not None:
        state["cuda"] = own
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
        devices.set_random_state(state["cuda"])


def _checksums(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of each file, the files dealt out over the ranks; the result is the same on all of them."""
    many = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
    mine = {name: describe_file(folder / name) for name in names[rank::world]}
    if not many:
        return mine
    parts: list = [None] * world
    dist.all_gather_object(parts, mine)
    merged = {name: entry for part in parts for name, entry in part.items()}
    return {name: merged[name] for name in names}


def step_of(path: Path) -> int:
    return int(_STEP.match(path.name)[1])


def complete_checkpoints(folder: Path) -> list[Path]:
    """Folders named step_N, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step_*") if (match := _STEP.match(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
