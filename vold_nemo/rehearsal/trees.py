"""Arguments of operators: lists and tuples of tensors and plain values, never deeper than two or three.

torch's pytrees know every container and cost most of a rehearsal's time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def leaves(tree: Any) -> list[Any]:
    """Everything that is no list, tuple or dict, in order."""
    found: list[Any] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[Any]) -> None:
    if isinstance(tree, list | tuple):
        for one in tree:
            _gather(one, found)
    elif isinstance(tree, dict):
        for one in tree.values():
            _gather(one, found)
    else:
        found.append(tree)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """``tree`` with each leaf exchanged for what ``function`` makes of it."""
    if isinstance(tree, list):
        return [mapped(function, one) for one in tree]
    if isinstance(tree, tuple):
        parts: Iterable[Any] = [mapped(function, one) for one in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    if isinstance(tree, dict):
        return {key: mapped(function, one) for key, one in tree.items()}
    return function(tree)
