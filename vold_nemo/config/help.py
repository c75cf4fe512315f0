"""``--help``: the recipe's docstring, how to write an override, and every key with its type, default and comment.

The comments are read from the source of :mod:`vold_nemo.config`, so that a key is explained in one place.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing

from vold_nemo import config as schema
from vold_nemo.config.compose import CONF, GROUPS

_GRAMMAR = """\
Write KEY=VALUE for a key below and GROUP=OPTION for a file in conf/GROUP/. The experiment overrides the groups, the
command line overrides all. Examples:

  experiment=miniature sft.steps=10            an experiment, then one key
  objective=vold objective.kl.mask=none        a group, then one key inside it
  'sft.optimizer={learning_rate: 1e-5}'        several keys of a section; quote what the shell would read
  dry_run=true                                 check everything, print what would run, touch no device
  --config-dir FOLDER experiment=mine          FOLDER/experiment/mine.yaml beside those of conf/
  --cfg job --resolve                          print the composed configuration
"""


def help_text(verb: str, description: str) -> str:
    """The whole text of ``python recipes/<verb>.py --help``."""
    options = {group: ", ".join(sorted(file.stem for file in (CONF / group).glob("*.yaml"))) for group in GROUPS}
    groups = "\n".join(f"  {group:<12} {names}" for group, names in options.items())
    keys = "\n".join(_section_lines(schema.Config, "", set()))
    return (
        f"usage: python recipes/{verb}.py [KEY=VALUE ...]\n\n{description.strip()}\n\n{_GRAMMAR}\n"
        f"Groups (conf/GROUP/OPTION.yaml):\n{groups}\n\nKeys (defaults; `???` must be given):\n{keys}"
    )


def _section_lines(section: type, prefix: str, seen: set[type]) -> list[str]:
    """One line per key; a section that several keys share is explained where it comes first."""
    comments, hints = _comments(section), typing.get_type_hints(section)
    lines, inner = [], []
    for item in dataclasses.fields(section):
        name, hint = f"{prefix}{item.name}", hints[item.name]
        nested = _nested(hint)
        if nested is None:
            line = f"  {name} ({_words(hint)}) = {_default(item)}"
        elif nested in seen:
            line = f"  {name}.* ({nested.__name__}, as above)"
        else:
            inner.append((nested, name))
            continue
        lines.append(f"{line:<58} # {comments[item.name]}" if comments.get(item.name) else line)
    for nested, name in inner:
        seen.add(nested)
        explained = comments.get(name.rpartition(".")[2]) or _first_sentence(nested)
        lines.append(f"\n{name}: {explained}".rstrip(": "))
        lines.extend(_section_lines(nested, f"{name}.", seen))
    return lines


def _comments(section: type) -> dict[str, str]:
    """Comment at the end of each field's line in the source of ``section``."""
    found = {}
    for line in inspect.getsource(section).splitlines():
        code, mark, comment = line.partition("  # ")
        name, colon, _ = code.strip().partition(":")
        if mark and colon and name.isidentifier():
            found[name] = comment.strip()
    return found


def _nested(hint: object) -> type | None:
    candidates = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((item for item in candidates if dataclasses.is_dataclass(item)), None)


def _words(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _first_sentence(section: type) -> str:
    """First line of the section's docstring; dataclasses make one of their own where none was written."""
    text = section.__doc__ or ""
    return "" if text.startswith(f"{section.__name__}(") else text.splitlines()[0]


def _default(item: dataclasses.Field) -> str:
    value = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
