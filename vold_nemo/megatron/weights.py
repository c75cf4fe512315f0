"""Weights in from a Hugging Face checkpoint, and out as one stream of (Hugging Face name, tensor).

Both directions walk the placements of :mod:`vold_nemo.megatron.names`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.config import ConfigError
from vold_nemo.megatron import fp8, tensors
from vold_nemo.megatron.architecture import HEAD, Architecture, read
from vold_nemo.megatron.names import Block, Placement, head, placements
from vold_nemo.megatron.parallel import Layout


class _Files:
    """Opens each safetensors file once and reads slices of tensors from it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries = tensors.index(folder)
        self._open: dict[Path, object] = {}

    def slice(self, name: str, axis: int, start: int, size: int) -> Tensor:
        view = self._view(name)
        return view[start : start + size] if axis == 0 else view[:, start : start + size]

    def expert(self, name: str, expert: int, transposed: bool) -> Tensor:
        """One expert [out, in] of a tensor that packs all of them."""
        matrix = self._view(name)[expert : expert + 1][0]
        return matrix.t() if transposed else matrix

    def _view(self, name: str):
        from safetensors import safe_open

        file = self.entries[name].file
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
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
    yield from matched(places, dict(model.named_parameters()), arch, layout)


def matched(
    places: list[Placement], parameters: dict[str, Tensor], arch: Architecture, layout: Layout
) -> Iterator[tuple[Placement, Tensor]]:
    """Each placement that this rank holds, with its parameter; ``parameters`` is emptied.

    :raises ConfigError: for a placement without a parameter, or a parameter left over.
    """
    each = arch.experts // layout.expert  # experts on a rank
    first_expert, first_layer = layout.expert_rank * each, sum(arch.stages(layout.pipeline)[: layout.pipeline_rank])
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
    for name in (place.megatron, place.fused):
        if name is None:
            continue
        if place.layer is not None:
            name = name.replace(f"layers.{place.layer}.", f"layers.{place.layer - first_layer}.", 1)
        if place.expert is not None:
            here = place.expert - first_expert
            name = name.replace(f"local_experts.{place.expert}.", f"local_experts.{here}.", 1)
            name = name.removesuffix(f"weight{place.expert}") + f"weight{here}" if place.fused == name else name
        if name in parameters:
            return parameters.pop(name)
    return None


def check_names(arch: Architecture, entries: dict[str, tensors.Entry], folder: Path, tensor: int, padded: int) -> None:
    """Missing, left-over and misshapen tensors of the language backbone.

    :raises ConfigError: naming the Hugging Face tensor and the Megatron parameter that it belongs to.
    """
    known = {HEAD} if arch.tied else set()
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
    for name in entries:
        if (name == HEAD or name.startswith(arch.text_prefix)) and name not in known:
            raise ConfigError(str(folder), name, f"tensors of {arch.family} that names.TABLES maps to Megatron parameters",
                              "this tensor would be lost: use a checkpoint of this architecture")


@torch.no_grad()
def load_hf(model: torch.nn.Module, arch: Architecture, layout: Layout, path: str | Path) -> None:
    """Copy this rank's part of checkpoint ``path`` into ``model``; a rank reads only its own slices.  No collectives.

    Host memory beyond ``model``: at most one FP8 weight's shard in bf16.

    Rows of vocabulary padding become zeros.  ``path`` may name its tensors in another layout than ``arch`` does.

    :raises ConfigError: for a missing, left-over or misshapen tensor, naming both sides; for a tied model whose
        checkpoint stores a different head.
    """
    files = _Files(Path(path))
    arch = _as_on_disk(arch, path)
    check_names(arch, files.entries, files.folder, layout.tensor, model.vocab_size)
    stores = fp8.stores(model)
    # One buffer for all shards: the allocator would keep the memory of many, of many sizes, for itself.
    largest = max((parameter.numel() for parameter in model.parameters() if id(parameter) in stores), default=0)
    buffer = torch.empty(largest, dtype=torch.bfloat16)
    for place, parameter in _held(model, arch, layout):
        store = stores.get(id(parameter))
        if store is None:
            _fill(parameter, place, layout, files)
        else:  # FP8 is formed from the whole shard, one shard at a time
            shard = buffer[: parameter.numel()].view(parameter.shape)
            _fill(shard, place, layout, files)
            store(shard)
        if arch.tied and arch.head_on_disk and place.hf[0].endswith("embed_tokens.weight"):
            _check_stored_head(place, layout, files)


@torch.no_grad()
def adopt_rows(
    model: torch.nn.Module, arch: Architecture, layout: Layout, path: str | Path, adopted: Mapping[int, Sequence[int]],
) -> None:  # fmt: skip
    """Write the rows of adopted tokens (:mod:`vold_nemo.data.adoption`): row i = mean of the rows ``adopted[i]``.

    Without ids it is the mean of all rows before the first adopted one.  Both the embedding and the LM head; a tied head's
    copy on the last pipeline stage gets the same values.  Each rank reads what it needs from checkpoint ``path``; no
    collectives.
    """
    files, known = _Files(Path(path)), min(adopted, default=0)
    for place, parameter in _held(model, _as_on_disk(arch, path), layout):
        if place.megatron not in ("embedding.word_embeddings.weight", "output_layer.weight"):
            continue
        first = layout.tensor_rank * len(parameter)
        for row, parts in adopted.items():
            if first <= row < first + len(parameter):
                rows = [(part, 1) for part in parts] or [(0, known)]
                table = torch.cat([files.slice(place.hf[0], 0, start, size) for start, size in rows])
                parameter[row - first] = table.float().mean(0).to(parameter)


@torch.no_grad()
def load_layer(layer: torch.nn.Module, number: int, arch: Architecture, layout: Layout, path: str | Path) -> None:
    """:func:`load_hf` for one decoder layer, the ``number``-th of this stage (from 0).  No collectives."""
    files = _Files(Path(path))
    arch = _as_on_disk(arch, path)
    whole = sum(arch.stages(layout.pipeline)[: layout.pipeline_rank]) + number
    places = [place for place in placements(arch, layout.tensor, arch.vocabulary) if place.layer == whole]
    parameters = {f"decoder.layers.{number}.{name}": parameter for name, parameter in layer.named_parameters()}
    for place, parameter in matched(places, parameters, arch, layout):
        _fill(parameter, place, layout, files)


def _as_on_disk(arch: Architecture, path: str | Path) -> Architecture:
    """``arch`` with the names that checkpoint ``path`` gives its tensors."""
    found = read(path)
    same = ("text_prefix", "head_on_disk", "experts_packed", "experts_transposed")
    return replace(arch, **{key: getattr(found, key) for key in same})


def _fill(target: Tensor, place: Placement, layout: Layout, files: _Files) -> None:
    """Write this rank's part of one parameter, block by block: no copy of it is made beside ``target``."""
    if place.packed:
        target.copy_(_fitting(files.expert(place.hf[0], place.expert, place.transposed), place, target))
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
            part.copy_(files.slice(place.hf[block.source], place.axis, block.start, block.size))
        at += block.size


def _fitting(whole: Tensor, place: Placement, like: Tensor) -> Tensor:
    if whole.shape != like.shape:
        raise ConfigError(" + ".join(place.hf), list(whole.shape), f"{list(like.shape)}, part of {place.megatron}",
                          "the architecture and the model that was built do not fit")
    return whole


def _check_stored_head(place: Placement, layout: Layout, files: _Files) -> None:
    for block in place.part(layout.tensor_rank, layout.tensor):
        if block.source is None:
            continue
        embedding, stored = (files.slice(name, 0, block.start, block.size) for name in (place.hf[0], HEAD))
        if not torch.equal(embedding, stored):
            raise ConfigError(str(files.folder), f"{HEAD} differs from {place.hf[0]}",
                              "equal tensors, or tie_word_embeddings false",
                              "set tie_word_embeddings=false in config.json, or remove the stored head")


@torch.no_grad()
def stream_hf(
    model: torch.nn.Module, arch: Architecture, layout: Layout, *, borrowed: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the language backbone as (name on disk, full tensor), layer by layer, on every rank.

    Collective over the model's ranks (all of them must exhaust it): per parameter one all-gather over the tensor group on
    the owning stage (for an expert, one broadcast over the expert group) and one broadcast over the pipeline.  Padding rows
    are cut off.  A tied head is yielded only if the checkpoint stores one.  Yielded tensors are the caller's: no later
    optimizer step changes them.  With ``borrowed`` they may be views of the parameters, to be used up before the next is
    asked for: a weight sync, which copies them anyway, saves a copy of the model.
    """
    held = {place.megatron: parameter for place, parameter in _held(model, arch, layout)}
    some = next(iter(held.values()))
    places = placements(arch, layout.tensor, model.vocab_size)
    for _, group in itertools.groupby(places, key=lambda place: place.hf):
        # one placement, or, where a tensor packs them, all experts of a layer
        wholes = [(place, _everywhere(place, held, arch, layout, some.dtype)) for place in group]
        yield from emit(wholes, arch, borrowed)


def emit(wholes: list[tuple[Placement, Tensor]], arch: Architecture, borrowed: bool) -> Iterator[tuple[str, Tensor]]:
    """The Hugging Face tensors of unsplit parameters: of one, or of all experts that a tensor packs."""
    place, whole = wholes[0]
    if place.packed:
        matrices = [matrix.t() if place.transposed else matrix for _, matrix in wholes]
        yield place.hf[0], torch.stack(matrices)
    else:
        yield from _unpack(place, whole, borrowed)
    if arch.tied and arch.head_on_disk and place.hf[0].endswith("embed_tokens.weight"):
        yield HEAD, whole[: arch.vocabulary] if borrowed else whole[: arch.vocabulary].clone()


def _everywhere(place: Placement, held: dict, arch: Architecture, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The unsplit parameter of ``place``, on every rank."""
    owner = _owner(place, arch, layout)
    if layout.pipeline_rank != owner:
        whole = torch.empty(_unsplit_shape(place), dtype=dtype, device=layout.device)
    elif place.expert is None or layout.expert == 1:
        whole = _gather(held[place.megatron].detach(), place, layout)
    else:
        rank = place.expert // (arch.experts // layout.expert)
        if rank == layout.expert_rank:
            whole = held[place.megatron].detach().contiguous()
        else:
            whole = torch.empty(_unsplit_shape(place), dtype=dtype, device=layout.device)
        dist.broadcast(whole, dist.get_global_rank(layout.expert_group, rank), group=layout.expert_group)
    if layout.pipeline > 1:
        dist.broadcast(whole, dist.get_global_rank(layout.pipeline_group, owner), group=layout.pipeline_group)
    return whole


def _owner(place: Placement, arch: Architecture, layout: Layout) -> int:
    """Pipeline stage that holds ``place``."""
    if place.layer is not None:
        return arch.stage_of(place.layer, layout.pipeline)
    return 0 if place.megatron.startswith("embedding.") else layout.pipeline - 1


def _unsplit_shape(place: Placement) -> list[int]:
    shape = list(place.shapes[0])
    if place.packed:
        shape = shape[:0:-1] if place.transposed else shape[1:]
    shape[place.axis] = sum(block.size for block in place.blocks)
    return shape


def _gather(part: Tensor, place: Placement, layout: Layout) -> Tensor:
    if not place.split or layout.tensor == 1:
        return part
    gathered = part.new_empty(layout.tensor * part.shape[0], *part.shape[1:])
    parts = list(gathered.chunk(layout.tensor))  # parts of the result, where it is split by rows
    dist.all_gather(parts, part.contiguous(), group=layout.tensor_group)
    return gathered if place.axis == 0 else torch.cat(parts, dim=place.axis)


def _unpack(place: Placement, whole: Tensor, borrowed: bool) -> Iterator[tuple[str, Tensor]]:
    """Cut an unsplit parameter into its Hugging Face tensors (fresh memory, unless ``borrowed``: the caller may keep them)."""
    cuts: dict[int, list[tuple[Block, Tensor]]] = {source: [] for source in range(len(place.hf))}
    at = 0
    for block in place.blocks:
        if block.source is not None:
            cuts[block.source].append((block, whole.narrow(place.axis, at, block.size)))
        at += block.size
    for source, name in enumerate(place.hf):
        pieces = [piece for _, piece in sorted(cuts[source], key=lambda cut: cut[0].start)]
        yield name, pieces[0] if borrowed and len(pieces) == 1 else torch.cat(pieces, dim=place.axis)
