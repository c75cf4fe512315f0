"""Which parts of the configuration a verb reads, as its recipe declares them: ``@recipe(reads=("sft", "traces", ...))``.

A declaration is read from the recipe's source, so that asking costs no import of what the verb needs.
"""

from __future__ import annotations

import ast
import functools

from vold_nemo.config.places import recipes

EVERYWHERE = ("name", "outputs")  # the paths of every section hang on them


@functools.cache
def reads_of(verb: str) -> tuple[str, ...]:
    """Sections and top-level keys that ``recipes/<verb>.py`` reads, its own first and :data:`EVERYWHERE` last.

    Empty for a verb that takes no configuration (``watch``).

    :raises FileNotFoundError: there is no such verb.
    """
    for node in ast.walk(ast.parse((recipes() / f"{verb}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "recipe":
            declared = next(word.value for word in node.keywords if word.arg == "reads")
            return (*ast.literal_eval(declared), *EVERYWHERE)
    return ()
