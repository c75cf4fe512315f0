"""What can be known of a site's ``cluster.launch`` without its nodes: which variables it sets, and which cannot be right."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vold_nemo.config import ConfigError, LaunchConfig, network

_NAMED = {network.IFNAME: "interface", network.HCA: "hca"}


def variables(launch: LaunchConfig) -> dict[str, str]:
    """What a script exports: ``environment``, and what the keys of their own stand for."""
    own = {name: getattr(launch, key) for name, key in _NAMED.items()}
    return {**launch.environment, **{name: value for name, value in own.items() if value is not None}}


STAGED = ("traces", "sft", "vold")  # stages of a chain whose weights are copied


def findings(launch: LaunchConfig) -> Iterator[ConfigError]:
    """Contradictions and slips that a login node sees; what a node has, each node looks at itself (config/network.py)."""
    prefix = "cluster.launch.environment."
    yield from _one_line_each(launch)
    yield from _warned_in_time(launch)
    for name, key in _NAMED.items():
        asked, beside = getattr(launch, key), launch.environment.get(name)
        if asked is not None and beside is not None and asked != beside:
            mend = f"leave one of the two out: cluster.launch.{key} becomes this variable"
            yield ConfigError(f"{prefix}{name}", beside, f"cluster.launch.{key} = {asked!r}", mend)
    if launch.stage is not None and not launch.stage.startswith(("/", "$")):
        mend = "give a folder on each node's own disk: /local/scratch/$SLURM_JOB_ID, $TMPDIR/vold"
        yield ConfigError("cluster.launch.stage", launch.stage, "an absolute path, or one that begins with $VARIABLE", mend)
    for error in network.findings(variables(launch), prefix=prefix):
        own = _NAMED.get(error.key.removeprefix(prefix))
        given = own is not None and getattr(launch, own) is not None
        mend = error.mend.replace(error.key, f"cluster.launch.{own}")
        yield ConfigError(f"cluster.launch.{own}", error.value, error.allowed, mend) if given else error


def _one_line_each(launch: LaunchConfig) -> Iterator[ConfigError]:
    """Each of these becomes a line of a script: what ends a line, or its quotes, would become another."""
    options = ("account", "partition", "qos", "constraint", "gres", "memory", "time")
    said = {f"cluster.launch.{key}": getattr(launch, key) for key in options}
    for key, value in said.items():
        if value is not None and (_breaks(value) or '"' in value):
            yield ConfigError(key, value, "one line without quotes", "give what sbatch takes")
    for line in launch.options:
        if not line.startswith("-") or _breaks(line):
            yield ConfigError("cluster.launch.options", line, "an option of sbatch, on one line", "give what sbatch takes")
    for name, value in launch.environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
            yield ConfigError(f"cluster.launch.environment.{name}", value, "a variable's name, and a text", "correct it")


def _breaks(text: str) -> bool:
    return any(ord(character) < 32 or ord(character) == 127 for character in text)


def _warned_in_time(launch: LaunchConfig) -> Iterator[ConfigError]:
    """A job that is warned in its first moment only ever goes back into the queue."""
    limit = minutes(launch.time)
    if limit is not None and 0 < limit * 60 <= launch.signal_seconds:
        allowed = f"less than cluster.launch.time = {launch.time}, and room for some steps before it"
        yield ConfigError("cluster.launch.signal_seconds", launch.signal_seconds, allowed, "lower it, or ask for more time")


def minutes(time: str) -> float | None:
    """sbatch's --time: minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]]; None: none of these."""
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in [*parts, *([days] if dash else [])]) or len(parts) > 3:
        return None
    numbers = [int(part) for part in parts]
    if dash:
        hours, minute, second = (*numbers, 0, 0)[:3]
        return (int(days) * 24 + hours) * 60 + minute + second / 60
    if len(numbers) == 3:
        return numbers[0] * 60 + numbers[1] + numbers[2] / 60
    return numbers[0] + (numbers[1] / 60 if len(numbers) == 2 else 0)
