"""Sharded weights as the stream of Hugging Face tensors, without a model: one decoder layer in memory at a time.

A login node that exports a model of 72 billion parameters has no room for all of them.  megatron-core describes each
layer as pieces of global tensors, whoever wrote them, so a layer is described, read, sent on and forgotten before the next.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vold_nemo.checkpoint import sharded
from vold_nemo.megatron import build, weights
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.megatron.names import Placement, placements
from vold_nemo.megatron.parallel import Layout

Read = Callable[[list], None]  # fills the memory that pieces describe


def stream_shards(
    folder: str | Path, arch: Architecture, layout: Layout, dtype: torch.dtype, *, strategy: Any = None
) -> Iterator[tuple[str, Tensor]]:
    """What :func:`weights.stream_hf` yields of a model with the sharded weights in ``folder``, which any layout wrote.

    For one process (``layout`` of one rank).  Memory: one layer, the embedding or the head, and the tensor that is yielded.
    ``strategy``: what reads tensors, as in :func:`sharded.load_shards`.

    :raises ConfigError: before the first tensor, if ``folder`` holds other weights than ``arch`` has.
    """
    # Nothing here asks for gradients.  torch.no_grad as a decorator would hold each tensor until the next one is made.
    folder = Path(folder)
    read = partial(_read, folder=folder, strategy=strategy or sharded.strategy_of(folder))
    pieces = _pieces(build.build_layer(arch, layout, 0, dtype), 0, arch)  # their whole shapes count the other layers
    for place in (place for place in placements(arch, 1, arch.vocabulary) if place.layer is None):
        pieces.append(_piece(place, torch.empty(place.shapes[0], dtype=dtype, device="meta")))
    sharded.check_weights(pieces, folder)
    del pieces
    gc.collect()  # megatron-core's modules hold themselves in cycles
    for layer, group in itertools.groupby(placements(arch, 1, arch.vocabulary), key=lambda place: place.layer):
        if layer is None:
            for place in group:
                yield from _single(place, read, arch, layout, dtype)
        else:
            yield from _layer(layer, list(group), read, arch, layout, dtype)
            gc.collect()


# Functions of their own, so that no variable keeps the memory of one while the next is read.


def _single(place: Placement, read: Read, arch: Architecture, layout: Layout, dtype: torch.dtype):
    """Embedding, final norm or head."""
    whole = torch.empty(place.shapes[0], dtype=dtype, device=layout.device)
    read([_piece(place, whole)])
    yield from weights.emit([place], {place.megatron: whole}, arch, layout, _memory(layout, dtype), views=True)


def _layer(layer: int, places: list[Placement], read: Read, arch: Architecture, layout: Layout, dtype: torch.dtype):
    """The tensors of one decoder layer."""
    module = build.build_layer(arch, layout, layer, dtype)
    read(_pieces(module, layer, arch))
    parameters = {f"decoder.layers.{layer}.{name}": parameter for name, parameter in module.named_parameters()}
    held = {place.megatron: parameter for place, parameter in weights.matched(places, parameters, arch, layout)}
    for _, same in itertools.groupby(places, key=lambda place: place.hf):
        yield from weights.emit(list(same), held, arch, layout, _memory(layout, dtype), views=True)


def _memory(layout: Layout, dtype: torch.dtype) -> weights.Memory:
    """Fresh each time, since a writer may keep what it is given; views are free, since nobody else has what was read."""
    return weights.Memory(dtype, layout.device)


def _read(pieces: list, folder: Path, strategy: Any) -> None:
    """Fill the memory that ``pieces`` describe."""
    sharded.load_shards({"model": dict(enumerate(pieces))}, folder, part=True, strategy=strategy)


def _pieces(module: torch.nn.Module, layer: int, arch: Architecture) -> list:
    """The parameters of decoder layer ``layer`` (from 0) as pieces of the whole model's tensors, as megatron-core's
    ``TransformerBlock`` describes them: the layers of a model are one tensor on disk, stacked along a new first axis."""
    from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding

    prefix = f"decoder.layers.{layer}."
    state = module.sharded_state_dict(prefix, [(0, layer, arch.layers)], None)
    state = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    replace_prefix_for_sharding(state, prefix, "decoder.layers.")
    return [_unstacked(piece) for piece in sharded.pieces(state)]


def _unstacked(piece):
    """``piece`` with its stacked axes (layer, expert) written out: megatron-core's reader of stacked axes takes it that
    another rank asks for the other layers."""
    stacked = (1,) * piece.prepend_axis_num
    shape = (*stacked, *piece.local_shape)
    return replace(piece, data=piece.data.view(shape), local_shape=shape, prepend_axis_num=0)


def _piece(place: Placement, memory: Tensor):
    """Of embedding, final norm or head; padding rows, however many were written, stay where they are."""
    from megatron.core.dist_checkpointing import ShardedTensor

    vocabulary = place.split  # embedding and head
    return ShardedTensor.from_rank_offsets(place.megatron, memory, allow_shape_mismatch=vocabulary)
