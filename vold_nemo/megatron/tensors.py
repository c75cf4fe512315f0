"""Which tensor of a Hugging Face checkpoint lies in which safetensors file, and how large it is.  No torch.

A safetensors file opens with eight bytes (length of the header, little endian) and a JSON header
``{name: {"dtype", "shape", "data_offsets"}}``; offsets count from the end of the header.  The tensors lie without holes and
without overlaps from there to the end of the file (the format's own rules, which its readers enforce).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vold_nemo.config import ConfigError, staged
from vold_nemo.config.json_files import parse_object, read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LISTED = "tensors.json"  # {name: [dtype, shape]}: stands for the weights in folders that were copied without them
LARGEST_HEADER = 100_000_000  # bytes; the format's limit
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16), **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")  # what weights may be kept in
_WHOLE = "copy the checkpoint again: this file did not arrive whole"
_FOREIGN = "this is not a file that safetensors wrote: get the checkpoint again"


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

    :raises ConfigError: if the file is missing, is of another format, breaks its rules, or ends before its last tensor does.
    """
    try:
        with file.open("rb") as handle:
            size, length = file.stat().st_size, int.from_bytes(handle.read(8), "little")
            if size < 8 + length:
                raise ConfigError(str(file), f"{size} bytes", f"a safetensors file of at least {8 + length} bytes", _WHOLE)
            if length > LARGEST_HEADER:
                raise ConfigError(str(file), f"a header of {length} bytes", f"at most {LARGEST_HEADER}", _FOREIGN)
            text = handle.read(length)
    except OSError as error:
        raise ConfigError(str(file), error.strerror or str(error), "a safetensors file", _WHOLE) from error
    table = parse_object(text, str(file), _FOREIGN)
    about = table.pop("__metadata__", None)
    if about is not None and (not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values())):
        raise ConfigError(f"{file}: __metadata__", str(about)[:200], "an object of texts", _FOREIGN)
    entries = sorted((_entry(file, name, row, 8 + length) for name, row in table.items()), key=lambda pair: _span(pair[1]))
    end = 8 + length
    for name, entry in entries:
        if entry.start != end:
            found = f"begins at byte {entry.start - 8 - length}"
            raise ConfigError(f"{file}: {name}", found, f"{end - 8 - length}, where the tensor before it ends", _FOREIGN)
        end += entry.nbytes
    if size != end:
        mend = _WHOLE if size < end else _FOREIGN
        raise ConfigError(str(file), f"{size} bytes", f"{end} bytes, as its header says", mend)
    return dict(entries)


def _span(entry: Entry) -> tuple[int, int]:
    return entry.start, entry.nbytes


def _entry(file: Path, name: str, row: Any, data: int) -> tuple[str, Entry]:
    """``name`` and what its row of the header says; ``data``: first byte after the header."""

    def error(key: str, value: object, allowed: str) -> ConfigError:
        return ConfigError(f"{file}: {name}: {key}".removesuffix(": "), str(value)[:200], allowed, _FOREIGN)

    if not isinstance(row, dict):
        raise error("", row, "an object with dtype, shape and data_offsets")
    dtype, shape, span = row.get("dtype"), row.get("shape"), row.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise error("dtype", dtype, " | ".join(BITS))
    if not _sizes(shape):
        raise error("shape", shape, "a list of sizes")
    if not _sizes(span) or len(span) != 2:
        raise error("data_offsets", span, "two positions in the file")
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (span[1] - span[0]):
        raise error("data_offsets", span, f"{bits / 8:g} bytes, as {dtype} {shape} takes")
    return name, Entry(file, dtype, tuple(shape), data + span[0], span[1] - span[0])


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def index(folder: Path) -> dict[str, Entry]:
    """Entries of all tensors of the checkpoint in ``folder``, single file or sharded; those of its copy on this node, if any.

    :raises ConfigError: if there is no safetensors checkpoint, or two of them; if the index is broken or names a file that is
        not in the folder; if a tensor that it names is missing in its file.
    """
    folder = staged.here(folder)
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return header(folder / SINGLE)
        raise ConfigError(str(folder), "no weights", f"{SINGLE} or {INDEX}", "convert the checkpoint to safetensors")
    placed = _placed(folder / INDEX)
    files = sorted(set(placed.values()))
    if files != [SINGLE] and (folder / SINGLE).is_file():
        # transformers reads the single file, whatever is newer; other tools read the index
        raise ConfigError(str(folder), f"{SINGLE} beside {INDEX} with {len(files)} other file(s)", "one set of weights",
                          f"move one of the two away: {SINGLE}, or the index with its files")
    away = [name for name in files if not (folder / name).is_file()]
    if away:
        raise ConfigError(str(folder / INDEX), f"names {away[0]}, which is not there ({len(away)} of {len(files)} files)",
                          "files that lie beside the index", "copy the missing files, or download the checkpoint again")
    found: dict[str, Entry] = {}
    over: list[str] = []
    for name in files:
        for key, entry in header(folder / name).items():
            if placed.get(key) == name:
                found[key] = entry
            else:
                over.append(key)
    absent = sorted(placed.keys() - found)
    if absent:
        raise ConfigError(str(folder / INDEX), absent[0], "a tensor present in its file", "copy the checkpoint again")
    if over and files == [SINGLE]:  # transformers does not look at the index and takes them
        raise ConfigError(str(folder / INDEX), f"lacks {min(over)}", f"all tensors of {SINGLE}",
                          "remove the index: the file needs none")
    return found


def _placed(file: Path) -> dict[str, str]:
    """The index's map from tensor to file; a file is named relative to the folder and lies in it."""
    mend = "copy the index again"
    placed = read_object(file, mend).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ConfigError(str(file), str(placed)[:200], 'a JSON object with a "weight_map"', mend)
    for name, part in placed.items():
        inside = isinstance(part, str) and "\0" not in part and "\\" not in part and PurePosixPath(part).name
        if not inside or PurePosixPath(part).is_absolute() or ".." in PurePosixPath(part).parts:
            raise ConfigError(f"{file}: {name}", str(part)[:200], "the name of a file beside the index", mend)
    return placed


def listing(folder: Path) -> dict[str, Entry]:
    """Like :func:`index`, also for a folder that holds only a list of its tensors; those entries have no bytes."""
    file = folder / LISTED
    if any((folder / name).is_file() for name in (INDEX, SINGLE)) or not file.is_file():
        return index(folder)
    mend = "unpack the archive again"
    found = {}
    for name, row in read_object(file, mend).items():
        if not isinstance(row, list) or len(row) != 2 or row[0] not in list(BITS) or not _sizes(row[1]):
            raise ConfigError(f"{file}: {name}", str(row)[:200], "[dtype, shape]", mend)
        found[name] = Entry(file, row[0], tuple(row[1]), 0, 0)
    return found


def write_listing(source: Path, target: Path) -> None:
    """List the tensors of checkpoint ``source`` in folder ``target``."""
    table = {name: [entry.dtype, list(entry.shape)] for name, entry in listing(source).items()}
    (target / LISTED).write_text(json.dumps(table, indent=0) + "\n")
