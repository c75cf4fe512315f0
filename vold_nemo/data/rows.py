"""Rows of a dataset, whatever it is stored in.

    file.jsonl    one JSON object a line; a line that is not JSON is a rejected row, not a crash
    file.json     one JSON array, or the lines of a .jsonl; a byte order mark, UTF-16 and CRLF do no harm in either
    file.parquet  read with pyarrow; images stay encoded bytes
    folder        of such files whose names begin with the split, by name; or one made by ``datasets.save_to_disk``
    hub id        ``owner/name``: its snapshot in the local hub cache (recipes/prefetch.py, hf download), read through
                  ``datasets`` as its card says, file by file: nothing is built or copied first

A clone of a hub set (``hf download --local-dir``) is read like its snapshot where ``subset`` names a configuration of it.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError, DatasetConfig
from vold_nemo.config.sources import is_hub_id, local_folder
from vold_nemo.data.rejected import Rejected

SUFFIXES = (".jsonl", ".json", ".parquet")
FIRST_ROWS = 100  # if a column is in none of so many, its name is wrong
_FEW = 64  # numbers of a list that are read as they were written; longer ones are embeddings


def dataset_files(config: DatasetConfig) -> list[Path]:
    """Files of ``config.path``, in the order in which they are read; empty for what ``datasets`` reads.

    Raises:
        ConfigError: a file of another kind, a folder without files of the split.
    """
    path = Path(config.path).expanduser()
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ConfigError("data path", str(path), "*.jsonl, *.json, *.parquet, folder, hub id", "convert the file")
        return [path]
    if not path.exists() and (path.suffix in SUFFIXES or not is_hub_id(config.path)):  # else the hub is asked, for a minute
        raise ConfigError("data path", config.path, "a path that exists, or a hub id (organisation/name)", "correct the path")
    if not path.is_dir() or config.subset is not None or _is_saved(path):
        return []
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    chosen = [file for file in found if file.name.startswith(config.split)]
    if not chosen:
        names = ", ".join(file.name for file in found[:8]) or "no such file"
        raise ConfigError(
            "data split", config.split, f"how the name of a {', '.join(SUFFIXES)} file in {path} begins ({names})",
            "set `split` to the beginning of the wanted names, or `path` to one file",
        )  # fmt: skip
    return chosen


def read_rows(config: DatasetConfig, rejected: Rejected) -> Iterator[tuple[int, Any, Path | None]]:
    """Yield ``(row number, row, file)`` for the readable ones of the first ``config.limit`` rows.

    A row is what was stored: a dict, or whatever a JSON line holds.  Row numbers run over all files and count rejected
    lines too, so that a number always means the same row.

    Raises:
        ConfigError: nothing there, or a file that cannot be read at all.
    """
    files = dataset_files(config)
    number = 0
    if not files:
        for row in _dataset_rows(config):
            if config.limit is not None and number >= config.limit:
                return
            yield number, row, None
            number += 1
    for file in files:
        for row in _file_rows(file):
            if config.limit is not None and number >= config.limit:
                return
            if isinstance(row, _NotJSON):
                rejected.add(number, "not JSON", row.line, str(config.path))
            else:
                yield number, row, file
            number += 1


def count_rows(config: DatasetConfig) -> int | None:
    """About how many rows :func:`read_rows` will read, without reading them; None where only reading tells."""
    import pyarrow
    import pyarrow.parquet

    total = 0
    for file in dataset_files(config):
        if file.suffix == ".jsonl":
            with file.open("rb") as lines:
                total += sum(1 for _ in lines)
        elif file.suffix == ".parquet":
            with contextlib.suppress(pyarrow.ArrowException):  # read_rows says what is wrong with it
                total += pyarrow.parquet.read_metadata(file).num_rows
        else:
            return None
    return min(total, config.limit or total) or None


def pick(row: Any, field: str) -> Any:
    """Value of a column, None if it is missing.

    Paths walk into structures: ``reward_model.ground_truth``, ``messages[0].content``, ``0.value``, ``messages[-1].content``.
    """
    if isinstance(row, dict) and field in row:
        return row[field]
    value = row
    for part in _BRACKETS.sub(r".\1", field).lstrip(".").split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and _NUMBER.fullmatch(part) and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


_BRACKETS = re.compile(r"\[(-?\d+)\]")
_NUMBER = re.compile(r"-?\d{1,9}")


def columns(row: Any) -> list[str]:
    """What a row offers to a field, for messages: its columns, or the entries of a list with theirs."""
    if isinstance(row, dict):
        return list(row)
    if isinstance(row, list):
        return [f"{i}.{name}" for i, entry in enumerate(row[:4]) if isinstance(entry, dict) for name in entry]
    return []


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


class _NotJSON:
    def __init__(self, line: str):
        self.line = line


class Absent:
    """Finds a mapping that names a column which the set does not have.

    Args:
        keys: the configuration's name for the mapping, ``data.*.fields``.
        must: field -> column (None: not asked for) that every row has: missed after the first rows.
        may: the same, of what some rows may lack: missed at the end.
    """

    def __init__(self, keys: str, path: str, must: Mapping[str, str | None], may: Mapping[str, str | None]):
        self.keys, self.path, self.rows, self.offered, self.must = keys, path, 0, [], set(must)
        self.open = {key: name for key, name in {**must, **may}.items() if name is not None}

    def see(self, row: Any) -> None:
        if not self.open or not isinstance(row, dict | list):
            return
        self.offered = self.offered or columns(row)
        self.open = {key: name for key, name in self.open.items() if pick(row, name) is None and name not in row}
        self.rows += 1
        if self.rows == FIRST_ROWS:
            self.missed(self.must)

    def missed(self, keys: Collection[str]) -> None:
        """Raise ConfigError for the first of ``keys`` whose column no row had."""
        for key, name in self.open.items() if self.rows else ():
            if key not in keys:
                continue
            near = difflib.get_close_matches(name, self.offered, n=1, cutoff=0.5)
            raise ConfigError(
                f"{self.keys}.{key}", f"{name}: in none of {self.rows} rows of {self.path}",
                f"a column of the set: {', '.join(self.offered[:12]) or 'none was found'}",
                f"did you mean {near[0]}?" if near else "name the column, or leave the key out if it is optional",
            )  # fmt: skip


def _file_rows(file: Path) -> Iterator[Any]:
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    with file.open("rb") as opened:
        start = opened.read(4096)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and (text := _decoded(file)) is not None:
        lines: Iterator[bytes] = iter(text.encode("utf-8", "surrogatepass").splitlines())
        start = text[:4096].encode("utf-8", "replace")
    else:
        lines = _lines(file)
    start = start.removeprefix(codecs.BOM_UTF8).lstrip()
    # A .jsonl that opens a bracket and a line, as a file of one array does that was given the wrong name.
    if file.suffix == ".json" or re.match(rb"\[\s*\n", start):
        yield from _array(file, lines)
    else:
        yield from map(_json_line, lines)


def _decoded(file: Path) -> str | None:
    with contextlib.suppress(UnicodeDecodeError):
        return file.read_bytes().decode("utf-16")
    return None


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:  # bytes: a line with broken UTF-8 is one bad row, not the end of the file
        for number, line in enumerate(lines):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
            if line.strip():
                yield line


def _json_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: 100 kB of opening brackets
        return _NotJSON(line[:4000].decode("utf-8", "backslashreplace"))


def _array(file: Path, lines: Iterator[bytes]) -> Iterator[Any]:
    """The rows of a file of one JSON array, or of JSON lines under the name of one.

    Raises:
        ConfigError: neither.
    """
    kept = list(lines)
    try:
        rows = json.loads(b"\n".join(kept))
    except (ValueError, RecursionError) as error:
        found = [_json_line(line) for line in kept]
        # the first line tells: of an array that was cut off it is an opening bracket
        if not found or isinstance(found[0], _NotJSON):
            raise ConfigError("data path", str(file), "one JSON array, or JSON lines", f"correct the file: {error}") from error
        yield from found
        return
    if not isinstance(rows, list):
        held = [name for name, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
        mend = f"write the rows of {', '.join(held[:4])} alone" if held else "wrap the rows in [ ], or use .jsonl"
        raise ConfigError("data path", str(file), "one JSON array, or JSON lines", mend)
    yield from rows


def _parquet_rows(file: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Arrow batches keep image columns as {bytes, path}: nothing is decoded before a model looks at it.
        opened = pyarrow.parquet.ParquetFile(file)
        written = _as_written(pyarrow.struct(list(opened.schema_arrow)))
        for batch in opened.iter_batches(batch_size=256):
            yield from map(written, batch.to_pylist()) if written is not None else batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: dates beyond Python's
        raise ConfigError("data path", str(file), "a parquet file", f"write it again: {str(error)[:200]}") from error


def _as_written(kind: Any) -> Callable[[Any], Any] | None:
    """A function that gives floats of 16 and 32 bits in a value of Arrow type ``kind`` the number of their shortest text.

    0.1 in 32 bits is 0.10000000149011612 in the 64 of Python's, which nobody wrote.  None where there are no such floats.
    """
    import numpy as np
    import pyarrow.types as types

    if types.is_float32(kind) or types.is_float16(kind):
        short = np.float32 if types.is_float32(kind) else np.float16
        return lambda value: None if value is None else float(str(short(value)))
    if types.is_struct(kind):
        inner = {field.name: read for field in kind if (read := _as_written(field.type)) is not None}
        return (lambda row: row and {**row, **{name: read(row[name]) for name, read in inner.items()}}) if inner else None
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        read = _as_written(kind.value_type)
        if read is not None:
            return lambda items: items if items is None or len(items) > _FEW else [read(item) for item in items]
    return None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Hub libraries that look into their caches alone: data are fetched by recipes/prefetch.py, and a typing error would
    otherwise be looked for on the network, for most of a minute."""
    import datasets
    import huggingface_hub.constants

    places = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    kept = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(places, kept, strict=True):
            setattr(module, name, value)


def _dataset_rows(config: DatasetConfig) -> Iterator[dict]:
    """A ``save_to_disk`` folder, a hub set's snapshot or its clone, through ``datasets``, as Arrow batches."""
    import datasets

    path = Path(local_folder(config.path, config.revision, "dataset")).expanduser()
    try:
        if path.is_dir() and _is_saved(path):
            dataset = datasets.load_from_disk(str(path))
            if isinstance(dataset, datasets.DatasetDict):
                dataset = dataset[config.split]
        elif path.is_dir():  # a stream: the files are read where they lie, and no Arrow copy of them is made
            dataset = datasets.load_dataset(str(path), name=config.subset, split=config.split, streaming=True)
        else:  # what only the cache of `datasets` holds
            with _offline():
                dataset = datasets.load_dataset(config.path, config.subset, split=config.split, revision=config.revision)
    except Exception as error:  # hub, cache and builder errors share no base class
        raise ConfigError(
            "data path", f"{config.path}, subset {config.subset}, split {config.split}",
            "an existing *.jsonl, *.json, *.parquet, folder, or a hub id in the cache, with that subset and split",
            f"correct the path, or fetch it where there is a network ({type(error).__name__}: {str(error)[:200]})",
        ) from error  # fmt: skip
    import pyarrow

    for table in dataset.with_format("arrow").iter(batch_size=256):
        written = _as_written(pyarrow.struct(list(table.schema)))
        yield from map(written, table.to_pylist()) if written is not None else table.to_pylist()
