"""Which tensor of a Hugging Face checkpoint lies in which safetensors file, and how large it is.  No torch.

A safetensors file opens with eight bytes (length of the header, little endian) and a JSON header
``{name: {"dtype", "shape", "data_offsets"}}``; offsets count from the end of the header.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.config import ConfigError, staged

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LISTED = "tensors.json"  # {name: [dtype, shape]}: stands for the weights in folders that were copied without them


@dataclass(frozen=True)
class Entry:
    """One tensor on disk."""

    file: Path
    dtype: str  # as safetensors spells it: "F32", "BF16", ...
    shape: tuple[int, ...]
    start: int  # first byte in the file
    nbytes: int


def header(file: Path) -> dict[str, Entry]:
    """Entries of one safetensors file, in the order of their bytes.

    :raises ConfigError: if the file is missing, is of another format, or ends before its last tensor does.
    """
    mend = "copy the checkpoint again: this file did not arrive whole"
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = file.stat().st_size
            if size < 8 + length:
                raise ConfigError(str(file), f"{size} bytes", f"a safetensors file of at least {8 + length} bytes", mend)
            table = json.loads(handle.read(length))
        table.pop("__metadata__", None)
        entries = {
            name: Entry(file, row["dtype"], tuple(row["shape"]), 8 + length + row["data_offsets"][0],
                        row["data_offsets"][1] - row["data_offsets"][0])
            for name, row in table.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(str(file), str(error), "a safetensors file", mend) from error
    end = max((entry.start + entry.nbytes for entry in entries.values()), default=0)
    if size < end:
        raise ConfigError(str(file), f"{size} bytes", f"{end} bytes, as its header says", mend)
    return dict(sorted(entries.items(), key=lambda item: item[1].start))


def index(folder: Path) -> dict[str, Entry]:
    """Entries of all tensors of the checkpoint in ``folder``, single file or sharded; those of its copy on this node, if any.

    :raises ConfigError: if there is no safetensors checkpoint, if the index is broken or names a file that is not there, or
        if a tensor that it names is missing in its file.
    """
    folder = staged.here(folder)
    if (folder / INDEX).is_file():
        try:
            placed = json.loads((folder / INDEX).read_text())["weight_map"]
            files = sorted(set(placed.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(str(folder / INDEX), repr(error), 'a JSON object with a "weight_map"',
                              "copy the index again") from error
    elif (folder / SINGLE).is_file():
        return header(folder / SINGLE)
    else:
        raise ConfigError(str(folder), "no weights", f"{SINGLE} or {INDEX}", "convert the checkpoint to safetensors")
    away = [name for name in files if not (folder / name).is_file()]
    if away:
        raise ConfigError(str(folder / INDEX), f"names {away[0]}, which is not there ({len(away)} of {len(files)} files)",
                          "files that lie beside the index", "copy the missing files, or download the checkpoint again")
    found: dict[str, Entry] = {}
    for name in files:
        found.update((key, entry) for key, entry in header(folder / name).items() if placed.get(key) == name)
    absent = sorted(set(placed) - set(found))
    if absent:
        raise ConfigError(str(folder / INDEX), absent[0], "a tensor present in its file", "copy the checkpoint again")
    return found


def listing(folder: Path) -> dict[str, Entry]:
    """Like :func:`index`, also for a folder that holds only a list of its tensors; those entries have no bytes."""
    if any((folder / name).is_file() for name in (INDEX, SINGLE)) or not (folder / LISTED).is_file():
        return index(folder)
    table = json.loads((folder / LISTED).read_text())
    return {name: Entry(folder / LISTED, dtype, tuple(shape), 0, 0) for name, (dtype, shape) in table.items()}


def write_listing(source: Path, target: Path) -> None:
    """List the tensors of checkpoint ``source`` in folder ``target``."""
    table = {name: [entry.dtype, list(entry.shape)] for name, entry in listing(source).items()}
    (target / LISTED).write_text(json.dumps(table, indent=0) + "\n")
