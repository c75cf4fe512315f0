"""What the project asks of ``megatron.core``, read from its source: names, arguments of calls, methods that it overrides.

A path that only a GPU takes is read like any other, which is why this is read and not run.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LIBRARY = "megatron.core"
MISSING = object()
# These hand on all that they get to another function of their module, where megatron-core has that function.
BEHIND = {"get_gpt_layer_local_spec": "get_gpt_layer_local_submodules",
          "get_gpt_layer_with_transformer_engine_spec": "get_gpt_layer_with_transformer_engine_submodules"}  # fmt: skip


def look_up(dotted: str) -> Any:
    """Module ``dotted``, or what its last part names in the module before; :data:`MISSING`."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is None or not dotted.startswith(error.name):
            raise
        outer, _, name = dotted.rpartition(".")
        return getattr(look_up(outer), name, MISSING) if outer else MISSING


class Reading(ast.NodeVisitor):
    """Fills ``problems`` (what megatron-core does not have or take) and ``seen`` (how many of each kind were looked at)."""

    def __init__(self, file: Path):
        self.file = file
        self.names: dict[str, Any] = {}
        self.problems: list[str] = []
        self.seen = {"name": 0, "call": 0, "override": 0, "replaced": 0}
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):  # imports may stand below what uses them: inside functions, under other names
            self._bind(node)
        self.visit(tree)

    def _problem(self, node: ast.AST, what: str) -> None:
        said = f"{self.file.name}:{node.lineno}: {what}"
        if said not in self.problems:
            self.problems.append(said)

    def _bind(self, node: ast.AST) -> None:
        for local, dotted in _imported(node):
            self.seen["name"] += 1
            found = look_up(dotted)
            if found is MISSING:
                self._problem(node, f"{dotted} does not exist")
            else:
                self.names[local] = found

    def _resolve(self, node: ast.AST) -> Any:
        """What of megatron-core ``node`` is; None for anything else."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            outer = self._resolve(node.value)
            if inspect.ismodule(outer) or inspect.isclass(outer):
                self.seen["name"] += 1
                found = getattr(outer, node.attr, MISSING)
                if found is MISSING:
                    self._problem(node, f"{outer.__name__}.{node.attr} does not exist")
                    return None
                return found
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._resolve(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = self._resolve(node.func)
        if callable(called) and not inspect.ismodule(called):
            self.seen["call"] += 1
            if (why := refused(called, node)) is not None:
                self._problem(node, f"{called.__qualname__}: {why}")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.seen["replaced"] += sum(isinstance(t, ast.Attribute) and self._resolve(t) is not None for t in node.targets)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A method of a class over one of megatron-core's is an override: the project adds none of its own."""
        bases = [base for base in map(self._resolve, node.bases) if inspect.isclass(base)]
        for base in bases if len(node.bases) == 1 else ():
            for method in (item for item in node.body if isinstance(item, ast.FunctionDef) and item.name != "__init__"):
                self.seen["override"] += 1
                theirs = getattr(base, method.name, None)
                if theirs is None:
                    self._problem(method, f"{base.__name__}.{method.name} is overridden and does not exist")
                elif lacking := _not_taken(method.args, theirs):
                    self._problem(method, f"{base.__name__}.{method.name} is called with {', '.join(lacking)}, too")
        self.generic_visit(node)


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(local name, dotted name) of what ``node`` takes from megatron-core."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(LIBRARY):
        yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        called, given, (target, *_) = node.value.func, node.value.args, node.targets
        named = isinstance(called, ast.Attribute) and called.attr == "import_module" and isinstance(given[0], ast.Constant)
        if named and given[0].value.startswith(LIBRARY) and isinstance(target, ast.Name):
            yield target.id, given[0].value


def signature(function: Any) -> inspect.Signature:
    behind = BEHIND.get(getattr(function, "__name__", ""))
    return inspect.signature(getattr(inspect.getmodule(function), behind or "", function))


def refused(function: Any, call: ast.Call) -> str | None:
    """Why ``function`` does not take the arguments that stand in ``call``; None if it does."""
    partly = any(isinstance(one, ast.Starred) for one in call.args) or any(one.arg is None for one in call.keywords)
    try:
        takes = signature(function)
    except ValueError:  # C code
        return None
    given = [None for one in call.args if not isinstance(one, ast.Starred)], {one.arg: None for one in call.keywords if one.arg}
    try:
        (takes.bind_partial if partly else takes.bind)(*given[0], **given[1])
    except TypeError as error:
        return str(error)
    return None


def _not_taken(ours: ast.arguments, theirs: Any) -> list[str]:
    """Parameters of ``theirs`` that a method with ``ours`` does not take."""
    if ours.kwarg:
        return []
    mine = {one.arg for one in (*ours.posonlyargs, *ours.args, *ours.kwonlyargs)}
    return [name for name, one in inspect.signature(theirs).parameters.items()
            if name not in mine and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]  # fmt: skip
