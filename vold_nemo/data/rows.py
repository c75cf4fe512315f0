"""Rows of a dataset, whatever it is stored in.

    file.jsonl    one JSON object a line; a line that is not JSON is a rejected row, not a crash
    file.json     one JSON array
    file.parquet  read with pyarrow; images stay encoded bytes
    folder        of such files whose names begin with the split, by name; or one made by ``datasets.save_to_disk``
    hub id        ``owner/name`` in the local ``datasets`` cache
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError, DatasetConfig
from vold_nemo.data.rejected import Rejected

SUFFIXES = (".jsonl", ".json", ".parquet")


def dataset_files(config: DatasetConfig) -> list[Path]:
    """Files of ``config.path``, in the order in which they are read; empty for a hub id or a ``save_to_disk`` folder.

    Raises:
        ConfigError: a file of another kind, a folder without files of the split.
    """
    path = Path(config.path).expanduser()
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ConfigError("data path", str(path), "*.jsonl, *.json, *.parquet, folder, hub id", "convert the file")
        return [path]
    if not path.is_dir() or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
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
    """Value of a column, None if it is missing; dots walk into structures (``reward_model.ground_truth``)."""
    if isinstance(row, dict) and field in row:
        return row[field]
    value = row
    for part in field.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


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
    """A ``save_to_disk`` folder or a hub id, through ``datasets``, as Arrow batches."""
    import datasets

    path = Path(config.path).expanduser()
    try:
        if path.is_dir():
            dataset = datasets.load_from_disk(str(path))
            if isinstance(dataset, datasets.DatasetDict):
                dataset = dataset[config.split]
        else:
            dataset = datasets.load_dataset(config.path, split=config.split)
    except Exception as error:  # hub, cache and builder errors share no base class
        raise ConfigError(
            "data path", config.path, "an existing *.jsonl, *.json, *.parquet, folder, or a hub id with that split",
            f"correct the path, or fetch it where there is a network ({type(error).__name__}: {str(error)[:200]})",
        ) from error  # fmt: skip
    for table in dataset.with_format("arrow").iter(batch_size=256):
        yield from table.to_pylist()
