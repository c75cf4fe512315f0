"""``--help``: the recipe's docstring, how to write an override, and the keys that the verb reads.

A key's line has its type, its default, and what the schema says of it (fields.py): choices, help, bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vold_nemo.config.fields import Spec, spec
from vold_nemo.config.places import conf
from vold_nemo.config.schema import Config
from vold_nemo.config.translate import GROUPS
from vold_nemo.config.tree import hints, mapped_section, section_of, words

ALWAYS = ("name", "outputs", "dry_run")  # read by the command line, and by the paths of every section

_GRAMMAR = """\
Write KEY=VALUE for a key below and GROUP=OPTION for a file in conf/GROUP/. The experiment overrides the groups, the
command line overrides all. Examples:

  experiment=miniature sft.steps=10            an experiment, then one key
  objective=vold objective.kl.mask=none        a group, then one key inside it
  'sft.optimizer={learning_rate: 1e-5}'        several keys of a section; quote what the shell would read
  dry_run=true                                 check everything, print what would run, touch no device
  experiment=mine                              conf/experiment/mine.yaml of this folder: yours stand before ours
  --config-dir FOLDER experiment=mine          FOLDER/experiment/mine.yaml, before both
  --cfg job --resolve                          print the composed configuration
  --help=all                                   every key and group, not only those that this verb reads
"""


def help_text(verb: str, description: str, reads: Iterable[str] | None = None, own: Iterable[Path] = ()) -> str:
    """The whole text of ``python recipes/<verb>.py --help``.

    Args:
        reads: sections and top-level keys, in the order in which they are explained; None = all of the schema.
        own: folders that stand before the shipped ``conf/``.
    """
    names = [field.name for field in dataclasses.fields(Config)] if reads is None else list(dict.fromkeys((*ALWAYS, *reads)))
    groups = "\n".join(
        f"  {group:<12} {', '.join(_options(group, own))}" for group in GROUPS if group in names or group == "experiment"
    )
    keys = "\n".join(_lines(Config(), "", {}, names))
    return (
        f"usage: python recipes/{verb}.py [KEY=VALUE ...]\n\n{description.strip()}\n\n{_GRAMMAR}\n"
        f"Groups (conf/GROUP/OPTION.yaml):\n{groups}\n\nKeys (defaults; `???` must be given):\n{keys}"
    )


def _options(group: str, own: Iterable[Path]) -> list[str]:
    return sorted({file.stem for folder in (*own, conf()) for file in (folder / group).glob("*.yaml")})


def _lines(section: Any, prefix: str, seen: dict[type, str], names: Sequence[str] = ()) -> Iterator[str]:
    """One line a key of ``section``, an instance with its defaults, then its sections.

    A kind of section that several keys share is explained where it comes first; ``seen``: where that was.
    """
    types, fields = hints(type(section)), {field.name: field for field in dataclasses.fields(section)}
    inner: list[tuple[str, Spec, Any]] = []
    for name in names or fields:
        hint, said, default = types[name], spec(fields[name]), getattr(section, name)
        kind, key = section_of(hint) or mapped_section(hint), f"{prefix}{name}"
        if kind is None:
            yield _line(f"{key} ({words(hint)}) = {_plain(default)}", said.describe())
            continue
        key += ".NAME" if isinstance(default, dict) else ""
        if kind in seen:
            own = _own_values(default) if dataclasses.is_dataclass(default) else _plain(default)
            yield _line(f"{key}.* (as {seen[kind]}.*){' = ' if own else ''}{own}", said.help)
        else:
            seen[kind] = key
            inner.append((key, said, default or kind()))
    for key, said, default in inner:
        yield f"\n{key}: {said.help or _first_sentence(type(default))}"
        yield from _lines(default, f"{key}.", seen)


def _line(code: str, comment: str) -> str:
    return f"  {code:<56} # {comment}" if comment else f"  {code}"


def _first_sentence(section: type) -> str:
    return (section.__doc__ or "").splitlines()[0]


def _own_values(section: Any) -> str:
    """The defaults that this section has and its kind has not: ``{learning_rate: 6e-06, warmup_steps: 5}``."""
    plain = type(section)()
    own = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
    differing = [f"{name}: {_plain(value)}" for name, value in own.items() if value != getattr(plain, name)]
    return f"{{{', '.join(differing)}}}" if differing else ""


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
