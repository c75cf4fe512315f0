"""Dataclasses as JSON: what a file lacks, or holds in another form, is an error that names it.

A field with a default stands in a file only where it differs from it; every other field must be there.  Keys that this version
does not know are kept in ``more`` and written back behind the known ones: an older version loses nothing of a newer one's.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from vold_nemo.config import ConfigError

NAMES = {str: "text", int: "a whole number", float: "a finite number", dict: "an object", list: "a list", NoneType: "null"}
MEND = "correct the file, or make it anew with the recipe that wrote it"


@dataclass
class Record:
    """Subclasses add their fields, in the order of the file; ``metadata["key"]`` is a field's key, where that is no name."""

    more: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)

    def to_json(self) -> dict[str, Any]:
        found = {}
        for name, key, default in layout(type(self)):
            value = getattr(self, name)
            if default is MISSING or value != default:
                found[key] = plain(value)
        return found | self.more

    @classmethod
    def from_json(cls, data: Any, where: str) -> Self:
        """``where`` names the place in front of a key: ``results.json: accuracy.sft``."""
        if not isinstance(data, dict):
            raise ConfigError(where, data, NAMES[dict], MEND)
        hints, values, known = types(cls), {}, set()
        for name, key, default in layout(cls):
            known.add(key)
            if key in data:
                values[name] = read(hints[name], data[key], f"{where}: {key}")
            elif default is MISSING:
                raise ConfigError(f"{where}: {key}", None, allowed(hints[name]), f"the key is missing: {MEND}")
        return cls(**values, more={key: value for key, value in data.items() if key not in known})


@functools.cache
def layout(cls: type[Record]) -> list[tuple[str, str, Any]]:
    """(field, key, default or MISSING) in the order of the file."""
    return [
        (one.name, one.metadata.get("key", one.name), one.default_factory() if callable(one.default_factory) else one.default)
        for one in fields(cls)
        if one.name != "more"
    ]


@functools.cache
def types(cls: type[Record]) -> dict[str, Any]:
    return get_type_hints(cls)


def plain(value: Any) -> Any:
    """What ``json`` writes of records, and of mappings and sequences of them."""
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def read(kind: Any, value: Any, where: str) -> Any:
    """``value`` as ``kind``: a record, text, number, None, or a list, dict or union of these."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else read(parts[0], value, where)
    if origin is dict and isinstance(value, dict):
        return {name: read(parts[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is list and isinstance(value, list):
        return [read(parts[0], item, f"{where}[{place}]") for place, item in enumerate(value)]
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_json(value, where)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:  # neither infinite nor NaN
            return value
    elif kind is Any or (kind in (str, int) and type(value) is kind) or (origin is Literal and value in parts):
        return value
    raise ConfigError(where, value, allowed(kind), MEND)


def allowed(kind: Any) -> str:
    """In words, for a message."""
    if get_origin(kind) is Literal:
        return " | ".join(get_args(kind))
    if get_origin(kind) is UnionType:
        return " or ".join(allowed(part) for part in get_args(kind))
    return NAMES.get(get_origin(kind) or kind, NAMES[dict])


def read_json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # also what is not UTF-8
        raise ConfigError(where, text[:80], "JSON", f"{error}: {MEND}") from None
