"""The kinds of things that verbs read, opened and put in words: checkpoints, data sets, benchmarks, what other verbs wrote.

A look raises :class:`Pending` for what is not there, and a plain ConfigError for what is there and cannot be used, as the run
would.  No device and no network; nothing is written.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vold_nemo.config import Config, ConfigError, DatasetConfig
from vold_nemo.config.json_files import read_object
from vold_nemo.config.sources import local_folder
from vold_nemo.data.prompts import Wanted, read_prompts
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rows import FIRST_ROWS, count_rows
from vold_nemo.data.traces import trace_files
from vold_nemo.megatron import architecture, forms, tensors
from vold_nemo.planning.validity import Pending, missing_model

QUESTIONS = 20  # of a benchmark, whose pictures are decoded


@dataclass(frozen=True)
class Input:
    """``look`` opens it and says in words what it is.  ``spared``: what the verb does without it."""

    key: str
    path: str
    look: Callable[[], str]
    spared: str = ""


def refused(error: ConfigError) -> Input:
    """What is wrong before anything is looked at."""

    def look() -> str:
        raise error

    return Input(error.key, str(error.value), look)


def missing(key: str, path: object, allowed: str, mend: str) -> Pending:
    return Pending(key, str(path) if path is not None else None, allowed, mend)


# Checkpoints


def model(config: Config, key: str, path: str) -> Input:
    return Input(key, path, partial(look_at_model, config, key, path))


def look_at_model(config: Config, key: str, path: str) -> str:
    """A model of the families that are trained, or that teach."""
    if not Path(path).is_dir():
        raise missing_model(key, path, config.miniature.path)
    arch = under(key, lambda: architecture.read(path))
    return f"{arch.family}, {_weights(key, path)}"


def answering(config: Config, key: str, path: str, mend: str) -> Input:
    """A checkpoint of any family."""

    def look() -> str:
        folder = Path(path)
        if not folder.is_dir():
            raise missing(key, path, "a checkpoint folder, or a hub id that is in the local cache", mend)
        kind = under(key, lambda: forms.whole_config(folder)).get("model_type")
        return f"{kind}, {_weights(key, path)}"

    return Input(key, path, look)


def _weights(key: str, path: str) -> str:
    entries = under(key, lambda: tensors.index(Path(path)))
    under(key, lambda: _look_at_tokenizer(Path(path)))
    files = len({entry.file for entry in entries.values()})
    return f"{files} file{'s' * (files > 1)} of weights, {sum(entry.nbytes for entry in entries.values()) / 2**20:,.1f} MiB"


def tokenizer(key: str, path: str) -> Input:
    def look() -> str:
        folder = Path(local_folder(path))
        if not folder.is_dir():
            raise missing(key, path, "a folder with tokenizer.json, or a hub id in the local cache", "correct the path")
        under(key, lambda: _look_at_tokenizer(folder))
        return "a tokenizer"

    return Input(key, path, look)


def _look_at_tokenizer(folder: Path) -> None:
    """Whether there is one that can be read, with a chat template; transformers is not asked, which takes seconds to import."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing more special
            mend = "copy it again"
            raise ConfigError(str(file), str(error)[:200], "a tokenizer of the tokenizers library", mend) from None
    elif not any(folder.glob(name) for name in ("vocab.*", "*.model", "*.tiktoken", "tekken.json")):
        raise ConfigError(str(folder), "no tokenizer", "tokenizer.json", "copy it from where the weights came from")
    named = folder / "tokenizer_config.json"
    known = read_object(named, "copy it again") if named.is_file() else {}
    files = ("chat_template.jinja", "chat_template.json")
    if not known.get("chat_template") and not any((folder / name).is_file() for name in files):
        raise ConfigError(str(folder), "no chat template", " or ".join(files), "add chat_template.jinja to the folder")


def under(key: str, look: Callable):
    """What ``look`` gives; its error under the configuration's ``key``."""
    try:
        return look()
    except Pending:
        raise
    except ConfigError as error:
        name = error.key if error.key.startswith(key) else f"{key}: {error.key}"
        raise ConfigError(name, error.value, error.allowed, error.mend) from error


# Data


def rows_of(config: Config, key: str, dataset: DatasetConfig, wanted: Callable[[], Wanted], spared: str = "") -> Input:
    return Input(f"{key}.path", dataset.path, lambda: _look_at_set(config, key, dataset, wanted()), spared)


def _look_at_set(config: Config, key: str, dataset: DatasetConfig, wanted: Wanted) -> str:
    """The first rows as the run reads them; columns that they do not have are errors of the run, too."""
    _is_there(key, dataset)
    rejected = Rejected(None, config.data.max_rejected_share)
    try:
        usable = sum(1 for _ in itertools.islice(read_prompts(dataset, rejected, wanted), FIRST_ROWS))
        rows = count_rows(dataset)
    except ConfigError as error:
        raise ConfigError(_named(error.key, key), error.value, error.allowed, error.mend) from error
    return rows_said(rows, usable, rejected)


def rows_said(rows: int | None, usable: int, rejected: Rejected) -> str:
    read = usable + rejected.count()
    bad = f", {rejected.count()} not ({rejected.summary()})" if rejected.count() else ""
    return f"{f'{rows:,} rows, ' if rows is not None else ''}of the first {read:,} {usable:,} usable{bad}"


def _is_there(key: str, dataset: DatasetConfig) -> None:
    if not Path(local_folder(dataset.path, dataset.revision, "dataset")).expanduser().exists():
        mend = "correct the path, or make it first; a set of the hub comes with recipes/prefetch.py"
        raise missing(f"{key}.path", dataset.path, "a file, a folder, or a hub id in the local cache", mend)


def _named(name: str, key: str) -> str:
    """``data path`` and ``data.*.fields.prompt`` of the set at ``key``."""
    for general, own in (("data path", f"{key}.path"), ("data split", f"{key}.split"), ("data.*.fields", f"{key}.fields")):
        if name.startswith(general):
            return own + name[len(general) :]
    return name if name.startswith(key) else f"{key}: {name}"


def asked(config: Config, *, learned: bool) -> Callable[[], Wanted]:
    """Questions with keys: those of a run that learns from them must be ones that the verifier can read."""
    from vold_nemo.rewards.answer_keys import refusal

    verifier = config.reward.verifier
    return lambda: Wanted(refuse=refusal(verifier, parse=learned), verifier=verifier)


def compared() -> Wanted:
    return Wanted(answers=False)


def benchmark_of(config: Config, name: str, spared: str = "") -> Input:
    from vold_nemo.evaluation.benchmarks.load import load_benchmark, locate
    from vold_nemo.evaluation.benchmarks.table import benchmark

    path = config.evaluate.benchmark_paths.get(name)

    def look() -> str:
        spec = benchmark(name)
        try:
            locate(spec, path)
        except ConfigError as error:
            raise Pending.of(error) from error
        rejected, limit = Rejected(None, 1.0), min(config.evaluate.limit or QUESTIONS, QUESTIONS)
        found = load_benchmark(name, path=path, limit=limit, system_prompt=None, rejected=rejected)
        return rows_said(None, len(found), rejected)

    return Input(f"evaluate.benchmarks: {name}", path or "as pinned", look, spared)


# What recipes wrote


def traces(key: str, path: str) -> Input:
    def look() -> str:
        try:
            files = trace_files(path)
        except ConfigError as error:
            either = Path(path).is_file()  # a whole file and shards: which of the two is meant?
            raise (error if either else Pending(key, path, error.allowed, error.mend)) from None
        usable = read = 0
        with files[0].open("rb") as lines:
            for line in itertools.islice(lines, FIRST_ROWS):
                read += 1
                usable += _is_trace(line)
        if read and not usable:
            raise ConfigError(key, f"{files[0]}: no trace in {read} lines", "traces of recipes/generate_traces.py",
                              "give the file that it wrote")  # fmt: skip
        return f"{len(files)} file{'s' * (len(files) > 1)}, of the first {read:,} lines {usable:,} traces"

    return Input(key, path, look)


def _is_trace(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"id", "messages", "response"} <= row.keys()


def run_to_export(config: Config) -> Input:
    """The newest checkpoint's manifest, or the table of a .nemo archive; not their bytes, which are compared when read."""
    key, run = "export.run", config.export.run
    both = (Path(config.outputs) / run, Path(run))
    mend = "train first, or correct export.run"

    def look() -> str:
        for path in both:
            if path.is_dir() or (path.is_file() and path.suffix == ".nemo"):
                return under(key, partial(_trained, path))
        allowed = f"a run folder under {config.outputs}, or a .nemo file"
        raise (ConfigError if any(path.exists() for path in both) else Pending)(key, run, allowed, mend)

    return Input(key, run, look)


def _trained(path: Path) -> str:
    import tarfile

    steps = {int(f.name[5:]): f for f in path.glob("checkpoints/step_*") if f.name[5:].isdigit()} if path.is_dir() else {}
    for step in sorted(steps, reverse=True):
        files = read_object(steps[step] / "manifest.json", "the checkpoint is damaged: an older one is read").get("files")
        if isinstance(files, dict):
            return f"checkpoint of step {step}, {len(files)} files"
    archive = path / "student.nemo" if path.is_dir() else path
    if not archive.is_file():
        raise Pending("export.run", str(path), "a folder with checkpoints/ or student.nemo", "train this run first")
    try:
        with tarfile.open(archive) as opened_archive:
            names = {name.removeprefix("./").split("/")[0] for name in opened_archive.getnames()}
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(str(archive), str(error)[:200], "a .nemo archive", "copy it again") from error
    if not {"model_config.yaml", "weights"} <= names:
        raise ConfigError(str(archive), ", ".join(sorted(names)[:8]), "model_config.yaml and weights/", "save it again")
    return f"{archive.name}, an archive"


def evaluation(key: str, where: str) -> Input:
    """A folder of answers, or the ``results.json`` beside them."""

    def look() -> str:
        from vold_nemo.evaluation.answer_row import read_answers

        folder = Path(where).parent if Path(where).suffix == ".json" else Path(where)
        files = [file for file in sorted((folder / "answers").glob("*.jsonl")) if ".part-" not in file.name]
        if not files:
            raise missing(key, where, "a folder with answers/<arm>.jsonl", "run recipes/evaluate.py with this path")
        return ", ".join(f"{file.stem} {len(under(key, partial(read_answers, file))):,} answers" for file in files)

    return Input(key, where, look)
