"""What stands on the command line, looked at before Hydra reads it: each override by its own key, all wrong ones at once.

Hydra takes ``a=1,2`` for a sweep, an empty value for an empty text, ``sft=null`` for a section that is gone, ``3`` in a map for
a number, and says so in words about its own insides, of the first one that it meets.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vold_nemo.config.errors import ConfigError
from vold_nemo.config.translate import GROUPS, nearest, no_such_option, type_of
from vold_nemo.config.tree import hint_of, hints, mapped_section, section_of, words

_NAME = re.compile(r"[A-Za-z_][\w-]*")  # of a map; a name in figures alone is a number to Hydra
_NO_NAMES = ("null", "true", "false", "nan", "inf")
_ONE = "one value: a command is one run"


def refusals(overrides: Sequence[str], folders: Iterable[Path]) -> Iterator[ConfigError]:
    """Every override that cannot be meant; ``folders`` hold the files of the groups.  What it lets pass, Hydra judges.

    :raises OverrideParseException: Hydra's, for what is no override at all.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, folders = OverridesParser.create(), list(folders)
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.lstrip("+")
        if (error := _wrong_name(key.lstrip("~"), value)) is not None:
            yield error
            continue
        (given,) = parser.parse_overrides([text])
        if given.is_delete():
            yield from _deleted(key.lstrip("~"))
        elif given.is_sweep_override():
            listed = typing.get_origin(hint_of(key)) is list
            also = f"; a list stands in brackets: '{key}=[{value}]'" if listed else ""
            yield ConfigError(key, value, _ONE, f"start one process (or submit one job) for each value{also}")
        elif key in GROUPS and (given.is_add() and key != "experiment"):
            yield ConfigError(f"+{key}", value, f"{key}=NAME", "leave the + out: the group has an option already")
        elif key in GROUPS:
            yield from _no_option(key, given.value(), folders)
        elif (hint := hint_of(key)) is not None:
            if equals and not value:
                null = ", or null for none" if type(None) in typing.get_args(hint) else ""
                mend = f"give {key}=VALUE{null}, or leave it out (a variable of the shell that is not set?)"
                yield ConfigError(key, "", type_of(key), mend)
            else:
                yield from misfits(key, hint, given.value())


def _wrong_name(key: str, value: str) -> ConfigError | None:
    """``teachers.3.path=x``, ``evaluate.models.qwen2.5=x``: names in a map that Hydra would take for something else."""
    parts = key.split(".")
    for depth in range(1, len(parts)):
        owner, name = ".".join(parts[:depth]), parts[depth]
        hint = hint_of(owner)
        if typing.get_origin(hint) is not dict:
            continue
        if mapped_section(hint) is None:
            name = ".".join(parts[depth:])  # nothing lies below a plain value
            figures, mend = name.isdigit(), f"give it in braces: '{owner}={{{name}: {value}}}'"
        else:
            figures, mend = False, f"give it another name: {owner}.one.{'.'.join(parts[depth + 1 :]) or 'KEY'}={value}"
        if not figures and (not _NAME.fullmatch(name) or name.lower() in _NO_NAMES):
            return ConfigError(f"{owner}: name", name, "a letter, then letters, digits, _ and -", mend)
        return None
    return None


def _deleted(key: str) -> Iterator[ConfigError]:
    """``~sft``: what the schema has is there; only a name of a map can go."""
    hint, parent = hint_of(key), hint_of(key.rpartition(".")[0])
    if hint is not None and typing.get_origin(parent) is not dict:
        null = type(None) in typing.get_args(hint)
        mend = f"set {key}=null" if null else f"leave {key} as it is, or set what is in it"
        yield ConfigError(f"~{key}", "taken out", "a name of a map: ~evaluate.models.NAME", mend)


def _no_option(group: str, value: Any, folders: list[Path]) -> Iterator[ConfigError]:
    """``teacher=/etc/passwd``, ``student=null``, ``data=``: a group's value is the name of one of its files."""
    if isinstance(value, dict):  # keys of the group: so the command line is written for Hydra (``enter_open_sections``)
        return
    options = sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})
    if isinstance(value, str) and re.fullmatch(r"[\w.+-]*\w[\w.+-]*", value):
        if value.removesuffix(".yaml") not in options:
            yield no_such_option(group, value, options)
        return
    mend = f"give {group}=NAME; single keys are set as {group}.KEY=VALUE"
    if group == "experiment":
        mend = "give experiment=NAME, or leave it out: then the defaults of conf/config.yaml stand"
    yield ConfigError(group, _shown(value), " | ".join(options), mend)


def misfits(key: str, hint: Any, value: Any) -> Iterator[ConfigError]:
    """Sections, maps and lists that were given something of another form; single values are converted, or refused, later."""
    null = type(None) in typing.get_args(hint)
    if value is None and (null or (section_of(hint) is None and typing.get_origin(hint) not in (dict, list))):
        return
    section = section_of(hint)
    if section is not None:
        known = hints(section)
        if not isinstance(value, dict):
            some = next((name for name in known if section_of(known[name]) is None), "KEY")
            mend = f"set the keys that you mean: {key}.{some}=VALUE{f', or {key}=null' if null else ''}; see --help"
            yield ConfigError(key, _shown(value), " | ".join(known), mend)
            return
        for name, inner in value.items():
            if name not in known:
                mend = nearest(str(name), list(known), prefix=f"{key}.") or "see --help=all for every key"
                yield ConfigError(f"{key}.{name}", inner, " | ".join(known), mend)
            else:
                yield from misfits(f"{key}.{name}", known[name], inner)
    elif typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            yield ConfigError(key, _shown(value), words(hint), f"give {key}.NAME=...")
            return
        for name, inner in value.items():
            if not isinstance(name, str):
                yield ConfigError(f"{key}: name", name, "a name that is no number and no null", "begin it with a letter")
            else:
                yield from misfits(f"{key}.{name}", typing.get_args(hint)[1], inner)
    elif typing.get_origin(hint) is list:
        if not isinstance(value, list):
            mend = f"give it in brackets: '{key}=[{'' if value is None else value}]'"
            yield ConfigError(key, _shown(value), words(hint), mend)
    elif isinstance(value, list | dict):
        yield ConfigError(key, value, words(hint), f"give one value: {key}=VALUE")


def _shown(value: Any) -> Any:
    """As it was written."""
    return "null" if value is None else value
