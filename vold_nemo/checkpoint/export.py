"""An ordinary Hugging Face checkpoint again: trained language model, everything else byte for byte from the source.

The source says which tensors there are, how they are named, and in which precision; the stream supplies the values of
the language backbone.  Files are laid out before the first tensor arrives (their headers are known), and each tensor is
written to its place as it comes, so that no more than one is ever held.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vold_nemo.checkpoint import lineage
from vold_nemo.config import ConfigError
from vold_nemo.megatron import architecture, tensors
from vold_nemo.megatron.adoption import append_tokens
from vold_nemo.megatron.names import hf_names

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What stands beside the weights and is true of the export, too.  Named one by one: adapters, indices of other formats and notes
# of quantisers and trainers are JSON as well, and change what a loader makes of the folder.
_BESIDE = (
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "*.model", "*.tiktoken",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "chat_template.json", "*.jinja", "additional_chat_templates/*.jinja",
    "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*",
)  # fmt: skip
_CHUNK = 8 * 2**20


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    path: Path
    files: int
    nbytes: int
    trained: int  # tensors from the stream
    carried: int  # tensors copied from the source


def export_hf(
    named_tensors: Iterable[tuple[str, Tensor]], source: str | Path, out: str | Path, max_shard_bytes: int, *,
    write: bool = True, card: str | None = None, origin: dict | None = None,
) -> ExportReport | None:
    """Write checkpoint ``out`` from ``source`` and the stream of :func:`vold_nemo.megatron.weights.stream_hf`.

    Call it on every rank of the model, with ``write`` on one of them: the others only take part in the stream's
    collectives and get None.  Written into a folder beside ``out`` and renamed at the end; an earlier export at ``out``
    is replaced.  Trained tensors take the source tensor's precision.  ``card`` becomes README.md, ``origin``
    vold_lineage.json; added tokens that it names and the source lacks are appended to the tokenizer's files.

    :raises ConfigError: if the source is unusable or ``out`` holds something else (on every rank, before the first
        collective); if the stream lacks a tensor of the backbone, or has one that the source does not have in that shape.
    """
    source, out = Path(source).resolve(), Path(out).resolve()
    arch = architecture.read(source)
    entries = tensors.index(source)
    if max_shard_bytes < 1:
        raise ConfigError("export.max_shard_bytes", max_shard_bytes, "a positive number of bytes", "5000000000 is usual")
    if out == source:
        raise ConfigError("export path", str(out), "a folder other than the source", "export to another folder")
    if out.exists() and not (out / "config.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("export path", str(out), "a new folder or an earlier export", "export to another folder")
    if not write:
        for _ in named_tensors:
            pass
        return None

    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _copy_beside(source, aside)
    if card is not None:
        (aside / "README.md").write_text(card)
    if origin:
        lineage.write(origin, aside / lineage.IN_EXPORT)
        append_tokens(aside, origin.get("added_tokens", ()))
    places = _lay_out(entries, aside, max_shard_bytes)

    def put(name: str, data: Tensor) -> None:
        _write(places[name], memoryview(data.view(torch.uint8).numpy()))

    seen = receive(named_tensors, arch, entries, source, put)
    for name in entries.keys() - seen:
        _carry(entries[name], places[name])
    written = {place.file for place in places.values()}
    for file in written:
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    _put_in_place(aside, out)
    return ExportReport(out, len(written), sum(entry.nbytes for entry in entries.values()), len(seen), len(entries) - len(seen))


def receive(
    named_tensors: Iterable[tuple[str, Tensor]], arch: architecture.Architecture, entries: Mapping[str, tensors.Entry],
    source: Path, put: Callable[[str, Tensor], None],
) -> set[str]:  # fmt: skip
    """Hand each tensor of the stream to ``put``, flat, on the host and in its source's precision; returns their names there.

    :raises ConfigError: as :func:`export_hf`.
    """
    wanted, seen = set(hf_names(arch)), set()
    for streamed, tensor in named_tensors:
        name = _source_name(streamed, arch)
        _check(name, streamed, tensor, entries, seen, source)
        seen.add(name)
        data = tensor.detach().to("cpu", _DTYPES[entries[name].dtype]).contiguous().reshape(-1)
        put(name, data)
        del tensor, data  # gone before the next is read
    if wanted - seen:
        raise ConfigError("stream of trained tensors", f"lacks {min(wanted - seen)}",
                          f"all {len(wanted)} tensors of the backbone", "stream the whole model")
    return seen


def _source_name(name: str, arch: architecture.Architecture) -> str:
    """``name`` under the prefix that the source's files use."""
    for prefix in sorted(architecture.TEXT_PREFIXES, key=len, reverse=True):
        if name.startswith(prefix):
            return arch.text_prefix + name[len(prefix) :]
    return name


def _check(name: str, streamed: str, tensor: Tensor, entries: dict, seen: set, source: Path) -> None:
    if name not in entries or name in seen:
        raise ConfigError("stream of trained tensors", streamed, f"each tensor of {source} once",
                          "export with the student's source")
    if tuple(tensor.shape) != entries[name].shape:
        raise ConfigError(f"stream of trained tensors: {streamed}", list(tensor.shape),
                          f"{list(entries[name].shape)} as in {source}", "export with the student's source")
    if entries[name].dtype not in _DTYPES:
        raise ConfigError(f"{source}: {name}", entries[name].dtype, " | ".join(_DTYPES), "use an unquantised checkpoint")


def _copy_beside(source: Path, aside: Path) -> None:
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            if file.is_file():
                target = aside / file.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def files(entries: Mapping[str, tensors.Entry], max_shard_bytes: int) -> list[list[str]]:
    """Which tensors each weight file holds.

    Tensors stay in the source's order; a file is closed when the next one would exceed ``max_shard_bytes`` (one larger
    tensor has a file of its own).
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in entries.items():
        if shards[-1] and size + entry.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += entry.nbytes
    return shards


def _lay_out(entries: dict[str, tensors.Entry], folder: Path, max_shard_bytes: int) -> dict[str, tensors.Entry]:
    """Create the weight files, headers written and room left for the data; the place of every tensor."""
    shards = files(entries, max_shard_bytes)
    places: dict[str, tensors.Entry] = {}
    for number, names in enumerate(shards, 1):
        file = folder / (f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else tensors.SINGLE)
        places.update(_create(file, {name: entries[name] for name in names}))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.nbytes for entry in entries.values())},
            "weight_map": {name: places[name].file.name for name in sorted(places)},
        }
        (folder / tensors.INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return places


def _create(file: Path, entries: dict[str, tensors.Entry]) -> dict[str, tensors.Entry]:
    """An empty safetensors file with room for ``entries``; wide types first, so that every tensor is aligned."""
    ordered = sorted(entries, key=lambda name: -(entries[name].nbytes // max(1, math.prod(entries[name].shape))))
    at, table = 0, {"__metadata__": {"format": "pt"}}
    for name in ordered:
        entry = entries[name]
        table[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, at + entry.nbytes]}
        at += entry.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + at)
    return tensors.header(file)


def _write(place: tensors.Entry, data: memoryview) -> None:
    with place.file.open("rb+") as handle:
        handle.seek(place.start)
        handle.write(data)


def _carry(entry: tensors.Entry, place: tensors.Entry) -> None:
    """Copy the bytes of one tensor from the source."""
    with entry.file.open("rb") as read, place.file.open("rb+") as write:
        read.seek(entry.start)
        write.seek(place.start)
        left = entry.nbytes
        while left:
            data = read.read(min(left, _CHUNK))
            if not data:
                raise ConfigError(str(entry.file), "cut off", f"{entry.start + entry.nbytes} bytes",
                                  "copy the checkpoint again")
            write.write(data)
            left -= len(data)


def _put_in_place(aside: Path, out: Path) -> None:
    """Rename ``aside`` to ``out``; an earlier export moves away first and goes last."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
