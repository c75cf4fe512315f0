"""Rehearsals of before: where they lie, and of which configuration each was.  No torch."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from vold_nemo.config import Config
from vold_nemo.config.tree import values
from vold_nemo.config.writing import replace_text, writing

# What does not change a rehearsal: where things lie, how jobs are started, what else is printed.
_ASIDE = re.compile(
    r"(device|dry_run|plan\.path|strict|explain|search|sbatch|outputs|seed|evidence|json|vold\.start|vold\.run|sft\.run)$"
    r"|(rehearse|logging|report|compare|reproduce|verify|handoff|evaluate|prefetch|prepare|limits|staging|cluster\.launch)\."
)


def digest(config: Config) -> str:
    """16 hex digits of all that decides what a rehearsal finds and is not the schema's default: a key that is new there makes
    no rehearsal another one."""
    usual = {key: value for key, _, value in values(Config())}
    own = {key: value for key, _, value in values(config) if not _ASIDE.match(key) and value != usual.get(key)}
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:16]


def name(stage: str, rank: int, world: int) -> str:
    return f"{stage}_rank{rank}_of_{world}.json"


def can_be_kept(config: Config) -> None:
    """
    Raises:
        ConfigError: nothing can be written into ``rehearse.path``.
    """
    folder = Path(config.rehearse.path)
    with writing("rehearse.path", folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / ".written", "")
        (folder / ".written").unlink()


def keep(config: Config, found: dict[str, Any]) -> Path:
    """Write ``found`` (``account.account``) into ``rehearse.path``."""
    file = Path(config.rehearse.path) / name(found["stage"], found["rank"], found["world"])
    with writing("rehearse.path", file.parent):
        replace_text(file, json.dumps(found, indent=1) + "\n")
    return file


def of(config: Config) -> list[dict[str, Any]]:
    """What was rehearsed of this configuration, in the order of stage and rank."""
    found = []
    for file in sorted(Path(config.rehearse.path).glob("*_rank*_of_*.json")):
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("configuration") == digest(config):
            found.append(content)
    return sorted(found, key=lambda one: (one["stage"], one["world"], one["rank"]))


def said(config: Config) -> str:
    """A line for a plan."""
    known = of(config)
    if not known:
        return "rehearsed here: not yet; recipes/rehearse.py runs any rank of this on fake tensors, without a GPU"
    wrong = sum(bool(one["violations"]) for one in known)
    ranks = ", ".join(f"{one['stage']} rank {one['rank']} of {one['world']}" for one in known)
    verdict = f"{wrong} of them with violations" if wrong else "no violation"
    return f"rehearsed here: {ranks}; {verdict}; last {max(one['when'] for one in known)} ({Path(config.rehearse.path)})"
