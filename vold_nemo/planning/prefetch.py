"""What an experiment needs from outside, brought into the shared hub cache and written down with hashes.

The lock file names every model and data set, its commit on the hub, and each file's size and SHA-256.  A node without
internet compares its cache with the lock: what is missing or partial is found before a job starts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.sources import is_hub_id
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.evaluation.benchmarks.table import benchmark

FORMAT = 1
_IN_CACHE = re.compile(r"(models|datasets)--(.+)")
# Weights are safetensors only; a pickle is not even downloaded.
_IGNORED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.gguf", "*.onnx", "*.tflite")


@dataclass(frozen=True)
class Need:
    """One model or data set: a hub id with its pinned revision, or a local path."""

    key: str  # of the configuration
    kind: str  # model | dataset
    path: str
    revision: str | None = None

    @property
    def on_hub(self) -> bool:
        return is_hub_id(self.path)


def needs(config: Config) -> list[Need]:
    """Models and data sets that ``config`` names, each once."""
    student, teacher, data = config.student, config.teacher, config.data
    found = [
        Need("student.path", "model", *_hub_id(student.path, student.revision)),
        Need("teacher.path", "model", *_hub_id(teacher.path, teacher.revision)),
        *(Need(f"teachers.{name}.path", "model", *_hub_id(one.path, one.revision)) for name, one in config.teachers.items()),
    ]
    sets = {
        "data.prompts.path": data.prompts, "data.trace_prompts.path": data.trace_prompts,
        "vold.validation.data.path": config.vold.validation.data,
        "vold.validation.text.path": config.vold.validation.text,
        "evaluate.text.path": config.evaluate.text, "evaluate.image.path": config.evaluate.image,
        **{f"prepare.against.{name}.path": dataset for name, dataset in config.prepare.against.items()},
    }  # fmt: skip
    for name in config.evaluate.benchmarks:
        spec = benchmark(name)
        path = config.evaluate.benchmark_paths.get(name)
        key = f"evaluate.benchmarks: {name}"
        found.append(Need(key, "dataset", path or spec.hub, None if path else spec.revision))
    found += [
        Need(key, "dataset", *_hub_id(dataset.path, dataset.revision)) for key, dataset in sets.items() if dataset is not None
    ]
    return list({(need.kind, need.path): need for need in reversed(found)}.values())[::-1]


def _hub_id(path: str, revision: str | None) -> tuple[str, str | None]:
    """A snapshot in the cache goes by its hub id again."""
    for part in Path(path).parts:
        if match := _IN_CACHE.fullmatch(part):
            return match[2].replace("--", "/"), revision
    return path, revision


def locate(need: Need, *, offline: bool) -> Path:
    """Where ``need`` lies, downloaded unless ``offline``.

    :raises ConfigError: if it is neither here nor to be had.
    """
    if not need.on_hub:
        if not Path(need.path).exists():
            raise ConfigError(need.key, need.path, "a path that exists, or a hub id (organisation/name)", f"correct {need.key}")
        return Path(need.path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(need.path, repo_type=need.kind, revision=need.revision, local_files_only=offline,
                                      ignore_patterns=list(_IGNORED)))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        where = "in the hub cache (HF_HOME)" if offline else "on the hub, or in its cache"
        mend = "run recipes/prefetch.py where there is internet, with the same HF_HOME"
        if not offline:  # not there, gated, a full disk, no network, HF_HUB_OFFLINE: the hub's own words tell them apart
            said = " ".join(str(error).split())[:300]
            mend = f"correct the name or the revision, or log in (HF_TOKEN) if it is gated ({type(error).__name__}: {said})"
        raise ConfigError(need.key, f"{need.path} at {need.revision or 'main'}", f"a {need.kind} {where}", mend) from error


def digest(path: Path) -> dict[str, dict]:
    """{relative name: {bytes, sha256}} of a file, or of all files below a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    base = path.parent if path.is_file() else path
    return {str(file.relative_to(base)): _digest(file) for file in files}


def _digest(file: Path) -> dict:
    with file.open("rb") as handle:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def write_lock(config: Config, file: Path, say: Callable[[str], None] = print) -> None:
    """Fetch all that ``config`` needs and write ``file``."""
    entries = []
    for need in needs(config):
        where = locate(need, offline=False)
        files = digest(where)
        entries.append({"key": need.key, "kind": need.kind, "path": need.path,
                        # a snapshot's folder is named by its commit
                        "revision": where.name if need.on_hub else None, "files": files})
        say(f"{need.key}: {need.path}, {len(files)} files, {sum(f['bytes'] for f in files.values()) / 2**20:,.1f} MiB")
    with writing("prefetch.lock", file):
        replace_text(file, json.dumps({"format": FORMAT, "needs": entries}, indent=1) + "\n")


def check_lock(config: Config, file: Path) -> list[ConfigError]:
    """Everything that ``config`` needs and this machine's cache does not hold as ``file`` says.  No network."""
    try:
        entries = {(entry["kind"], entry["path"]): entry for entry in json.loads(file.read_text())["needs"]}
    except FileNotFoundError:
        mend = "run recipes/prefetch.py first, where there is internet"
        return [ConfigError("prefetch.lock", str(file), "a lock file that exists", mend)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = f"run recipes/prefetch.py again where there is internet ({type(error).__name__}: {error})"
        return [ConfigError("prefetch.lock", str(file), "a lock file as recipes/prefetch.py writes it", mend)]
    return [error for need in needs(config) for error in _differences(need, entries.get((need.kind, need.path)), file)]


def recorded(file: Path, path: str) -> dict[str, str]:
    """SHA-256 by file of the model whose folder is ``path``, as the lock ``file`` has them; empty where it names no such model.

    :raises ConfigError: the lock is there, and is none.
    """
    if not file.is_file():
        return {}
    try:
        for entry in json.loads(file.read_text())["needs"]:
            if (entry["kind"], entry["path"]) == ("model", _hub_id(path, None)[0]):
                # of another commit of the hub nothing is known
                known = entry["revision"] in (None, Path(path).name)
                return {name: said["sha256"] for name, said in entry["files"].items()} if known else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = f"run recipes/prefetch.py again where there is internet ({type(error).__name__}: {error})"
        raise ConfigError("prefetch.lock", str(file), "a lock file as recipes/prefetch.py writes it", mend) from error
    return {}


def _differences(need: Need, entry: dict | None, lock: Path) -> Iterator[ConfigError]:
    mend = "run recipes/prefetch.py again where there is internet"
    if entry is None:
        yield ConfigError(need.key, need.path, f"something that {lock} lists", mend)
        return
    try:
        where = locate(Need(need.key, need.kind, need.path, entry["revision"]), offline=True)
    except ConfigError as error:
        yield error
        return
    base = where.parent if where.is_file() else where
    for name, said in entry["files"].items():
        file = base / name
        size = file.stat().st_size if file.is_file() else None
        if size != said["bytes"]:
            found = "missing" if size is None else f"{size} bytes"
            yield ConfigError(need.key, f"{need.path}: {name} is {found}", f"{said['bytes']} bytes", mend)
        elif _digest(file)["sha256"] != said["sha256"]:
            yield ConfigError(need.key, f"{need.path}: {name} has other contents", f"SHA-256 {said['sha256']}", mend)
