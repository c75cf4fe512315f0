"""The one error of bad input."""

from __future__ import annotations

from typing import Any


class ConfigError(ValueError):
    """Bad input, found before any work is lost.  Recipes print it and leave with exit code 2.

    ``key`` names what to change (a configuration key or a file), ``value`` what was found, ``allowed`` what would be
    accepted, ``mend`` the way out in one sentence.
    """

    def __init__(self, key: str, value: Any, allowed: str, mend: str):
        self.key, self.value, self.allowed, self.mend = key, value, allowed, mend
        super().__init__(f"{key} = {value!r}\n  allowed: {allowed}\n  mend:    {mend}")


class NodeError(ConfigError):
    """Something about this node, which others may not share: the first rank of each node tells it."""
