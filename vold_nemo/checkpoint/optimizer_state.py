"""State of the optimizer as pieces of tensors in the shape of the parameters: what any layout writes and reads.

megatron-core's ``fully_reshardable`` names them and its distributed optimizer gathers them for it: on every rank the whole
state of the data-parallel group, 12 bytes a parameter of the stage in host memory, and a bucket of it on the GPU.  Nothing has
to be gathered.  A rank's share of a parameter is an interval of its elements, row after row, which is a handful of boxes: a
part of the first row, whole rows, a part of the last.  Each rank writes its own boxes under the same names, and reads its own
from wherever they lie, into the state itself.

The files are of the same format: what was gathered before is read like this, and what is written like this by those that
gather.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vold_nemo.megatron.optimizer import load_state

_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}
Box = tuple[tuple[int, ...], tuple[int, ...], int]  # its first element's place, its size, how many elements lie before it


def sharded_state(optimizer, weights: dict[str, Any], *, loading: bool = False) -> Any:
    """The sharded state dict of megatron-core's ``optimizer``; tensors in it are the state's own, or views of them.

    Args:
        weights: of :func:`sharded.model_state`.
        loading: it is to be filled (and then handed to :func:`take_up`).
    """
    with _not_gathered(optimizer):
        return optimizer.sharded_state_dict(weights, is_loading=loading, metadata=_FORMAT)


def take_up(optimizer, loaded: Any, steps: float) -> None:
    """Learning-rate groups, counts and (plain optimizers) tensors of what was ``loaded`` for :func:`sharded_state`.

    A distributed optimizer's tensors have been read in place.
    """
    many = len(optimizer.chained_optimizers) > 1
    for number, part in enumerate(optimizer.chained_optimizers):
        if _is_distributed(part):
            (loaded[number] if many else loaded).pop("param_state", None)
    load_state(optimizer, loaded, steps)


def _is_distributed(part) -> bool:
    return hasattr(part, "sharded_param_state_fully_reshardable")


@contextlib.contextmanager
def _not_gathered(optimizer) -> Iterator[None]:
    """megatron-core goes on naming groups and chained optimizers; the state of the parameters it is handed."""
    parts = [part for part in optimizer.chained_optimizers if _is_distributed(part)]
    for part in parts:
        part.sharded_param_state_fully_reshardable = lambda weights, *_, own=part, **__: _boxes_of(own, weights)
    try:
        yield
    finally:
        for part in parts:
            del part.sharded_param_state_fully_reshardable  # the class's own again


def _boxes_of(part, weights: dict[str, Any]) -> dict[str, Any]:
    """``ShardedTensor`` of each box of each tensor that ``part`` holds for a parameter."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories

    described = {id(one.data): one for one in nested_values(extract_sharded_tensors_and_factories(weights)[0])}
    found = {}
    for parameter, held in _shares(part):
        places = list(_pieces(described[id(parameter)]))
        for kind, flat in part._get_main_param_and_optimizer_states(parameter).items():
            if not isinstance(flat, Tensor) or flat.dim() == 0:  # AdamW's count of updates
                continue
            for piece, start in places:
                for box in _within(piece, start, held, flat):
                    named = replace(box, key=f"optimizer.state.{kind}.{piece.key}")
                    found[f"{named.key} {named.global_offset}"] = named
    return found


def _shares(part) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Each parameter of which this rank has a share, and from which element to which that is."""
    for buffer in part.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, (ranges["param"].start, ranges["param"].end)


def _pieces(described) -> Iterator[tuple[Any, int]]:
    """The tensors under which a parameter lies on disk (gate and up lie apart), and the element of it where each begins."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    shape = torch.empty(described.data.shape, dtype=torch.float32, device="meta")
    if isinstance(described, ShardedTensorFactory):
        built = described.build_fn(described.key, shape, described.replica_id, described.flattened_range)
        cut = list(nested_values({"built": built}))
    else:
        cut = [replace(described, data=shape, dtype=shape.dtype)]
    for piece in cut:
        if not piece.data.is_contiguous():
            raise RuntimeError(f"{piece.key} is no run of its parameter's elements, of which a rank's share is one")
        yield piece, piece.data.storage_offset()


def _within(piece, start: int, held: tuple[int, int], flat: Tensor) -> Iterator[Any]:
    """Boxes of ``piece``, whose first element is number ``start`` of the parameter, that ``flat`` (elements ``held``) has."""
    first, last = max(held[0], start) - start, min(held[1], start + math.prod(piece.local_shape)) - start
    ahead = piece.prepend_axis_num
    for offset, size, at in boxes(tuple(piece.local_shape), first, last):
        place = tuple(piece.global_offset[:ahead]) + tuple(
            base + inside for base, inside in zip(piece.global_offset[ahead:], offset, strict=True)
        )
        begin = start + at - held[0]
        data = flat[begin : begin + math.prod(size)].view((1,) * ahead + size)
        yield replace(
            piece, data=data, dtype=data.dtype, local_shape=tuple(data.shape), global_offset=place, prepend_axis_num=0,
            axis_fragmentations=None,  # boxes are no regular grid
            replica_id=(*piece.replica_id[:-1], 0),  # data-parallel ranks hold different elements, not the same
        )  # fmt: skip


def boxes(shape: tuple[int, ...], first: int, last: int) -> Iterator[Box]:
    """Elements ``first .. last - 1`` of a tensor of ``shape``, row after row, as the fewest boxes, in that order.

    >>> list(boxes((3, 4), 2, 9))
    [((0, 2), (1, 2), 2), ((1, 0), (1, 4), 4), ((2, 0), (1, 1), 8)]
    """
    if first >= last:
        return
    row = math.prod(shape[1:])
    while first < last:
        number, inside = divmod(first, row)
        whole = (last - first) // row
        if inside or not whole:  # a part of one row
            until = min(last, (number + 1) * row)
            for offset, size, at in boxes(shape[1:], inside, until - number * row):
                yield (number, *offset), (1, *size), at + number * row
        else:
            until = first + whole * row
            yield (number, *(0 for _ in shape[1:])), (whole, *shape[1:]), first
        first = until
