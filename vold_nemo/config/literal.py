"""Configurations that are data: what a run or an archive left behind is read as it stands, and nothing in it is looked up.

A composed configuration may say ``${oc.env:HOME}``, and OmegaConf looks it up wherever the value is read.  In a file that came
with weights this is somebody else's question about this machine.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from vold_nemo.config.errors import ConfigError

LARGEST = 4 << 20  # bytes of a file
_OPENING = re.compile(r"(\\*)\$\{")


def literal(tree: Any) -> Any:
    """``tree`` (of dicts, lists and plain values), of which OmegaConf makes the same tree: ``${`` in its texts is escaped."""
    if isinstance(tree, dict):
        return {key: literal(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [literal(value) for value in tree]
    # A backslash before it would be taken for the escape itself: each is doubled, and one more stands for the escape.
    return _OPENING.sub(lambda found: found[1] * 2 + r"\${", tree) if isinstance(tree, str) else tree


def parse_yaml(text: str | bytes, source: str) -> Any:
    """The plain values that ``text`` is: no tags, no anchors.

    :raises ConfigError: under the name ``source``.
    """
    mend = "restore it from a copy, or write it again"
    try:
        if len(text) > LARGEST:
            raise ConfigError(source, f"{len(text):,} bytes", f"at most {LARGEST:,}", mend)
        return yaml.load(text, _Plain)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(source, " ".join(str(error).split())[:200], "YAML of plain values", mend) from None


def read_yaml(file: Path) -> dict[str, Any]:
    """:func:`parse_yaml` of ``file``, a map; empty if the file is.

    :raises ConfigError: also where it cannot be read.
    """
    mend = "restore it from a copy, or write it again"
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(str(file), error.strerror or str(error), "a YAML file", mend) from error
    found = parse_yaml(content, str(file))
    if found is not None and not isinstance(found, dict):
        raise ConfigError(str(file), f"a YAML {type(found).__name__}", "a map", mend)
    return found or {}


class _Plain(get_yaml_loader()):  # type: ignore[misc]
    """What OmegaConf reads its own files with, without aliases: a hundred bytes of them stand for gigabytes."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("an alias, which no file of ours has")
        return super().compose_node(parent, index)
