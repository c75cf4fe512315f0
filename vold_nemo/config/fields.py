"""What a key of the schema is declared with: its default, its help, and what it may be.  One line a key, read by everything.

    steps: int = key(4000, "paper", bound=POSITIVE)
    engine: str = key("transformers", "who decodes", choices=("transformers", "vllm"))
    optimizer: OptimizerConfig = section(OptimizerConfig, learning_rate=5e-5)

Default and type are the dataclass's own; the rest lies in the field's metadata, where ``--help`` (help.py), the check of
single values (check.py) and the planner's ``explain=true`` find it.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_SPEC = "spec"  # name inside a field's metadata


@dataclass(frozen=True)
class Bound:
    """What a number may be, and the same in words.  Neither null nor a number that is not finite is ever asked about."""

    words: str
    holds: Callable[[float], bool]


POSITIVE = Bound("1 or more", lambda x: x >= 1)
COUNT = Bound("0 or more", lambda x: x >= 0)
SEED = Bound("0 to 2^31 - 1", lambda x: 0 <= x < 2**31)
LENGTH = Bound("2 or more", lambda x: x >= 2)  # tokens of a sequence: one to read, one to predict
ABOVE_ZERO = Bound("above 0", lambda x: x > 0)
ABOVE_ONE = Bound("above 1", lambda x: x > 1)
SHARE = Bound("0 to 1", lambda x: 0 <= x <= 1)
PART = Bound("above 0, at most 1", lambda x: 0 < x <= 1)
FRACTION = Bound("0 to 1, 1 excluded", lambda x: 0 <= x < 1)
BETWEEN = Bound("between 0 and 1, both excluded", lambda x: 0 < x < 1)


@dataclass(frozen=True)
class Spec:
    """What the schema says of a key besides its type and default.

    ``choices``: all that a text (or each text of a list) may be.  ``bound``: of a number (or each number of a map).
    ``refused``: values that others allow and we do not, with the reason.
    """

    help: str = ""
    choices: tuple[str, ...] = ()
    bound: Bound | None = None
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def describe(self) -> str:
        """``a | b: help [1 or more]``."""
        words = ": ".join(part for part in (" | ".join(self.choices), self.help) if part)
        return f"{words} [{self.bound.words}]".strip() if self.bound is not None else words


def key(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    bound: Bound | None = None,
    refused: Mapping[str, str] | None = None,
) -> Any:
    """A dataclass field.  A list or a map as ``default`` is copied for each instance."""
    metadata = {_SPEC: Spec(help, choices, bound, refused or {})}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type, help: str = "", **values: Any) -> Any:
    """A field that is a section of its own: ``kind(**values)``.  Without a ``help`` its docstring explains it."""
    return dataclasses.field(default_factory=lambda: kind(**values), metadata={_SPEC: Spec(help)})


def spec(field: dataclasses.Field) -> Spec:
    """What ``field`` was declared with."""
    return field.metadata.get(_SPEC, Spec())
