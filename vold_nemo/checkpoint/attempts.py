"""What each start of a run ran under, and whether the next one may go on from there.

    attempts/attempt_2.json            number, when and where, versions, digests of weights and data, resolved settings
    checkpoints/step_50/attempt.json   the same of the attempt that wrote it; the checkpoint's manifest covers it

A run that goes on compares itself with the attempt that wrote its checkpoint.  All that differs is printed.  What changes the
meaning of the run (another loss, other answers, other weights) is refused until ``checkpoint.accept`` names it; what no run can
go on with is refused always.  Layouts and data have errors of their own (loading.py, models/student.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vold_nemo.checkpoint.model_card import code
from vold_nemo.config import Config, ConfigError
from vold_nemo.config.installed import version
from vold_nemo.config.json_files import read_object
from vold_nemo.config.reads import reads_of
from vold_nemo.config.tree import hint_of, value_at, values
from vold_nemo.config.writing import replace_text, writing

IN_CHECKPOINT = "attempt.json"
FOLDER = "attempts"

# Sections and top-level keys that decide what a stage computes.  Of stage 1's data the order's name knows all that counts.
MEANS = {
    "sft": ("sft", "student", "tokenizer", "seed", "precision"),
    "vold": ("vold", "objective", "rollout", "reward", "data", "student", "teacher", "teachers", "tokenizer", "seed",
             "precision"),
}  # fmt: skip
# Of the other sections that a stage reads: who computes, when it stops, what it says.
FREE_SECTIONS = {
    "sft": ("traces", "data", "teacher", "teachers", "objective", "parallel", "checkpoint", "limits", "logging", "profile",
            "device", "name", "outputs"),
    "vold": ("parallel", "checkpoint", "limits", "logging", "profile", "device", "name", "outputs"),
}  # fmt: skip
# And of those above: names, sizes of pieces, checks, and what is compared by its contents instead.
FREE = (
    "student", "vold.start", "teacher.path", "teacher.revision", "teachers.*.path", "teachers.*.revision",
    "data.prompts.path", "data.prompts.subset", "data.prompts.split", "data.prompts.revision", "data.prompts.limit",
    "data.prompts.max_characters", "data.trace_prompts", "data.trace_mixture", "data.cache", "data.max_rejected_share",
    "data.without",
    "sft.run", "sft.steps", "sft.micro_batch", "sft.optimizer.max_skipped",
    "vold.run", "vold.steps", "vold.micro_batch_tokens", "vold.rollout_log_every", "vold.rollout_log_tokens", "vold.offload",
    "vold.validation", "vold.optimizer.max_skipped",
    "objective.arm", "objective.chunk_tokens", "objective.kernels", "objective.skip",
    "rollout.batch", "rollout.probe_tolerance", "rollout.checksum_parts", "rollout.mismatch_warning", "rollout.sleep",
    "rollout.vllm", "reward.workers",
    "teacher.offload", "teacher.offload_to", "teacher.fp8.probe_tokens", "teacher.fp8.probe_layers", "teacher.fp8.max_drift",
    "teachers.*.offload", "teachers.*.offload_to", "teachers.*.fp8.probe_tokens", "teachers.*.fp8.probe_layers",
    "teachers.*.fp8.max_drift",
)  # fmt: skip
NEVER = ("precision", "sft.optimizer.distributed", "vold.optimizer.distributed")  # the checkpoint has another form
_DISTRIBUTIONS = ("torch", "megatron-core", "transformers", "nemo-toolkit", "transformer-engine", "vllm")
_WHOLE = 64 << 20  # bytes of a weight file that are read to the last
_BLOCK, _BLOCKS = 1 << 20, 64  # of a larger one so many, from end to end
_SHOWN = 12


def describe(config: Config, stage: str, *, data: str, world: int, number: int) -> dict[str, Any]:
    """The record of attempt ``number``."""
    weights = {key: digest(path) for key, path in _weights(config, stage)}
    slurm = {name: os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT") if name in os.environ}
    return {
        "attempt": number, "stage": stage, "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(), "process": os.getpid(), "slurm": slurm, "world": world,
        "versions": versions(), "weights": weights, "data": data, "accepted": list(config.checkpoint.accept),
        "settings": settings(config, stage),
    }  # fmt: skip


def settings(config: Config, stage: str) -> dict[str, Any]:
    """Key: value of all that ``recipes/<stage>.py`` reads."""
    read = set(reads_of(stage))
    return {key: value for key, _, value in values(config) if key.split(".")[0] in read}


def versions() -> dict[str, str]:
    found = {name: version(name) for name in _DISTRIBUTIONS}
    return {"python": platform.python_version(), "code": code(), **{name: one for name, one in found.items() if one}}


def _weights(config: Config, stage: str) -> Iterator[tuple[str, str]]:
    """(key, folder) of the weights that a stage starts from and learns from."""
    keys = {"sft": ["student.path"], "vold": ["vold.start"]}[stage]
    if stage == "vold" and value_at(config, "objective.kl.enabled"):
        keys += ["teacher.path", *(f"teachers.{name}.path" for name in value_at(config, "teachers"))]
    yield from ((key, value_at(config, key)) for key in keys)


def digest(folder: str | Path) -> str | None:
    """32 hex digits of a checkpoint's ``config.json`` and weights: files up to 64 MiB to the last byte, of larger ones 64 MiB
    evenly spread.  None where there is no such folder (a plan, a rehearsal)."""
    found, files = hashlib.blake2b(digest_size=16), sorted(Path(folder).glob("*.safetensors"))
    about = Path(folder) / "config.json"
    for file in [*([about] if about.is_file() else []), *files]:
        size = file.stat().st_size
        found.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            if size <= _WHOLE:
                while block := content.read(_BLOCK):
                    found.update(block)
                continue
            for number in range(_BLOCKS):
                content.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                found.update(content.read(_BLOCK))
    return found.hexdigest() if files else None


# -- comparing ---------------------------------------------------------------------------------------------------------


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (before, now)} of settings, weights and versions that differ; a key that one of them lacks is None there."""
    found = {}
    for part in ("settings", "versions"):
        was, is_ = before.get(part, {}), json.loads(json.dumps(now[part]))  # as a record that has been read
        found |= {key: (was.get(key), is_.get(key)) for key in {**was, **is_} if was.get(key) != is_.get(key)}
    for key, is_ in now["weights"].items():
        was = before.get("weights", {}).get(key)
        if was and is_ and was != is_:  # the folder's name is one of the settings
            found[key] = (f"weights {was[:12]}", f"weights {is_[:12]}")
    for key in ("stage", "world"):
        if before.get(key) != now[key]:
            found[key] = (before.get(key), now[key])
    found.pop("checkpoint.accept", None)
    return dict(sorted(found.items()))


def meaningful(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a run with another ``key`` is another run."""
    if key in now["weights"] and before.get("weights", {}).get(key) and now["weights"][key]:
        return before["weights"][key] != now["weights"][key]
    if key in now["weights"]:  # contents that are not known: the name has to do
        return True
    return key.split(".")[0] in MEANS[now["stage"]] and not any(_covers(free, key) for free in FREE)


def _covers(pattern: str, key: str) -> bool:
    """Whether ``key`` is ``pattern`` or lies below it; ``*`` is any one name."""
    wanted, found = pattern.split("."), key.split(".")
    return len(found) >= len(wanted) and all(one in ("*", other) for one, other in zip(wanted, found, strict=False))


def compare(before: Mapping[str, Any], now: Mapping[str, Any], accept: Collection[str], place: Path) -> str:
    """What differs, in words; empty if nothing does.  ``place``: the checkpoint that ``before`` wrote.

    :raises ConfigError: the meaning would change and ``accept`` does not say so, or the checkpoint cannot be gone on with.
    """
    found = differences(before, now)
    never = [key for key in found if key in NEVER or key == "stage"]
    if never:
        key = never[0]
        raise ConfigError(
            key, found[key][1], f"{found[key][0]!r}, with which {place} was written: what lies there has another form",
            "restore it, or export the checkpoint and start a new run from the exported weights",
        )  # fmt: skip
    other = [key for key in found if meaningful(key, before, now)]
    asked = [key for key in other if not any(_covers(one, key) for one in accept)]
    if asked:
        raise ConfigError(
            "checkpoint.accept", list(accept),
            f"each of {', '.join(asked)}: this would go on from {place} as another run\n           "
            + "\n           ".join(_lines(found, asked)),
            f"restore them, or go on on purpose: 'checkpoint.accept=[{','.join([*accept, *asked])}]', or start a new run",
        )  # fmt: skip
    if not found:
        return ""
    said = f"goes on from {place}, written by attempt {before.get('attempt')}; different now:"
    return "\n".join([said, *(f"  {line}" for line in _lines(found, list(found)))])


def _lines(found: Mapping[str, tuple[Any, Any]], keys: list[str]) -> list[str]:
    lines = [f"{key}: {_short(found[key][0])} -> {_short(found[key][1])}" for key in keys[:_SHOWN]]
    return lines + ([f"and {len(keys) - _SHOWN} more: attempts/ has all"] if len(keys) > _SHOWN else [])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:100] + "..."


def check_accept(accept: Collection[str]) -> Iterator[ConfigError]:
    """Names in ``checkpoint.accept`` that no key has."""
    for key in accept:
        if hint_of(key) is None:
            yield ConfigError("checkpoint.accept", key, "keys of the configuration", "correct it: the refusal names them")


# -- on disk -----------------------------------------------------------------------------------------------------------


def next_number(run: Path) -> int:
    numbers = [int(path.stem.removeprefix("attempt_")) for path in (run / FOLDER).glob("attempt_*.json")
               if path.stem.removeprefix("attempt_").isdigit()]  # fmt: skip
    return max(numbers, default=0) + 1


def write(run: Path, record: Mapping[str, Any]) -> None:
    with writing("outputs", run):
        replace_text(run / FOLDER / f"attempt_{record['attempt']}.json", text(record))


def text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def of_checkpoint(path: Path) -> dict[str, Any] | None:
    """The record of the attempt that wrote ``path``, whose files have been found whole; None where it kept none.

    :raises ConfigError: it is no such record.
    """
    file = path / IN_CHECKPOINT
    if not file.is_file():
        return None
    mend = "restore the checkpoint from a copy"
    found = read_object(file, mend)
    parts = ("settings", "versions", "weights")
    if not all(isinstance(found.get(part, {}), dict) for part in parts):
        raise ConfigError(str(file), str(found)[:100], "the record of an attempt", mend)
    return found
