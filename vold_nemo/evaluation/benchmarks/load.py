"""The questions of a benchmark, read from a folder or from the hub cache; nothing is ever downloaded here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vold_nemo.config import ConfigError, DatasetConfig
from vold_nemo.data.messages import RowError
from vold_nemo.data.pictures import PictureError, open_picture
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rows import read_rows
from vold_nemo.evaluation.benchmarks.question import Question
from vold_nemo.evaluation.benchmarks.table import Benchmark, benchmark


def locate(spec: Benchmark, path: str | None) -> Path:
    """The folder of the data set: ``path`` (a folder, or another hub id), else the pinned revision in the local cache."""
    if path is not None and Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    hub, revision = (spec.hub, spec.revision) if path is None else (path, None)
    try:
        return Path(snapshot_download(hub, repo_type="dataset", revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        at = f" --revision {revision}" if revision else ""
        fetch = f"fetch it where there is a network (recipes/prefetch.py; hf download --repo-type dataset {hub}{at}), or give "
        raise ConfigError(
            f"evaluate.benchmarks: {spec.name}",
            path or f"{hub} at {revision or 'main'}",
            "a folder, or a data set in the hub cache",
            f"{fetch if path is None or '/' in path[1:] else 'give '}evaluate.benchmark_paths.{spec.name}=FOLDER",
        ) from error


def files_of(spec: Benchmark, folder: Path) -> list[tuple[int, Path]]:
    """(number of the pattern, from 1, file) in the order of ``spec.files``; a flat folder of the same files will do, too."""
    found: list[tuple[int, Path]] = []
    for number, pattern in enumerate(spec.files, start=1):
        here = sorted(folder.glob(pattern)) or sorted(folder.glob(Path(pattern).name))
        found += [(number, file) for file in here]
    if spec.files[0] in ("data/test-*.parquet", "data/testmini-*.parquet") and len({number for number, _ in found}) > 1:
        found = [
            (number, file) for number, file in found if number == found[0][0]
        ]  # the same questions in another form
    if not found:
        raise ConfigError(
            f"evaluate.benchmarks: {spec.name}", str(folder), " or ".join(spec.files), "give the folder that holds them"
        )
    return found


def load_benchmark(
    name: str, *, path: str | None, limit: int | None, system_prompt: str | None, rejected: Rejected
) -> list[Question]:
    """The first ``limit`` questions (of each of DynaMath's variants), in the order of the files.

    Rows that are no questions go to ``rejected``; an id that comes twice gets its number.

    Raises:
        ConfigError: no such benchmark, its files are not here, or too many bad rows.
    """
    spec = benchmark(name)
    folder = locate(spec, path)
    rejected.begin(name)
    questions: list[Question] = []
    known: set[str] = set()
    taken = total = 0
    last = 0
    for number, file in files_of(spec, folder):
        if spec.numbered and number != last:
            taken, last = 0, number
        for place, row in _rows(file, rejected):
            if limit is not None and taken >= limit:
                break
            total += 1
            try:
                if not isinstance(row, dict):
                    raise RowError(f"row: {type(row).__name__} instead of an object")
                row = {"_number": place, **row}
                question = spec.question(row, file.parent, number) if spec.numbered else spec.question(row, file.parent)
                question.sizes = [open_picture(image).size for image in question.images]
            except (RowError, PictureError) as error:
                reason = f"image: {error}" if isinstance(error, PictureError) else str(error)
                rejected.add(place, reason, row, name)
                continue
            if question.id in known:
                question.id = f"{question.id}#{place}"
            known.add(question.id)
            if system_prompt is not None:
                question.messages.insert(0, {"role": "system", "content": system_prompt})
            questions.append(question)
            taken += 1
    if not questions:
        raise ConfigError(f"evaluate.benchmarks: {name}", str(folder), "at least one question", "correct the folder")
    rejected.check(total, name)
    return questions


def _rows(file: Path, rejected: Rejected) -> Iterator[tuple[int, Any]]:
    """Rows of a file; LogicVista's ``dataset.json`` is an object of rows by id."""
    if file.suffix == ".json":
        try:
            content = json.loads(file.read_bytes())  # bytes: with a byte order mark, or in UTF-16
        except (ValueError, RecursionError):
            content = None  # JSON lines, or nothing that can be read: rows.py tells them apart
        if isinstance(content, dict) and content and all(isinstance(row, dict) for row in content.values()):
            yield from enumerate({"id": name, **row} for name, row in content.items())
            return
    for place, row, _ in read_rows(DatasetConfig(path=str(file)), rejected):
        yield place, row
