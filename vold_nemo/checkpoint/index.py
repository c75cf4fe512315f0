"""Which piece of which tensor lies where: ``index.json`` beside the files of tensors.

torch's own index is a pickle, whose reading runs what it names, and may say of any entry that it is an object, which torch then
unpickles.  This one is JSON and knows tensors alone; the tensors themselves are read with ``weights_only``.

    {"format": 1, "files": ["__0_0.distcp", ...],
     "tensors": {"decoder.final_layernorm.weight": {"dtype": "float32", "shape": [64], "pieces": [[0, 512, 1416, [0], [64]]]}}}

A piece is the number of its file, the first byte and the number of bytes there, its first element's place, and its size.
"""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from vold_nemo.config import ConfigError

FILE = "index.json"
FORMAT = 1
_PICKLE = ".metadata"  # torch's
_FILE_NAME = re.compile(r"__\d+_\d+\.distcp")
_DTYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
}


def write(known: Metadata, folder: Path) -> Path:
    """Write :data:`FILE` of what torch's planner made out.

    :raises TypeError: an entry that is no tensor: nothing that a checkpoint of ours holds.
    """
    numbers: dict[str, int] = {}
    tensors: dict[str, Any] = {}
    for key, entry in known.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise TypeError(f"{key} is no tensor, and a checkpoint holds tensors alone")
        pieces = []
        for chunk in entry.chunks:
            place = known.storage_data[MetadataIndex(key, chunk.offsets)]
            number = numbers.setdefault(place.relative_path, len(numbers))
            pieces.append([number, place.offset, place.length, list(chunk.offsets), list(chunk.sizes)])
        dtype = str(entry.properties.dtype).removeprefix("torch.")
        tensors[key] = {"dtype": dtype, "shape": list(entry.size), "pieces": pieces}
    path = folder / FILE
    content = {"format": FORMAT, "files": list(numbers), "tensors": tensors}
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")
    return path


def read(folder: str | Path) -> Metadata:
    """The index of ``folder`` as torch's planner wants it.

    :raises ConfigError: there is none, or one that is not what :func:`write` writes: other kinds of entries, other names of
        files, pieces that lie outside of their tensor or are not all of it.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        older = (Path(folder) / _PICKLE).is_file()
        raise ConfigError(
            "checkpoint", f"{folder}, with a pickled index ({_PICKLE})" if older else str(folder),
            f"a folder with {FILE}: a pickle may run code when it is read",
            "export it with the version that wrote it" if older else "choose a complete checkpoint",
        )  # fmt: skip
    try:
        return _metadata(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            "checkpoint index", f"{path}: {type(error).__name__} {str(error)[:200]}", "pieces of tensors, all of each",
            "this file was not written by vold_nemo or has been changed since: do not load it",
        ) from None


def shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """{key: whole shape} of every tensor in ``folder``.

    :raises ConfigError: as :func:`read`.
    """
    return {key: tuple(entry.size) for key, entry in read(folder).state_dict_metadata.items()}


def _metadata(said: Any) -> Metadata:
    if said["format"] != FORMAT:
        raise ValueError(f"format {said['format']}, this version reads {FORMAT}")
    files = said["files"]
    if not all(isinstance(name, str) and _FILE_NAME.fullmatch(name) for name in files):
        raise ValueError("names of files that no writer gives")
    tensors: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for key, entry in said["tensors"].items():
        if entry.keys() != {"dtype", "shape", "pieces"}:
            raise ValueError(f"{key} is described by {', '.join(map(str, entry))}")
        shape, chunks = _numbers(entry["shape"]), []
        for index, (number, first, size, offsets, sizes) in enumerate(entry["pieces"]):
            chunk = ChunkStorageMetadata(_numbers(offsets), _numbers(sizes))
            if not len(shape) == len(chunk.offsets) == len(chunk.sizes) or any(
                at + long > whole for at, long, whole in zip(chunk.offsets, chunk.sizes, shape, strict=True)
            ):
                raise ValueError(f"a piece of {key} lies outside of it")
            first, size, number = _numbers([first, size, number])
            places[MetadataIndex(key, chunk.offsets, index)] = _StorageInfo(files[number], first, size)
            chunks.append(chunk)
        if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
            raise ValueError(f"the pieces of {key} are not all of it")
        tensors[key] = TensorStorageMetadata(TensorProperties(_DTYPES[entry["dtype"]]), shape, chunks)
    if len(places) != sum(len(entry.chunks) for entry in tensors.values()):
        raise ValueError("two pieces begin at one place")
    _refuse_overlaps(places)
    return Metadata(tensors, None, places, StorageMeta())


def _refuse_overlaps(places: dict[MetadataIndex, _StorageInfo]) -> None:
    """Each byte of a file belongs to one piece: exchanged entries, too, then change what is read, and not what lies there."""
    spans = sorted((place.relative_path, place.offset, place.offset + place.length) for place in places.values())
    for (name, _, end), (other, start, _) in pairwise(spans):
        if name == other and start < end:
            raise ValueError(f"two pieces share bytes of {name}")


def _numbers(values: Any) -> torch.Size:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise ValueError("sizes and places that are no counts")
    return torch.Size(values)
