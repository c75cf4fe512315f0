"""Rows of a dataset, whatever it is stored in.

    file.jsonl    one JSON object a line; a line that is not JSON is a rejected row, not a crash
    file.json     one JSON array
    file.parquet  read with pyarrow; images stay encoded bytes
    folder        of such files whose names begin with the split, by name; or one made by ``datasets.save_to_disk``
    hub id        ``owner/name``: its snapshot in the local hub cache (recipes/prefetch.py, hf download), read through
                  ``datasets`` as its card says, file by file: nothing is built or copied first

A clone of a hub set (``hf download --local-dir``) is read like its snapshot where ``subset`` names a configuration of it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError, DatasetConfig
from vold_nemo.config.sources import is_hub_id, local_folder
from vold_nemo.data.rejected import Rejected

SUFFIXES = (".jsonl", ".json", ".parquet")


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


def _file_rows(file: Path) -> Iterator[Any]:
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
    elif file.suffix == ".json":
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError("data path", str(file), "one JSON array", f"correct the file: {error}") from error
        if not isinstance(rows, list):
            raise ConfigError("data path", str(file), "one JSON array", "wrap the rows in [ ], or use .jsonl")
        yield from rows
    else:
        with file.open("rb") as lines:  # bytes: a line with broken UTF-8 is one bad row, not the end of the file
            for line in lines:
                if not line.strip():
                    continue
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):  # RecursionError: 100 kB of opening brackets
                    yield _NotJSON(line[:4000].decode("utf-8", "backslashreplace"))


def _parquet_rows(file: Path) -> Iterator[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Arrow batches keep image columns as {bytes, path}: nothing is decoded before a model looks at it.
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ConfigError("data path", str(file), "a parquet file", f"write it again: {error}") from error


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
        else:  # what only the cache of `datasets` holds, or a script of a set's own
            dataset = datasets.load_dataset(config.path, config.subset, split=config.split, revision=config.revision)
    except Exception as error:  # hub, cache and builder errors share no base class
        raise ConfigError(
            "data path", f"{config.path}, subset {config.subset}, split {config.split}",
            "an existing *.jsonl, *.json, *.parquet, folder, or a hub id in the cache, with that subset and split",
            f"correct the path, or fetch it where there is a network ({type(error).__name__}: {str(error)[:200]})",
        ) from error  # fmt: skip
    for table in dataset.with_format("arrow").iter(batch_size=256):
        yield from table.to_pylist()
