"""Single values: a word must be one of its key's choices, a number inside its bound and finite.  No torch, no file, no device.

What two keys, or a key and a checkpoint, decide together is :mod:`vold_nemo.planning.validity`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from vold_nemo.config.errors import ConfigError
from vold_nemo.config.fields import Spec
from vold_nemo.config.tree import values

LARGEST = 2**53  # beyond it a float counts no more by one, and what is multiplied overflows


def check(section: Any, prefix: str = "") -> Iterator[ConfigError]:
    """Every value below ``section`` that cannot be, under its full key; ``prefix`` is where ``section`` lies: ``"sft."``.

    A key that is null is neither out of bounds nor a wrong choice: whether it may be null is its type's to say.
    """
    for key, said, value in values(section, prefix):
        for one in value if isinstance(value, list) else (value,):
            if isinstance(value, list) and isinstance(one, list | dict):
                yield ConfigError(key, value, "a list of texts", f"give {key} one level of brackets")
                continue
            error = _wrong(key, said, one)
            if error is not None:
                yield error


def require(section: Any, prefix: str = "") -> None:
    """Raise the first finding of :func:`check`, for code that is handed a section from outside a recipe."""
    for error in check(section, prefix):
        raise error


def _wrong(key: str, said: Spec, value: Any) -> ConfigError | None:
    if isinstance(value, str) and said.choices and value not in said.choices:
        return ConfigError(key, value, " | ".join(said.choices), said.refused.get(value, f"set {key} to one of these"))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    mend = f"set {key} inside these bounds"
    if not math.isfinite(value):
        return ConfigError(key, value, f"a finite number{f', {said.bound.words}' if said.bound else ''}", mend)
    if abs(value) > LARGEST:
        return ConfigError(key, value, "at most 2^53 in size", mend)
    if said.bound is not None and not said.bound.holds(value):
        return ConfigError(key, value, said.bound.words, mend)
    return None
