"""Which environment variables NCCL reads: a misspelt one is ignored by it without a word."""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path

PREFIX = "NCCL_"
# Of torch, before it named them TORCH_NCCL_*: it still reads them.
_OF_TORCH = ("ASYNC_ERROR_HANDLING", "BLOCKING_WAIT", "DESYNC_DEBUG", "ENABLE_TIMING", "USE_TENSOR_REGISTER_ALLOCATOR_HOOK")
_ALIKE, _ALIKE_ELSEWHERE = 0.8, 0.9  # share of a name that must agree, where it begins with NCCL_ and where it does not


@functools.cache
def names() -> frozenset[str]:
    """Those of NCCL 2.18 to 2.30.7, of the plugins that come with it, and torch's own."""
    table = json.loads(Path(__file__).with_name("nccl_variables.json").read_text(encoding="utf-8"))
    return frozenset(PREFIX + name for name in (*table["names"], *_OF_TORCH))


def meant(name: str) -> str | None:
    """The variable that ``name`` is a slip of the pen for; None where it is known, or like none of them."""
    if name in names() or name.startswith("TORCH_NCCL_"):
        return None
    alike = difflib.get_close_matches(name, names(), n=1, cutoff=_ALIKE if name.startswith(PREFIX) else _ALIKE_ELSEWHERE)
    return alike[0] if alike else None


def is_unknown(name: str) -> bool:
    """Begins with ``NCCL_`` and is none of them: a plugin's, or of a newer NCCL, or a mistake."""
    return name.startswith(PREFIX) and name not in names()
