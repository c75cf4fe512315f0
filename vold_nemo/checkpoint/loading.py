"""Checkpoints of a run, as they lie on disk: checked before they are read.  saving.py writes them.

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
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from vold_nemo.checkpoint.optimizer_state import sharded_state, take_up
from vold_nemo.checkpoint.sharded import load_model, load_shards, model_state, set_model
from vold_nemo.config import CheckpointConfig, ConfigError
from vold_nemo.megatron import device as devices

logger = logging.getLogger(__name__)

FORMAT = 1
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
    """The newest checkpoint whose every byte is as it was written, or None.  Collective where ranks are many.

    One that is torn or corrupt is named in a warning with what is wrong with it, and the next older one is tried.
    """
    names = [path.name for path in complete_checkpoints(Path(folder))]
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


def load(path: str | Path, into: TrainingState, *, reshard: bool | str = False) -> tuple[int, dict[str, Any]]:
    """Take up a run where :func:`saving.write` left it; returns ``(step, extra of this rank)``.  Collective.

    Bit for bit on the layout that wrote it; another one is a :class:`ConfigError`, unless ``reshard`` (``auto``: where no more
    differs than how many data ranks there are, as when a node is lost): then weights, optimizer
    and schedule are taken over exactly, and ``extra`` is rank 0's, but random states start anew (they belong to ranks), and
    sums over other shards round otherwise.  Not between a distributed optimizer and a plain one: megatron-core writes the two
    in different forms.
    """
    path = Path(path)
    manifest = read_manifest(path)
    before, now = {"context": 1, **manifest["layout"]}, describe_layout(into.layout)
    if before != now and not may_reshard(before, now, reshard):
        raise ConfigError(
            "parallel", now, f"{manifest['layout']}, which wrote {path}",
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
    mine = torch.load(path / "ranks" / f"rank_{into.layout.rank if before == now else 0}.pt", weights_only=True)
    take_up(into.optimizer, loaded["optimizer"], mine["adam_steps"])
    into.schedule.load_state_dict(mine["schedule"])
    if before == now:
        set_random_state(mine["random"])
    elif into.layout.rank == 0:
        logger.warning("%s was written by %s and is read by %s: random states start anew", path, before, now)
    return manifest["step"], mine["extra"]


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


def describe_file(path: Path, checksum: str | None = None) -> dict[str, Any]:
    """Bytes and SHA-256 of a file, which is read for it where its ``checksum`` is not known yet."""
    if checksum is None:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": checksum}


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
