"""Walks over the schema (types) and over a configuration (values), by dotted key."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from vold_nemo.config.fields import Spec, spec
from vold_nemo.config.schema import Config


def hints(section: type) -> dict[str, Any]:
    """Name: type annotation, of each key of ``section``."""
    return typing.get_type_hints(section)


def section_of(hint: object) -> type | None:
    """The dataclass inside ``hint`` (``X`` or ``X | None``), if there is one."""
    candidates = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((item for item in candidates if isinstance(item, type) and dataclasses.is_dataclass(item)), None)


def mapped_section(hint: object) -> type | None:
    """The dataclass inside ``dict[str, X]``, if there is one."""
    return section_of(typing.get_args(hint)[1]) if typing.get_origin(hint) is dict else None


def hint_of(key: str) -> Any | None:
    """The type annotation of ``key`` (``teachers.NAME.precision``: of any name); None if the schema has no such key."""
    hint: Any = Config
    for part in key.split("."):
        section = section_of(hint)
        if mapped_section(hint) is not None:
            hint = mapped_section(hint)
        elif section is not None and part in hints(section):
            hint = hints(section)[part]
        else:
            return None
    return hint


def words(hint: Any) -> str:
    """A type as ``--help`` and messages have it: ``int``, ``list[str]``, ``dict[str, DatasetConfig]``."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"\w+(?:\.\w+)*\.(\w+)", r"\1", str(hint))


def spec_of(key: str) -> Spec:
    """What the schema says of ``key``: ``spec_of("plan.stage").choices``."""
    owner, _, name = key.rpartition(".")
    section = section_of(hint_of(owner) if owner else Config)
    if section is None:
        raise KeyError(key)
    return next(spec(field) for field in dataclasses.fields(section) if field.name == name)


def values(section: Any, prefix: str = "") -> Iterator[tuple[str, Spec, Any]]:
    """(dotted key, what the schema says, value) of every key below ``section``, an instance of a dataclass.

    Sections that are null are one value, None.  A map of sections is walked by its names (``teachers.NAME.precision``), and
    so is a map of plain values, each under the map's :class:`Spec`.
    """
    for field in dataclasses.fields(section):
        yield from _values(f"{prefix}{field.name}", spec(field), getattr(section, field.name))


def _values(key: str, said: Spec, value: Any) -> Iterator[tuple[str, Spec, Any]]:
    if dataclasses.is_dataclass(value):
        yield from values(value, f"{key}.")
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _values(f"{key}.{name}", said, inner)
    else:
        yield key, said, value


def value_at(config: Any, key: str) -> Any:
    """``config.a.b`` for ``"a.b"``; None where a section on the way is null."""

    def step(node: Any, name: str) -> Any:
        if node is None:
            return None
        return node.get(name) if isinstance(node, dict) else getattr(node, name)

    return functools.reduce(step, key.split("."), config)
