"""Which parts of the configuration a verb's code reaches: a walk over the source, function by function.

A function reaches what it names: functions, classes (with all their methods and bases) and constants, through whatever
imports lead there.  A read is ``config.<key>`` of something that is a :class:`Config`: a parameter annotated so,
``self.config`` of a class that was given one, ``anything.config``, or what a function makes of one.  More may be reached than
a run reads (both sides of a branch count); less only where a key's name is made at run time: those places are in ``DYNAMIC``.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from vold_nemo.config import Config
from vold_nemo.config.places import recipes
from vold_nemo.config.tree import hint_of

PACKAGE = Path(__file__).resolve().parents[2] / "vold_nemo"
KEYS = {field.name for field in dataclasses.fields(Config)}
SECTIONS = {field.name for field in dataclasses.fields(Config) if field.default is dataclasses.MISSING}
# The command line composes and checks all of the configuration for every verb: that is not the verb's reading.
FRAMEWORK = ("vold_nemo.config.", "vold_nemo.command.", "vold_nemo.planning.validity:findings")
DYNAMIC = {
    "vold_nemo.planning.host:parts": {"sft", "vold"},  # getattr(config, stage)
    "vold_nemo.data.inspection:dataset_of": {"evaluate", "vold"},  # value_at(config, config.inspect.set)
}


@functools.cache
def tree(module: str) -> ast.Module | None:
    """The source of ``vold_nemo...`` or ``recipes.<verb>``; None for a module of somebody else."""
    if module.startswith("recipes."):
        file = recipes() / f"{module.partition('.')[2]}.py"
    else:
        file = PACKAGE.parent / Path(*module.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    return ast.parse(file.read_text()) if module.startswith(("vold_nemo", "recipes.")) and file.is_file() else None


def imports(nodes: list[ast.AST]) -> dict[str, str]:
    """Name: what it stands for (``package.module`` or ``package.module:name``), of import statements among ``nodes``."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found[alias.asname or alias.name] = whole if tree(whole) else f"{node.module}:{alias.name}"
    return found


@functools.cache
def names(module: str) -> dict[str, ast.AST | str]:
    """What a module defines or imports at its top level."""
    body = tree(module).body
    found: dict[str, ast.AST | str] = dict(imports(body))
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                found[target.id] = node
    return found


def is_config(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation).strip("'\"").split(" | ")[0] == "Config"


def configs(function: ast.AST, owner: ast.ClassDef | None) -> set[str]:
    """Names inside ``function`` that are a whole configuration: parameters, copies, ``self.config``."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.arg) and (is_config(node.annotation) or (node.arg == "config" and node.annotation is None)):
            found.add(node.arg)
    for node in ast.walk(function):  # changed = replace(config, ...), config = distillation_only(config)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            given = node.value.args[:1]
            if given and isinstance(given[0], ast.Name) and given[0].id in found:
                found.add(node.targets[0].id)
    if owner is not None and not is_section_of(owner):
        found.add("self.config")
    return found


def is_section_of(owner: ast.ClassDef) -> bool:
    """Whether this class's ``config`` is declared as something else than the whole configuration."""
    for node in ast.walk(owner):
        declared = node.annotation if isinstance(node, ast.arg) and node.arg == "config" else None
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "config":
            declared = node.annotation
        if declared is not None and not is_config(declared):
            return True
    return False


def read(function: ast.AST, owner: ast.ClassDef | None) -> Iterator[str]:
    """Dotted keys of :class:`Config` that ``function`` reads itself, as far as their names follow in the source: a section
    that is passed on, or asked something, is all read."""
    whole = configs(function, owner)
    over = {inner: node for node in ast.walk(function) for inner in ast.iter_child_nodes(node)}
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and node.attr in KEYS:
            base = ast.unparse(node.value)
            if base in whole or (base.endswith(".config") and base != "self.config" and node.attr in SECTIONS):
                key, above = node.attr, over.get(node)
                while isinstance(above, ast.Attribute) and hint_of(f"{key}.{above.attr}") is not None:
                    key, above = f"{key}.{above.attr}", over.get(above)
                yield key


def reached(verb: str) -> dict[str, set[str]]:
    """Section or top-level key of :class:`Config`: functions that read it, of everything that ``recipes/<verb>.py`` reaches."""
    found: dict[str, set[str]] = {}
    for key, places in reached_keys(verb).items():
        found.setdefault(key.partition(".")[0], set()).update(places)
    return found


@functools.cache
def reached_keys(verb: str) -> dict[str, set[str]]:
    """The same by dotted keys."""
    found: dict[str, set[str]] = {}
    seen: set[str] = set()
    todo = [f"recipes.{verb}:main"]
    while todo:
        place = todo.pop()
        module, _, name = place.partition(":")
        if place in seen or place.startswith(FRAMEWORK) or tree(module) is None:
            continue
        seen.add(place)
        node = names(module).get(name)
        if isinstance(node, str):  # imported from elsewhere, and passed on
            todo.append(node)
        elif node is not None:
            if place == f"recipes.{verb}:main":
                node.decorator_list = []  # plan=...: a dry run shows more than the verb reads
            for function, owner in parts(node):
                for key in {*read(function, owner), *DYNAMIC.get(place, ())}:
                    found.setdefault(key, set()).add(place)
            todo += mentioned(module, node)
    return found


def parts(node: ast.AST) -> Iterator[tuple[ast.AST, ast.ClassDef | None]]:
    """(function, its class) for each method of a class; else the node itself."""
    if isinstance(node, ast.ClassDef):
        yield from ((inner, node) for inner in node.body)
    else:
        yield node, None


def mentioned(module: str, node: ast.AST) -> Iterator[str]:
    """Everything that ``node`` names and that is defined at the top level of a module, its own or another."""
    known = {**names(module), **imports(list(ast.walk(node)))}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and inner.id in known:
            target = known[inner.id]
            yield target if isinstance(target, str) else f"{module}:{inner.id}"
        elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
            target = known.get(inner.value.id)
            if isinstance(target, str) and ":" not in target:
                yield f"{target}:{inner.attr}"
