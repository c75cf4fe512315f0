"""The one error of bad input."""

from __future__ import annotations

import os
import socket
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
    """Bad input that only this node shows (an interface, a disk): each node that meets it tells it in full, with its name."""

    def __init__(self, key: str, value: Any, allowed: str, mend: str):
        super().__init__(key, value, allowed, mend)
        self.args = (f"on {os.environ.get('SLURMD_NODENAME') or socket.gethostname()}: {self}",)
