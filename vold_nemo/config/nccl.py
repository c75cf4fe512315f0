"""Which environment variables NCCL reads: a misspelt one is ignored by it without a word."""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path

PREFIX = "NCCL_"
# Of torch, before it named them TORCH_NCCL_*: it still reads them.
_OF_TORCH = ("ASYNC_ERROR_HANDLING", "BLOCKING_WAIT", "DESYNC_DEBUG", "ENABLE_TIMING", "USE_TENSOR_REGISTER_ALLOCATOR_HOOK")
# Of builds, modules, images, launchers and plugins: nobody means NCCL's with them.
_OF_OTHERS = ("ROOT", "ROOT_DIR", "HOME", "DIR", "PATH", "VERSION", "INCLUDE", "INCLUDE_DIR", "INCLUDE_PATH", "LIB", "LIBDIR",
              "LIB_DIR", "LIBRARY", "LIBRARIES", "LIBRARY_PATH", "LIBRARY_DIR", "STATIC", "PREFIX")  # fmt: skip


@functools.cache
def names() -> frozenset[str]:
    """Those of NCCL 2.18 to 2.30.7, of the plugins that come with it, and torch's own."""
    table = json.loads(Path(__file__).with_name("nccl_variables.json").read_text(encoding="utf-8"))
    return frozenset(PREFIX + name for name in (*table["names"], *_OF_TORCH))


def meant(name: str) -> str | None:
    """The variable that ``name`` is a slip of the pen for: one letter wrong, missing, too many, or two exchanged.

    None where it is known, or further from all of them: a name that only resembles one may be a plugin's.
    """
    if name in names() or (not is_unknown(name) and name.startswith((PREFIX, "TORCH_NCCL_", "RCCL_"))):
        return None
    alike = difflib.get_close_matches(name, names(), n=1, cutoff=1 - 1.01 / len(name)) if len(name) > 6 else []
    return alike[0] if alike else None


def is_unknown(name: str) -> bool:
    """Begins with ``NCCL_`` and is none of them: a plugin's, or of a newer NCCL, or a mistake."""
    return name.startswith(PREFIX) and name not in names() and name.removeprefix(PREFIX) not in _OF_OTHERS
