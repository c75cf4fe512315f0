"""Examples of stage 1 on disk: tokenised once for all runs and ranks, mapped into memory, never loaded.

A cache folder is named by a hash of everything that its ids hang on: the bytes of the trace files, the tokenizer, its
template, the settings.  It is written aside and renamed, so what bears the name was whole; whether it still is, the first rank
of each node looks before it is used.  One that is damaged is made again, and so is one that finds no room, in the node's
temporary folder; both are said.

    ids.bin         int32, one example's ids behind another's
    table.npy       [examples, 4] int64: end of its ids, prompt tokens, end of its name, number of its source
    names.bin       names, UTF-8, one behind another
    about.json      sizes, the sources, what became of the lines that were read
    rejected.jsonl  the lines that could not be used, if there are any
    manifest.json   name of the folder, size and SHA-256 of all of these, and its own digest
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vold_nemo.config import Config, ConfigError, manifest
from vold_nemo.config.writing import sync
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.templates import eos_ids
from vold_nemo.data.traces import SFTExample, TraceCounts, read_traces, trace_files

FORMAT = 3


class StoredExamples(Sequence[SFTExample]):
    """The examples of a cache folder; ``ids`` are views of the mapped file, read from disk when they are looked at."""

    def __init__(self, folder: Path):
        about = json.loads((folder / "about.json").read_text())
        self.folder, self.sources = folder, about["sources"]
        self.counts = TraceCounts(**about["counts"])
        self._table = np.load(folder / "table.npy", mmap_mode="r")
        self._ids = np.memmap(folder / "ids.bin", np.int32, "r")
        self._names = np.memmap(folder / "names.bin", np.uint8, "r")

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> SFTExample:
        end, prompt, name_end, source = self._table[index].tolist()
        start, _, name_start, _ = self._table[index - 1].tolist() if index else (0, 0, 0, 0)
        name = bytes(self._names[name_start:name_end]).decode()
        return SFTExample(self._ids[start:end], prompt, name, self.sources[source])

    def source_of_each(self) -> list[str | None]:
        return [self.sources[number] for number in self._table[:, 3].tolist()]


def fingerprint(files: Iterable[Path], settings: Mapping[str, Any]) -> str:
    """Hash of the files' bytes, in order, and of ``settings`` (JSON)."""
    digest = hashlib.sha256(json.dumps([FORMAT, settings], sort_keys=True).encode())
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:24]


def tokenizer_settings(tokenizer) -> dict[str, str]:
    """What of a fast tokenizer decides ids: its vocabulary, rules and added tokens, and its chat template."""
    whole = tokenizer.backend_tokenizer.to_str() + "\0" + str(tokenizer.chat_template)
    return {"tokenizer": hashlib.sha256(whole.encode()).hexdigest()}


def write(folder: Path, examples: Iterable[SFTExample], counts: TraceCounts, rejected: Path | None = None) -> None:
    """Write ``examples`` as they come and put ``folder`` in its place; ``counts`` is read when the last one has come.

    Where another process was first, its folder stays: the name says that the contents are the same.
    """
    aside = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        table, sources = [], {}
        end = name_end = 0
        with (aside / "ids.bin").open("wb") as ids, (aside / "names.bin").open("wb") as names:
            for example in examples:
                name = example.name.encode()
                end, name_end = end + len(example.ids), name_end + len(name)
                table.append((end, example.prompt_length, name_end, sources.setdefault(example.source, len(sources))))
                ids.write(np.ascontiguousarray(example.ids, dtype=np.int32))
                names.write(name)
        np.save(aside / "table.npy", np.asarray(table, dtype=np.int64))
        (aside / "about.json").write_text(json.dumps({"counts": asdict(counts), "sources": list(sources)}))
        if rejected is not None and rejected.exists():
            shutil.copyfile(rejected, aside / "rejected.jsonl")
        said = {"format": manifest.FORMAT, "cache": folder.name, "files": manifest.describe(aside)}
        (aside / manifest.FILE).write_text(manifest.text(said), encoding="utf-8")
        for file in aside.iterdir():
            sync(file)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def damage(folder: Path) -> str:
    """What is wrong with a cache folder, in words; empty if nothing.  Every byte is read."""
    try:
        said = manifest.read(folder)
        if said.get("cache") != folder.name:
            return f"{manifest.FILE}: of {said.get('cache')!r}"
        return manifest.shown(manifest.problems(folder, said["files"]))
    except (manifest.Damaged, OSError) as error:
        return str(error)


def stored_traces(
    config: Config, tokenizer, shared: Sequence[bool], rejected: Path, *, rank: int, local_rank: int
) -> StoredExamples:
    """The traces of ``traces.path`` as examples for the student, from ``data.cache``.  Collective over the world.

    Args:
        shared: [V] whether an id means the same to student and teacher.
        rejected: where the run's lines that cannot be used are listed, also those of a cache made by another run.

    Raises:
        ConfigError: as :func:`vold_nemo.data.traces.read_traces`, on every rank.
    """
    source, ends = config.traces.path, eos_ids(config.student.path, tokenizer)
    options = {"max_length": config.sft.max_length, "end_ids": ends}

    def named() -> str:
        known = bytes(np.asarray(shared, dtype=bool).data)
        settings = {**options, **tokenizer_settings(tokenizer), "shared": hashlib.sha256(known).hexdigest()}
        return fingerprint(trace_files(source), settings)

    def build(folder: Path) -> None:
        counts = TraceCounts()
        bad = Rejected(rejected if rank == 0 else None, config.data.max_rejected_share)
        found = read_traces(source, tokenizer, counts, rejected=bad, shared=shared, **options)
        write(folder, found, counts, bad.path)

    folder = cache_folder(Path(config.data.cache), build, rank=rank, local_rank=local_rank, named=named)
    if rank == 0 and (folder / "rejected.jsonl").exists():
        rejected.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "rejected.jsonl", rejected)
    return StoredExamples(folder)


def cache_folder(folder: Path, build: Callable[[Path], None], *, rank: int, local_rank: int, named: Callable[[], str]) -> Path:
    """The cache folder ``folder / named()``, made by ``build`` where it is missing or damaged; collective over the world.

    Rank 0 looks at the sources and builds; where a node does not see its folder (a local disk), the node's first rank builds
    there.  Where ``folder`` cannot be written, each node has its own in its temporary folder.  What one rank raises as
    ConfigError all raise: none is left waiting.
    """
    import torch.distributed as dist

    def attempt(work: bool, job: Callable[[], Any]) -> list:
        said: list = [None, None]
        try:
            said[0] = job() if work else None
        except ConfigError as error:
            said[1] = (error.key, error.value, error.allowed, error.mend)
        everywhere: list = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, said)
        for _, problem in everywhere:
            if problem is not None:
                raise ConfigError(*problem)
        return [result for result, _ in everywhere]

    def make_if_missing(path: Path) -> bool:
        """Whether it is there now; there may be no room for it."""
        if path.is_dir() and (said := damage(path)):
            print(f"warning: cache {path} is damaged and is made again: {said}", file=sys.stderr)
            with contextlib.suppress(OSError):  # another process was first
                shutil.rmtree(path.rename(path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")))
        try:
            if not path.is_dir():
                build(path)
        except OSError as error:
            print(f"warning: data.cache = {path.parent} cannot be written ({error.strerror or error})", file=sys.stderr)
            return False
        return True

    def first() -> tuple[str, bool]:
        name = named()
        return name, make_if_missing(folder / name)

    name, made = attempt(rank == 0, first)[0]
    if made and False not in attempt(local_rank == 0 and rank != 0, lambda: make_if_missing(folder / name)):
        return folder / name
    path = _of_the_node() / name
    if rank == 0:
        print(f"warning: each node keeps the tokenised traces in {path.parent} instead", file=sys.stderr)
    if False in attempt(local_rank == 0, lambda: make_if_missing(path)):
        raise ConfigError("data.cache", str(folder), f"a folder with room; nor has {path.parent}", "make room, or name another")
    return path


def _of_the_node() -> Path:
    """A cache of this account's own in the node's temporary folder.

    :raises ConfigError: the folder of that name is somebody else's.
    """
    path = Path(tempfile.gettempdir()) / f"vold_nemo_cache_{os.getuid()}"
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
    if path.exists() and (path.is_symlink() or path.stat().st_uid != os.getuid()):
        raise ConfigError("data.cache", str(path), "a folder of your own", "make room in data.cache, or set TMPDIR")
    return path
