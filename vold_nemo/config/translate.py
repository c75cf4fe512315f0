"""Hydra's and OmegaConf's errors in the words of :class:`ConfigError`: key, value, what is allowed, how to mend it."""

from __future__ import annotations

import contextlib
import difflib
import functools
import operator
import re
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from vold_nemo.config.errors import ConfigError
from vold_nemo.config.own import searched
from vold_nemo.config.places import conf
from vold_nemo.config.schema import Config
from vold_nemo.config.tree import hint_of, hints, section_of, words

if TYPE_CHECKING:
    from hydra.errors import MissingConfigException

GROUPS = ("student", "teacher", "parallel", "objective", "rollout", "data", "cluster", "experiment")


def as_config_error(error: BaseException, overrides: Sequence[str] = ()) -> list[ConfigError]:
    """The configuration errors that ``error`` stands for; an empty list if it is something else."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException

    if isinstance(error, ConfigError):
        return [error]
    if isinstance(error, ExceptionGroup):
        groups = [as_config_error(inner, overrides) for inner in error.exceptions]
        return [inner for errors in groups for inner in errors] if all(groups) else []
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a file of the configuration"
        return [ConfigError(where, error.problem or error.context, "YAML", "correct that line (or the one before)")]
    if isinstance(error, OverrideParseException):
        mend = f"quote it ({first_line(str(error))})"
        if re.fullmatch(r"[+~]*[\w.]+", error.override):
            mend = f"give it a value: {error.override}=VALUE"
        return [ConfigError("command line", error.override, "key=value, group=option, ~key", mend)]
    if isinstance(error, MissingConfigException):
        return [_missing_option(error)]
    cause = (error.__cause__ or error.__context__) if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException):
        found = _omegaconf(cause, overrides)
        named = re.match(r"In '([^']+)'", str(error))
        if not named:
            return [found]
        if found.key == "configuration":  # the whole file is merged at once, and nobody says where it fails
            for misfit in misfits_in(named.group(1)):
                return [ConfigError(misfit.key, misfit.value, misfit.allowed, f"{misfit.mend} (in {named.group(1)}.yaml)")]
        value = in_file(named.group(1), found.key, found.value)
        return [ConfigError(found.key, value, found.allowed, f"{found.mend} (in {named.group(1)}.yaml)")]
    if isinstance(error, ConfigCompositionException):
        return [_composition(str(error), overrides)]
    if isinstance(error, HydraException):
        return [ConfigError("configuration", first_line(str(error)), "what conf/config.yaml composes", "see --help=all")]
    return []


def _missing_option(error: MissingConfigException) -> ConfigError:
    """``student=qwen9`` where conf/student/qwen9.yaml does not exist."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    return no_such_option(group, option, list(error.options or ()))


def no_such_option(group: str, option: str, options: list[str]) -> ConfigError:
    mend = nearest(option, options, prefix=f"{group}=") or f"choose one of these, or add conf/{group}/{option}.yaml"
    return ConfigError(group or "configuration file", option, " | ".join(options) or "a file in conf/", mend)


def _composition(message: str, overrides: Sequence[str]) -> ConfigError:
    """``studnet=miniature``: Hydra knows neither a key nor a group of that name."""
    named = re.search(r"'([^']*)'", message)
    if (wrong := re.search(r"Could not override '([^']*)'", message)) and message.startswith("In '"):
        mend = nearest(wrong[1], list(GROUPS), prefix="override /") or "name one of these groups"
        file = message.split("'")[1]
        return ConfigError(f"{file}.yaml: defaults", f"override /{wrong[1]}", " | ".join(GROUPS), mend)
    if named and "Could not delete" in message:
        return ConfigError(f"~{named[1]}", "not there", "a name that is there", "leave it out: nothing has that name")
    name = named.group(1).lstrip("+~/") if named else first_line(message)
    names = sorted({*GROUPS, *hints(Config)})
    mend = nearest(name.split("=")[0], names) or "see --help=all for every key"
    return ConfigError(name, _value(name, overrides, message), " | ".join(names), mend)


def _omegaconf(error: OmegaConfBaseException, overrides: Sequence[str]) -> ConfigError:
    """A key that the schema does not have, or a value that is not of its type."""
    message = first_line(error.msg or str(error))
    key = error.full_key or (str(error.key) if error.key is not None else "configuration")
    if isinstance(error, InterpolationResolutionError):
        return ConfigError(key, message, "an existing key inside ${...}", "correct it")
    value = error.value if getattr(error, "value", None) is not None else _value(key, overrides, message)
    owner, known = _owner(key)
    if known is None and isinstance(error, ConfigKeyError | ConfigAttributeError):
        return ConfigError(key, value, f"any name under {owner}, added with ++", f"++{key}={value}")
    if re.match(r"Key .* is incompatible with", message):  # teachers: {3: ...}
        mend = f"begin it with a letter, or write it in quotes: '{error.key}'"
        return ConfigError(f"{owner}: name", error.key, "a name that is text", mend)
    if known is None:
        hint = hint_of(owner)
        if key == owner:
            return ConfigError(key, value, words(hint), f"give {key}.NAME=...")
        return ConfigError(key, value, words(typing.get_args(hint)[1]), f"give a value of that type ({message})")
    wrong = key[len(owner) :].lstrip(".").split(".")[0]
    if wrong not in known:
        mend = nearest(wrong, known, prefix=f"{owner}." if owner else "") or "see --help=all for every key"
        return ConfigError(key, value, " | ".join(known), mend)
    return ConfigError(key, value, type_of(key), f"give a value of that type ({message})")


def _owner(key: str) -> tuple[str, list[str] | None]:
    """Longest prefix of ``key`` that is a section, and the section's keys (None where any key may stand)."""
    parts = key.split(".")
    for depth in range(len(parts), 0, -1):
        owner = ".".join(parts[:depth])
        hint = hint_of(owner)
        section = section_of(hint)
        if section is not None:
            return owner, list(hints(section))
        if typing.get_origin(hint) is dict:
            return owner, None
    return "", list(hints(Config))


def type_of(key: str) -> str:
    """The type of ``key`` in words."""
    hint = hint_of(key)
    inner = section_of(hint)
    if inner is not None:
        return f"a section with the keys {' | '.join(hints(inner))}"
    return "see --help=all" if hint is None else words(hint)


def nearest(name: str, names: list[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {prefix}{found[0]}?" if found else ""


def _value(key: str, overrides: Sequence[str], otherwise: str) -> str:
    """What the command line gave for ``key`` or for a key below it."""
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        if name == key or name.startswith(f"{key}."):
            return value
        if key.startswith(f"{name}.") and value.startswith("{"):
            with contextlib.suppress(yaml.YAMLError, KeyError, TypeError):
                return str(functools.reduce(operator.getitem, key[len(name) + 1 :].split("."), yaml.safe_load(value)))
    return first_line(otherwise)


def in_file(name: str, key: str, otherwise: Any) -> Any:
    """What ``key`` has in the configuration's file ``name`` (``experiment/mine``); ``otherwise`` where that is not seen."""
    with contextlib.suppress(KeyError, TypeError, IndexError):
        return functools.reduce(operator.getitem, key.split("."), _written(name))
    return otherwise


def misfits_in(name: str) -> list[ConfigError]:
    """Sections, maps and lists of the file that were given something of another form."""
    from vold_nemo.config.overrides import misfits

    written = _written(name)
    return [error for key, value in written.items() if (hint := hint_of(key)) for error in misfits(key, hint, value)]


def _written(name: str) -> dict[str, Any]:
    """The file ``name`` of the folder that Hydra took it from, as keys of the whole configuration."""
    for folder in (*searched(), conf()):
        file = folder / f"{name}.yaml"
        if file.is_file():
            with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
                text = file.read_text(encoding="utf-8")
                content = yaml.safe_load(text)
                content = content if isinstance(content, dict) else {}
                whole = re.match(r"#\s*@package\s+_global_", text)
                return content if whole else {name.split("/")[0]: content}
            break
    return {}


def first_line(message: str | None) -> str:
    return (message or "").strip().splitlines()[0] if (message or "").strip() else ""
