"""Weights in from a Hugging Face checkpoint, and out as one stream of (Hugging Face name, tensor).

Both directions walk the placements of :mod:`vold_nemo.megatron.names`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.config import ConfigError
from vold_nemo.megatron import fp8, tensors
from vold_nemo.megatron.architecture import HEAD, Architecture, read
from vold_nemo.megatron.chunks import chunks_of
from vold_nemo.megatron.names import SLICE, Block, Placement, chunk_of, head, passed_over, placements, stage_of
from vold_nemo.megatron.parallel import Layout


class Source(Protocol):
    """Where weights come from, under the names and in the shapes of a Hugging Face checkpoint."""

    folder: Path  # what errors call it
    architecture: Architecture  # with the names that the source gives its tensors
    entries: Mapping[str, tensors.Entry]

    def slice(self, name: str, axis: int, start: int, size: int) -> Tensor:
        """``size`` rows (``axis`` 0) or columns (1) of a tensor, from ``start`` on."""

    def expert(self, name: str, expert: int, transposed: bool) -> Tensor:
        """One expert [out, in] of a tensor that packs all of them."""


class Files:
    """The safetensors files of a checkpoint folder: each is opened once, and slices of tensors are read from it."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.entries = tensors.index(self.folder)
        self._open: dict[Path, object] = {}

    @cached_property
    def architecture(self) -> Architecture:
        return read(self.folder)

    def slice(self, name: str, axis: int, start: int, size: int) -> Tensor:
        view = self._view(name)
        return view[start : start + size] if axis == 0 else view[:, start : start + size]

    def expert(self, name: str, expert: int, transposed: bool) -> Tensor:
        matrix = self._view(name)[expert : expert + 1][0]
        return matrix.t() if transposed else matrix

    def _view(self, name: str):
        from safetensors import SafetensorError, safe_open

        file = self.entries[name].file
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except SafetensorError as error:
                raise ConfigError(str(file), str(error), "a safetensors file", "copy the checkpoint again") from error
        return self._open[file].get_slice(name)


def _held(model: torch.nn.Module, arch: Architecture, layout: Layout) -> Iterator[tuple[Placement, torch.nn.Parameter]]:
    """The placements of this rank's stage, each with its parameter; no rule and no parameter may be left over."""
    places = [
        place
        for place in placements(arch, layout.tensor, model.vocab_size)
        if _owner(place, arch, layout) == layout.pipeline_rank
    ]
    if arch.tied and layout.is_last_stage and not layout.is_first_stage:
        places.append(head(arch, model.vocab_size))  # the last stage's own copy of the embedding
    for number, chunk in enumerate(chunks_of(model)):
        index = number * layout.pipeline + layout.pipeline_rank
        here = [place for place in places if chunk_of(place, arch, layout.pipeline, layout.virtual) == index]
        yield from matched(here, dict(chunk.named_parameters()), arch, layout, number)


def _layers_of(arch: Architecture, layout: Layout, chunk: int) -> range:
    """Layers (0-based over the model) of this rank's ``chunk``."""
    return arch.chunks(layout.pipeline, layout.virtual)[chunk * layout.pipeline + layout.pipeline_rank]


def held_here(model: torch.nn.Module, arch: Architecture, layout: Layout) -> dict[str, Tensor]:
    """This rank's parameters, without their gradients, under :attr:`Placement.megatron`."""
    return {place.megatron: parameter.detach() for place, parameter in _held(model, arch, layout)}


def matched(
    places: list[Placement], parameters: dict[str, Tensor], arch: Architecture, layout: Layout, chunk: int = 0
) -> Iterator[tuple[Placement, Tensor]]:
    """Each placement that this rank holds, with its parameter; ``parameters`` is emptied.

    ``parameters``: by their names in this rank's ``chunk`` (from 0).

    :raises ConfigError: for a placement without a parameter, or a parameter left over.
    """
    each = arch.experts // layout.expert  # experts on a rank
    first_expert, first_layer = layout.expert_rank * each, _layers_of(arch, layout, chunk).start
    for place in places:
        if place.expert is not None and place.expert // each != layout.expert_rank:
            continue
        parameter = _take(parameters, place, first_layer, first_expert)
        if parameter is None:
            raise ConfigError(f"names.TABLES[{arch.family!r}]", f"no parameter {place.megatron} for {place.hf[0]}",
                              "a parameter for every rule", "build the model from the same architecture")
        yield place, parameter
    if parameters:
        raise ConfigError(f"names.TABLES[{arch.family!r}]", next(iter(parameters)),
                          "a rule for every Megatron parameter", "add the missing rule")


def _take(parameters: dict, place: Placement, first_layer: int, first_expert: int) -> Tensor | None:
    """Remove and return the parameter of ``place``, under its own or its fused name, layers and experts counted locally."""
    for known in (place.megatron, place.fused):
        if known is None:
            continue
        name = known
        if place.layer is not None:
            name = name.replace(f"layers.{place.layer}.", f"layers.{place.layer - first_layer}.", 1)
        if place.expert is not None:
            here = place.expert - first_expert
            name = name.replace(f"local_experts.{place.expert}.", f"local_experts.{here}.", 1)
            if known == place.fused:  # ...linear_fc1.weight72
                name = f"{name.removesuffix(str(place.expert))}{here}"
        if name in parameters:
            return parameters.pop(name)
    return None


def check_names(arch: Architecture, source: Source, tensor: int, padded: int) -> None:
    """Missing, left-over and misshapen tensors of the language backbone.

    :raises ConfigError: naming the Hugging Face tensor and the Megatron parameter that it belongs to.
    """
    known, entries, folder = {HEAD} if arch.tied else set(), source.entries, source.folder
    for place in placements(arch, tensor, padded):
        for name, shape in zip(place.hf, place.shapes, strict=True):
            known.add(name)
            if name not in entries:
                raise ConfigError(str(folder), f"no tensor {name}", f"{name} {list(shape)}, part of {place.megatron}",
                                  "give a complete checkpoint of this architecture")
            if entries[name].shape != shape:
                raise ConfigError(str(folder), f"{name} {list(entries[name].shape)}",
                                  f"{name} {list(shape)}, part of {place.megatron}",
                                  "config.json and weights do not fit: copy the checkpoint again")
            if entries[name].dtype not in tensors.FLOATS:  # a copy would take packed or scaled numbers for weights
                raise ConfigError(f"{folder}: {name}", entries[name].dtype, " | ".join(tensors.FLOATS),
                                  "use an unquantised checkpoint")
    for name in entries:
        if (name == HEAD or name.startswith(arch.text_prefix)) and name not in known and not passed_over(name, arch):
            raise ConfigError(str(folder), name, f"tensors of {arch.family} that names.TABLES maps to Megatron parameters",
                              "this tensor would be lost: use a checkpoint of this architecture")


@torch.no_grad()
def load_hf(model: torch.nn.Module, arch: Architecture, layout: Layout, source: Source) -> None:
    """Copy this rank's part of ``source`` into ``model``; a rank reads only its own slices.  No collectives.

    Host memory beyond ``model``: at most one FP8 weight's shard in bf16.

    Rows of vocabulary padding become zeros.  ``source`` may name its tensors in another layout than ``arch`` does.

    :raises ConfigError: for a missing, left-over or misshapen tensor, naming both sides; for a tied model whose
        checkpoint stores a different head.
    """
    arch = _as_named(arch, source)
    check_names(arch, source, layout.tensor, model.vocab_size)
    stores = fp8.stores(model)
    # One buffer for all shards: the allocator would keep the memory of many, of many sizes, for itself.
    largest = max((parameter.numel() for parameter in model.parameters() if id(parameter) in stores), default=0)
    buffer = torch.empty(largest, dtype=torch.bfloat16)
    for place, parameter in _held(model, arch, layout):
        store = stores.get(id(parameter))
        if store is None:
            _fill(parameter, place, layout, source)
        else:  # FP8 is formed from the whole shard, one shard at a time
            shard = buffer[: parameter.numel()].view(parameter.shape)
            _fill(shard, place, layout, source)
            store(shard)
        if arch.tied and arch.head_on_disk and place.hf[0].endswith("embed_tokens.weight"):
            _check_stored_head(place, layout, source)


@torch.no_grad()
def adopt_rows(
    model: torch.nn.Module, arch: Architecture, layout: Layout, source: Source, adopted: Mapping[int, Sequence[int]]
) -> None:
    """Write the rows of adopted tokens (:mod:`vold_nemo.megatron.adoption`): row i = mean of the rows ``adopted[i]``.

    Without ids it is the mean of all rows before the first adopted one.  Both the embedding and the LM head; a tied head's
    copy on the last pipeline stage gets the same values.  Each rank reads what it needs from ``source``; no collectives.
    """
    known = min(adopted, default=0)
    for place, parameter in _held(model, _as_named(arch, source), layout):
        if place.megatron not in ("embedding.word_embeddings.weight", "output_layer.weight"):
            continue
        first = layout.tensor_rank * len(parameter)
        for row, parts in adopted.items():
            if first <= row < first + len(parameter):
                rows = [(part, 1) for part in parts] or [(0, known)]
                table = torch.cat([source.slice(place.hf[0], 0, start, size) for start, size in rows])
                parameter[row - first] = table.float().mean(0).to(parameter)


@torch.no_grad()
def load_layer(
    layer: torch.nn.Module, number: int, arch: Architecture, layout: Layout, source: Source, *, chunk: int = 0
) -> None:
    """:func:`load_hf` for one decoder layer, the ``number``-th of this stage's ``chunk`` (both from 0).  No collectives."""
    arch = _as_named(arch, source)
    layers = _layers_of(arch, layout, chunk)
    places = [place for place in placements(arch, layout.tensor, arch.vocabulary) if place.layer == layers[number]]
    parameters = {f"decoder.layers.{number}.{name}": parameter for name, parameter in layer.named_parameters()}
    for place, parameter in matched(places, parameters, arch, layout, chunk):
        _fill(parameter, place, layout, source)


def _as_named(arch: Architecture, source: Source) -> Architecture:
    """``arch`` with the names that ``source`` gives its tensors."""
    same = ("text_prefix", "head_on_disk", "experts_packed", "experts_transposed")
    return replace(arch, **{key: getattr(source.architecture, key) for key in same})


def _fill(target: Tensor, place: Placement, layout: Layout, source: Source) -> None:
    """Write this rank's part of one parameter, block by block: no copy of it is made beside ``target``."""
    if place.packed:
        target.copy_(_fitting(source.expert(place.hf[0], place.expert, place.transposed), place, target))
        return
    blocks = place.part(layout.tensor_rank, layout.tensor)
    shape = list(place.shapes[0])
    shape[place.axis] = sum(block.size for block in blocks)
    _fitting(torch.empty(shape, device="meta"), place, target)
    at = 0
    for block in blocks:
        part = target.narrow(place.axis, at, block.size)
        if block.source is None:
            part.zero_()
        else:
            part.copy_(source.slice(place.hf[block.source], place.axis, block.start, block.size))
        at += block.size


def _fitting(whole: Tensor, place: Placement, like: Tensor) -> Tensor:
    if whole.shape != like.shape:
        raise ConfigError(" + ".join(place.hf), list(whole.shape), f"{list(like.shape)}, part of {place.megatron}",
                          "the architecture and the model that was built do not fit")
    return whole


def _check_stored_head(place: Placement, layout: Layout, source: Source) -> None:
    for block in place.part(layout.tensor_rank, layout.tensor):
        if block.source is None:
            continue
        embedding, stored = (source.slice(name, 0, block.start, block.size) for name in (place.hf[0], HEAD))
        if not torch.equal(embedding, stored):
            raise ConfigError(str(source.folder), f"{HEAD} differs from {place.hf[0]}",
                              "equal tensors, or tie_word_embeddings false",
                              "set tie_word_embeddings=false in config.json, or remove the stored head")


@torch.no_grad()
def stream_hf(model: torch.nn.Module, arch: Architecture, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the language backbone as (name on disk, full tensor), layer by layer, on every rank: an export.  A weight
    sync sends each rank its engine's part (:mod:`vold_nemo.megatron.exchange`).

    Collective over the model's ranks (all of them must exhaust it): per parameter all-gathers of :data:`SLICE` bytes over the
    tensor group on the owning stage (for an expert, one broadcast over the expert group), and one broadcast of each of its
    tensors over the pipeline.  Padding rows are cut off.  A tied head is yielded only if the checkpoint stores one.

    Yielded tensors are the caller's: no later optimizer step changes them.
    """
    parameters = held_here(model, arch, layout)
    memory = Memory(next(iter(parameters.values())).dtype, layout.device)
    places = placements(arch, layout.tensor, model.vocab_size)
    for _, group in itertools.groupby(places, key=lambda place: place.hf):
        yield from emit(list(group), parameters, arch, layout, memory, views=False)


class Memory:
    """Where tensors are put together: fresh for each parameter."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self._none = torch.empty(0, dtype=dtype, device=device)

    def take(self, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        return [self._none.new_empty(shape) for shape in shapes]


def emit(
    places: list[Placement], parameters: Mapping[str, Tensor], arch: Architecture, layout: Layout, memory: Memory, *,
    views: bool,
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """The Hugging Face tensors of one placement, or of all experts that a tensor packs, on every rank.

    ``parameters``: this rank's, under :attr:`Placement.megatron`.  ``views``: where a tensor lies in a parameter as it is, that
    memory is yielded and not a copy.
    """
    place, tensors = places[0], _everywhere(places, parameters, arch, layout, memory, views)
    yield from zip(place.hf, tensors, strict=True)
    if arch.tied and arch.head_on_disk and place.hf[0].endswith("embed_tokens.weight"):
        yield HEAD, tensors[0] if views else tensors[0].clone()


def _everywhere(places, parameters, arch: Architecture, layout: Layout, memory: Memory, views: bool) -> list[Tensor]:
    """:func:`emit`'s tensors: put together on the owning stage, and broadcast over the pipeline."""
    place, owner = places[0], _owner(places[0], arch, layout)
    if layout.pipeline_rank != owner:
        tensors = memory.take(place.shapes)
    elif place.packed:
        tensors = memory.take(place.shapes)
        for one in places:
            if _is_mine(one, arch, layout):
                tensors[0][one.expert].copy_(parameters[one.megatron].t() if one.transposed else parameters[one.megatron])
            _from_expert_rank(tensors[0][one.expert], one, arch, layout)
    elif place.expert is not None and layout.expert > 1:
        mine = _is_mine(place, arch, layout)
        tensors = _cut(place, parameters[place.megatron], memory, views) if mine else memory.take(place.shapes)
        for tensor in tensors:
            _from_expert_rank(tensor, place, arch, layout)
    elif place.split and layout.tensor > 1:
        tensors = memory.take(place.shapes)
        for rank, first, rows in _slices(parameters[place.megatron], layout):
            _put(rows, first, place.part(rank, layout.tensor), place.axis, tensors)
    else:
        tensors = _cut(place, parameters[place.megatron], memory, views)
    if layout.pipeline > 1:
        for tensor in tensors:
            dist.broadcast(tensor, dist.get_global_rank(layout.pipeline_group, owner), group=layout.pipeline_group)
    return tensors


def _owner(place: Placement, arch: Architecture, layout: Layout) -> int:
    """Pipeline stage that holds ``place``."""
    return stage_of(place, arch, layout.pipeline, layout.virtual)


def _is_mine(place: Placement, arch: Architecture, layout: Layout) -> bool:
    return place.expert // (arch.experts // layout.expert) == layout.expert_rank


def _from_expert_rank(tensor: Tensor, place: Placement, arch: Architecture, layout: Layout) -> None:
    """Broadcast ``tensor`` from the rank that holds the expert."""
    if layout.expert > 1:
        rank = place.expert // (arch.experts // layout.expert)
        dist.broadcast(tensor, dist.get_global_rank(layout.expert_group, rank), group=layout.expert_group)


def _slices(part: Tensor, layout: Layout) -> Iterator[tuple[int, int, Tensor]]:
    """(tensor rank, first row, rows) of every rank's ``part``, :data:`SLICE` bytes of them at a time."""
    rows = max(1, SLICE[part.device.type] // (layout.tensor * part[0].nbytes))
    memory = part.new_empty(layout.tensor * min(rows, len(part)), *part.shape[1:])
    for first in range(0, len(part), rows):
        mine = part[first : first + rows].contiguous()
        all_ = memory[: layout.tensor * len(mine)]
        dist.all_gather_single(all_, mine, group=layout.tensor_group)
        for rank, theirs in enumerate(all_.chunk(layout.tensor)):
            yield rank, first, theirs


def _put(rows: Tensor, first: int, blocks: Sequence[Block], axis: int, tensors: list[Tensor]) -> None:
    """Copy ``rows`` (from row ``first`` on) of a part made of ``blocks`` along ``axis`` into Hugging Face's tensors."""
    at = 0
    for block in blocks:
        low, high = (max(first, at), min(first + len(rows), at + block.size)) if axis == 0 else (at, at + block.size)
        if block.source is not None and low < high:
            target = tensors[block.source].narrow(axis, block.start + low - at, high - low)
            if axis == 0:
                target.copy_(rows[low - first : high - first])
            else:
                target[first : first + len(rows)].copy_(rows[:, low:high])
        at += block.size


def _cut(place: Placement, whole: Tensor, memory: Memory, views: bool) -> list[Tensor]:
    """The Hugging Face tensors of a parameter that this rank holds unsplit."""
    real = [block for block in place.blocks if block.source is not None]
    if views and len(real) == len(place.hf):  # each is one block
        starts = itertools.accumulate((block.size for block in place.blocks), initial=0)
        cuts = zip(starts, place.blocks, strict=False)
        found = {block.source: whole.narrow(place.axis, at, block.size) for at, block in cuts}
        return [found[source] for source in range(len(place.hf))]
    tensors = memory.take(place.shapes)
    _put(whole, 0, place.blocks, place.axis, tensors)
    return tensors
