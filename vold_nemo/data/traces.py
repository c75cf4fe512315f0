"""Traces: the teacher's answers on disk, and how they become the examples of stage 1.

One JSON object a line.  Every answered (prompt, sample) has one line, also the ones that are dropped, so that a resumed
generation knows what is done:

    id, sample          which prompt, which answer to it
    messages            the prompt, as chat messages: each model renders it under its own template
    response            text, special tokens left out
    response_ids        the teacher's token ids, with the end of sequence; null where the trace was dropped, or is text alone:
                        then the student's tokenizer reads `response` and ends it
    response_tokens     their number
    finish              stop | length (dropped: longer than the limit)
    source              of the prompt, if the set names it
    reward, reason      of traces.verify
    teacher, teacher_weights, thinking, template, sampling, seed, verifier      where it came from (lineage.weights_digest)

No trace is left out for being wrong: stage 1 aligns the student with the teacher's distribution, right or wrong (paper,
section 4.1).
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vold_nemo.config import ConfigError
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rendering import Renderer

_BLOCK = 512  # texts tokenised at a time


@dataclass(frozen=True)
class SFTExample:
    """``ids`` = prompt under the student's template, then the teacher's response; int32, 4 bytes a token."""

    ids: np.ndarray
    prompt_length: int
    name: str  # "<prompt id>/<sample>"
    source: str | None = None  # where the prompt came from, if the trace says so

    @property
    def response_length(self) -> int:
        return len(self.ids) - self.prompt_length


@dataclass
class TraceCounts:
    """What became of the lines of a trace file."""

    lines: int = 0
    kept: int = 0
    truncated: int = 0  # the teacher reached its limit
    too_long: int = 0  # prompt and response exceed sft.max_length
    foreign: int = 0  # holds ids that the student's tokenizer does not share (<think> of Qwen3)
    response_tokens: int = 0
    origins: list[dict] = field(default_factory=list)  # who wrote the kept ones: `traces` of a lineage

    def describe(self) -> str:
        return (
            f"traces: {self.kept} of {self.lines} kept, {self.response_tokens} response tokens; dropped "
            f"{self.truncated} truncated, {self.too_long} too long, {self.foreign} with ids that the student lacks"
        )


def shard_path(path: str | Path, shard: int, shards: int) -> Path:
    """``traces.jsonl`` itself for one shard, else ``traces.2-of-8.jsonl`` beside it."""
    path = Path(path)
    return path if shards == 1 else path.with_name(f"{path.stem}.{shard}-of-{shards}{path.suffix}")


def trace_files(path: str | Path) -> list[Path]:
    """The files of a trace set: a whole file, its shards, or several of these, where its job was shared out otherwise later.

    Raises:
        ConfigError: none there, or shards missing.
    """
    path = Path(path)
    found, mend = _shards(path), "run recipes/generate_traces.py for every shard, or correct traces.path"
    if not found and not path.is_file():
        raise ConfigError("traces.path", str(path), "a file written by recipes/generate_traces.py", mend)
    files = [path] if path.is_file() else []
    for count, shards in sorted(found.items()):
        wanted = [shard_path(path, shard, count) for shard in range(count)]
        if missing := sorted({*wanted} ^ {*shards}):
            allowed = f"the {count} shards of {path.name}, and no others"
            raise ConfigError("traces.path", missing[0].name, allowed, f"{mend}; shards of a number that was given up may go")
        files += wanted
    return files


def _shards(path: Path) -> dict[int, list[Path]]:
    """Number of shards: the files of ``path`` that are of so many."""
    found: dict[int, list[Path]] = {}
    for file in path.parent.glob(f"{glob.escape(path.stem)}.*-of-*{glob.escape(path.suffix)}"):
        if match := re.fullmatch(r"\.\d+-of-(\d+)", file.name[len(path.stem) : len(file.name) - len(path.suffix)]):
            found.setdefault(int(match[1]), []).append(file)
    return found


def shared_otherwise(path: str | Path, shards: int) -> list[Path]:
    """Files of the set that another number of jobs has begun or finished: what they answered is not asked again."""
    path = Path(path)
    whole = [path] if shards != 1 and path.is_file() else []
    return whole + [file for count, files in sorted(_shards(path).items()) if count != shards for file in sorted(files)]


def load_traces(
    path: str | Path,
    tokenizer,
    *,
    max_length: int,
    rejected: Rejected,
    end_ids: Sequence[int],
    shared: Sequence[bool] | None = None,
) -> tuple[list[SFTExample], TraceCounts]:
    """Traces as examples for the student, all in memory; arguments and errors are those of :func:`read_traces`."""
    counts = TraceCounts()
    found = read_traces(
        path, tokenizer, counts, max_length=max_length, rejected=rejected, end_ids=end_ids, shared=shared
    )
    return list(found), counts


def read_traces(
    path: str | Path,
    tokenizer,
    counts: TraceCounts,
    *,
    max_length: int,
    rejected: Rejected,
    end_ids: Sequence[int],
    shared: Sequence[bool] | None = None,
) -> Iterator[SFTExample]:
    """Examples for the student, one after the other, in the order of the file.

    Args:
        tokenizer: the student's; renders the prompt, and reads responses that are text.  Response ids are taken as they
            are: the vocabulary contract says that they mean the same.
        counts: filled while examples are read.
        max_length: prompt + response; longer traces are dropped and counted.
        end_ids: ids that end an answer.  A response that ended on an id of the teacher alone gets the student's own.
        shared: [V] whether an id means the same to both (:class:`VocabularyContract`); None = the tokenizer's ids.

    Raises:
        ConfigError: no file, too many bad lines, or no trace left.
    """
    allowed = np.asarray(shared if shared is not None else np.ones(len(tokenizer), dtype=bool))
    rejected.begin(str(path))
    for row in _tokenised(_rows(path, counts, rejected), tokenizer):
        prompt, response = row["prompt_ids"], row["response_ids"]
        if isinstance(prompt, str):
            rejected.add(row["line"], prompt, json.dumps(row["messages"]), str(path), name=f"{row['id']}/{row['sample']}")
            continue
        if response[-1] not in end_ids:
            response = np.append(response, tokenizer.eos_token_id)
        ids = np.concatenate([prompt, response]).astype(np.int32)
        if response.max() >= len(allowed) or not allowed[response].all():
            counts.foreign += 1
        elif len(ids) > max_length:
            counts.too_long += 1
        else:
            counts.kept += 1
            counts.response_tokens += len(response)
            count_origin(counts.origins, row)
            yield SFTExample(ids, len(prompt), f"{row['id']}/{row['sample']}", row.get("source"))
    rejected.check(counts.lines, str(path))
    if not counts.kept:
        raise ConfigError(
            "traces.path", f"{path}: {counts.describe()}", "at least one usable trace",
            "raise sft.max_length or traces.max_tokens; for ids that the student lacks set teacher.thinking=false or "
            "tokenizer.adopt_teacher_tokens=true",
        )  # fmt: skip


def _rows(path: str | Path, counts: TraceCounts, rejected: Rejected) -> Iterator[dict[str, Any]]:
    """Whole traces that ended by themselves; the others are counted.  What two files have, the first gives."""
    files, seen = trace_files(path), set[tuple[str, int]]()
    for file in files:
        for number, line in enumerate(_lines(file)):
            counts.lines += 1
            try:
                row = _checked(line)
            except ValueError as error:
                rejected.add(number, str(error), line, str(path))
                continue
            if len(files) > 1:
                if (row["id"], row["sample"]) in seen:
                    counts.lines -= 1
                    continue
                seen.add((row["id"], row["sample"]))
            if row["finish"] == "stop":
                yield row | {"line": number}
            else:
                counts.truncated += 1


def _tokenised(rows: Iterator[dict[str, Any]], tokenizer) -> Iterator[dict[str, Any]]:
    """Rows with ids: texts go through the tokenizer many at a time, which spreads them over the cores.

    ``prompt_ids``, or why there are none (:class:`vold_nemo.data.rendering.Renderer`), once for all samples of a prompt.
    """
    render = Renderer(tokenizer)
    while block := list(itertools.islice(rows, _BLOCK)):
        texts = [row for row in block if row["response_ids"] is None]
        if texts:
            # A response is what was said: "<|im_end|>" inside it is text, and never ends it.
            encoded = tokenizer([row["response"] for row in texts], add_special_tokens=False, split_special_tokens=True)
            for row, ids in zip(texts, encoded["input_ids"], strict=True):
                row["response_ids"] = np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int64)
        asked = {json.dumps(row["messages"]): row["messages"] for row in block}
        rendered = dict(zip(asked, render(list(asked.values())), strict=True))
        yield from (row | {"prompt_ids": rendered[json.dumps(row["messages"])]} for row in block)


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        yield from (line for line in lines if line.strip())


def _checked(line: bytes) -> dict[str, Any]:
    """A trace, its ids as int64 array, or a ValueError with the reason.  A line cut off by a kill is not JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for name, kind in (("id", str), ("sample", int), ("messages", list), ("finish", str)):
        if not isinstance(row.get(name), kind):
            raise ValueError(f"{name}: missing or not {kind.__name__}")
    if not all(isinstance(turn, dict) and isinstance(turn.get("content"), str | list) for turn in row["messages"]):
        raise ValueError("messages: not chat messages")
    is_text = row.get("response_ids") is None and isinstance(row.get("response"), str) and row["response"] != ""
    if is_text:
        row["response_ids"] = None
        if not row["response"].isascii() and row["response"] != row["response"].encode("utf-8", "replace").decode():
            raise ValueError("response: not Unicode text")  # half a surrogate pair
    elif row["finish"] == "stop":
        try:
            ids = np.asarray(row.get("response_ids"))
        except ValueError:  # lists of unequal length inside
            ids = np.zeros(0)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind != "i" or ids.min() < 0 or ids.max() >= 2**31:
            raise ValueError("response_ids: not a list of ids")
        row["response_ids"] = ids
    return row


class TraceWriter:
    """Appends traces to one shard's file and knows what it already holds.

    A last line torn by a kill is cut off when the file is opened; every batch is flushed to the disk (fsync) before the
    next one starts.  One process a file: an exclusive lock is held until :meth:`close`.

    Args:
        note: called with every row, those that the file held first.
        others: files of the same set whose traces are not made again; of those of the prompts ``mine`` it is told, too.

    Raises:
        ConfigError: another process writes this file, one was made with other settings, or a line inside it is broken.
    """

    def __init__(
        self, path: str | Path, settings: dict[str, Any], note: Callable[[dict[str, Any]], object] | None = None, *,
        others: Sequence[Path] = (), mine: Container[str] = (),
    ):  # fmt: skip
        import fcntl

        self.path, self.settings, self._tell = Path(path), settings, note
        self.done: set[tuple[str, int]] = set()
        self.dropped = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                "traces.path", str(self.path), "a file that no other process writes",
                "wait for the other job, or give every job its own traces.shard",
            ) from None  # fmt: skip
        self._read()
        for other in others:
            self._read_other(other, mine)

    def _read_other(self, file: Path, mine: Container[str]) -> None:
        for line in _lines(file):
            try:
                row = _checked(line if line.endswith(b"\n") else b"")
            except ValueError:
                continue  # its own job's to mend; what it lacks is made here
            self._agree(row, file)
            if (row["id"], row["sample"]) in self.done:
                continue
            if row["id"] in mine:
                self._note(row)
            self.done.add((row["id"], row["sample"]))

    def _agree(self, row: dict[str, Any], file: Path) -> None:
        for key, value in self.settings.items():
            if row.get(key) != value:
                raise ConfigError(
                    f"trace setting {key}", value, f"{row.get(key)!r}, with which {file} was begun",
                    "give the same settings, another traces.path, or remove the file",
                )  # fmt: skip

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0  # bytes up to which every line is a trace
        torn = None
        for number, line in enumerate(self._file):
            if torn is not None:
                raise ConfigError(
                    "traces.path", f"{self.path}, line {torn + 1}", "one trace a line; the last may be cut off",
                    "remove that line (its prompt is then answered again), or the file",
                )  # fmt: skip
            try:
                row = _checked(line if line.endswith(b"\n") else b"")
            except ValueError:
                torn = number
                continue
            self._agree(row, self.path)
            self._note(row)
            whole += len(line)
        self._file.truncate(whole)

    def _note(self, row: dict[str, Any]) -> None:
        self.done.add((row["id"], row["sample"]))
        self.dropped += row["finish"] != "stop"
        if self._tell is not None:
            self._tell(row)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append ``rows``, each with the settings beside it; on return they are on the disk."""
        self._file.write("".join(json.dumps({**row, **self.settings}) + "\n" for row in rows).encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())
        for row in rows:
            self._note(row)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *error) -> None:
        self.close()


def count_origin(traces: list[dict[str, Any]], row: Mapping[str, Any]) -> None:
    """Count trace ``row`` in the ``traces`` of a lineage, under who wrote it; null for what the line does not say."""
    writer = {"teacher": row.get("teacher"), "weights": row.get("teacher_weights"), "thinking": row.get("thinking")}
    for entry in traces:
        if all(entry[key] == value for key, value in writer.items()):
            entry["count"] += 1
            return
    traces.append(writer | {"count": 1})
