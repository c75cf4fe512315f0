"""Sharded weights that nobody wrote: the index of a checkpoint as a layout's ranks write it, and a reader of fake tensors."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future

from vold_nemo.checkpoint import index, shard_files, shard_stream
from vold_nemo.checkpoint.shares import owners
from vold_nemo.megatron import build
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.megatron.names import placements
from vold_nemo.megatron.parallel import Layout
from vold_nemo.rehearsal.watch import Watch

Grid = tuple[Sequence[int], Sequence[int]]  # whole shape of a tensor, into how many equal chunks each axis is cut


def grids(arch: Architecture, layout: Layout, padded: int, dtype: torch.dtype) -> dict[str, Grid]:
    """Every tensor that the ranks of ``layout`` write of a model with ``padded`` rows of vocabulary, by its key on disk.

    megatron-core cuts all of them in regular grids, and says so on each rank: any rank will do.
    """
    found = {}
    for piece in shard_stream._pieces(build.build_layer(arch, layout, 0, dtype), 0, arch):
        found[piece.key] = (piece.global_shape, piece.axis_fragmentations)
    for place in placements(arch, layout.tensor, padded):
        if place.layer is None:  # embedding and head are cut by rows, the final norm is whole
            shape = (padded, *place.shapes[0][1:]) if place.split else place.shapes[0]
            found[place.megatron] = (shape, (layout.tensor if place.split else 1, *[1] * (len(shape) - 1)))
    return found


def writers(found: dict[str, Grid], arch: Architecture, layout: Layout) -> dict[tuple[str, int, int], int]:
    """Which of the data ranks that hold the same writes it, by (key, layer or 0, tensor rank): as ``sharded.model_state``."""
    writing: dict[tuple[str, int, int], int] = {}
    for stage, tensor in itertools.product(range(layout.pipeline), range(layout.tensor)):
        layers = [layer for layer in range(arch.layers) if arch.stage_of(layer, layout.pipeline) == stage]
        sizes = {}
        for key, (shape, parts) in found.items():
            stacked = key.startswith("decoder.layers.")
            here = stacked or stage == (0 if key.startswith("embedding.") else layout.pipeline - 1)
            split = any(count > 1 for count in parts[stacked:])
            if here and (split or tensor == 0) and ".experts." not in key:
                size = math.prod(shape[stacked:]) // (layout.tensor if split else 1)
                sizes |= {(key, layer, tensor): size for layer in (layers if stacked else [0])}
        writing |= zip(sizes, owners(list(sizes.values()), layout.data * layout.context), strict=True)
    return writing


def chunks(
    key: str, grid: Grid, arch: Architecture, layout: Layout, writing: dict[tuple[str, int, int], int]
) -> Iterator[tuple[ChunkStorageMetadata, int]]:
    """Chunks of one tensor, each with the rank that writes it (of an expert's copies the first data rank)."""
    shape, parts = grid
    sizes = tuple(size // count for size, count in zip(shape, parts, strict=True))
    stacked = key.startswith("decoder.layers.")
    axis = max((axis for axis, count in enumerate(parts) if count > 1 and axis >= stacked), default=None)
    stage = 0 if key.startswith("embedding.") else layout.pipeline - 1
    for at in itertools.product(*map(range, parts)):
        stage = arch.stage_of(at[0], layout.pipeline) if stacked else stage
        tensor = 0 if axis is None else at[axis] % layout.tensor
        data = writing.get((key, at[0] if stacked else 0, tensor), 0)
        rank = stage * (layout.world // layout.pipeline) + data * layout.tensor + tensor
        yield ChunkStorageMetadata(torch.Size(map(math.prod, zip(at, sizes, strict=True))), torch.Size(sizes)), rank


def write_index(arch: Architecture, layout: Layout, padded: int, dtype: torch.dtype, folder: Path) -> None:
    """All of a checkpoint but its tensors' files into ``folder``: the index, what is common to all ranks, the format."""
    tensors, places, ends = {}, {}, Counter[int]()
    every = grids(arch, layout, padded, dtype)
    writing = writers(every, arch, layout)
    for key, grid in every.items():
        found = list(chunks(key, grid, arch, layout, writing))
        tensors[key] = TensorStorageMetadata(TensorProperties(dtype), torch.Size(grid[0]), [chunk for chunk, _ in found])
        for number, (chunk, rank) in enumerate(found):
            size = math.prod(chunk.sizes) * dtype.itemsize
            places[MetadataIndex(key, chunk.offsets, number)] = _StorageInfo(f"__{rank}_0.distcp", ends[rank], size)
            ends[rank] += size
    index.write(Metadata(tensors, None, places), folder)
    torch.save({}, folder / COMMON_STATE_FNAME)
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class Reader(shard_files.Reader):
    """torch's reader of files, up to the file: in place of what it would hold stands a fake tensor of the host.

    Args:
        counted: file: bytes read of it.
        begins: told the key of each first tensor.
    """

    def __init__(self, folder: Path, watch: Watch, counted: Counter[str], begins: Callable[[str], None]):
        super().__init__(folder)
        self._watch, self._counted, self._begins = watch, counted, begins

    def read_data(self, plan, planner) -> Future:
        """As torch 2.13 has it: file by file, each chunk whole, and the last one until the next is read."""
        self._begins(plan.items[0].storage_index.fqn)
        by_file: dict[str, list] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for file, items in by_file.items():
            for item in items:
                known = planner.metadata.state_dict_metadata[item.storage_index.fqn]
                (sizes,) = {chunk.sizes for chunk in known.chunks if chunk.offsets == item.storage_index.offset}
                tensor = self._watch.on_host(sizes, known.properties.dtype)
                self._counted[file] += tensor.nbytes
                tensor = narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths)
                target = planner.resolve_tensor(item).detach()
                target.copy_(tensor)
                planner.commit_tensor(item, target)
        done: Future = Future()
        done.set_result(None)
        return done
