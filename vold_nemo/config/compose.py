"""Composition: ``conf/`` and the command line become one :class:`Config`, or errors that say how to mend them.

Hydra checks every key and type against the dataclasses of :mod:`vold_nemo.config` while it composes, but its messages
name its own internals: :mod:`vold_nemo.config.translate` turns each of them into a :class:`ConfigError`.
"""

from __future__ import annotations

import functools
import os
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError, OmegaConfBaseException

from vold_nemo.config.errors import ConfigError
from vold_nemo.config.overrides import refusals
from vold_nemo.config.own import own_folders, search_first
from vold_nemo.config.places import conf
from vold_nemo.config.schema import Config, to_config
from vold_nemo.config.translate import first_line, nearest, no_such_option, type_of
from vold_nemo.config.tree import hint_of, hints, mapped_section, section_of


@dataclass(frozen=True)
class HydraArguments:
    """What Hydra's own argument parser found on the command line."""

    overrides: list[str]
    help: str | None  # "verb" (--help): the keys that the verb reads; "all" (--help=all): every key
    inspects: bool  # --cfg, --info, --hydra-help, --shell-completion: print something and leave
    config_dir: str | None

    @classmethod
    def parse(cls, argv: list[str]) -> HydraArguments:
        """Read ``argv``; flags that would start several runs or swap the configuration for another are refused, and so is
        every override that cannot be meant (:mod:`vold_nemo.config.overrides`)."""
        from hydra._internal.utils import get_args_parser

        everything = "--help=all" in argv  # Hydra's own --help takes no value
        found = get_args_parser().parse_args([word for word in argv if word != "--help=all"])
        refused = {
            "--multirun": (found.multirun, "start one process (or submit one job) per setting"),
            "--config-path": (found.config_path, "add files with --config-dir FOLDER"),
            "--config-name": (found.config_name, "add an experiment file with --config-dir FOLDER experiment=NAME"),
            "--experimental-rerun": (found.experimental_rerun, "give the overrides again, or experiment=NAME"),
        }
        for flag, (value, mend) in refused.items():
            if value:
                raise ConfigError(flag, value, "key=value overrides of conf/config.yaml", mend)
        inspects = bool(found.cfg or found.info or found.hydra_help or found.shell_completion)
        quoted = list(map(quote_text, found.overrides))
        if not (everything or found.help or inspects):
            errors = list(refusals(quoted, [*own_folders(found.config_dir), conf()]))
            if errors:
                raise ExceptionGroup("command line", errors)
        overrides = list(map(enter_open_sections, quoted))
        return cls(overrides, "all" if everything else "verb" if found.help else None, inspects, found.config_dir)

    def argv(self) -> list[str]:
        """The command line that composes the same configuration again, from the same folder."""
        return [*self.overrides, *(["--config-dir", self.config_dir] if self.config_dir else [])]


@functools.cache
def register_schema() -> None:
    """Make :class:`Config` the ``schema`` entry that ``conf/config.yaml`` starts from."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def compose(overrides: list[str], config_dir: str | None = None) -> Config:
    """``conf/config.yaml`` with ``overrides``, resolved.

    Files are looked for in ``config_dir``, then in ``conf/`` of the working directory, then among those that come with the
    package.  Raises what Hydra and OmegaConf raise: hand it to :func:`vold_nemo.config.translate.as_config_error`.
    """
    import hydra
    from hydra.errors import HydraException

    register_schema()
    folders = own_folders(config_dir)
    search_first(folders)
    _require_experiment(overrides, [*folders, conf()])
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf())):
        try:
            composed = hydra.compose(config_name="config", overrides=overrides)
        except (HydraException, OmegaConfBaseException):
            raise
        except RecursionError as error:
            allowed, mend = "files that do not name each other in a circle", "look at the `defaults` of your own files"
            raise ConfigError("defaults", " ".join(overrides), allowed, mend) from error
        except (AssertionError, AttributeError, TypeError, ValueError) as error:  # bare ones, from Hydra's own checks
            reason = first_line(str(error))
            raise ConfigError("command line", " ".join(overrides), "key=value, group=option, ~key", reason) from error
    _refuse_added_keys(OmegaConf.to_container(composed, resolve=False), Config, "")
    _expand_home(composed)
    _require_resolvable(composed)
    return to_config(composed)


def _require_experiment(overrides: list[str], folders: list[Path]) -> None:
    """``experiment=papr_3b``: the group is optional, and an option that is not there Hydra leaves out without a word."""
    for override in overrides:
        key, _, name = override.partition("=")
        if key.lstrip("+") != "experiment" or name in ("", "null"):
            continue
        options = sorted({path.stem for folder in folders for path in (folder / "experiment").glob("*.yaml")})
        if name.removesuffix(".yaml") not in options:
            raise no_such_option("experiment", name, options)
        file = Path("experiment", f"{name.removesuffix('.yaml')}.yaml")
        _require_whole(next(folder / file for folder in folders if (folder / file).exists()))


def _require_whole(file: Path) -> None:
    """An experiment's file overrides keys of the whole configuration, and Hydra wants that said in its first line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(file), first_line(str(error)), "a file of text in UTF-8", "write it anew as such") from error
    shown = lines[0] if lines else "an empty file"
    if not re.match(r"#\s*@package\s+_global_\s*$", shown):
        mend = "make that its first line: it overrides keys of the whole configuration"
        raise ConfigError(str(file), shown, "# @package _global_, then keys", mend)


def quote_text(override: str) -> str:
    """``verify.fields.truth=final_answer[0]``, ``student.path=~/mine``, ``reward.verifier=numeric(0.02)``: what Hydra would
    take for a list, a deletion or a function of its own is text where the key holds text."""
    key, equals, value = override.partition("=")
    hint, parent = hint_of(key.lstrip("+")), hint_of(key.lstrip("+").rpartition(".")[0])
    if typing.get_origin(parent) is dict:  # evaluate.models.mine
        hint = typing.get_args(parent)[1]
    texts = hint is str or (str in typing.get_args(hint) and type(None) in typing.get_args(hint))
    plain = re.sub(r"\$\{[^{}]*\}", "", value)
    if not equals or not texts or not re.search(r"[\[\]{}(),:~]", plain) or value[:1] in ("'", '"'):
        return override
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'")
    return f"{key}='{escaped}'"


def enter_open_sections(override: str) -> str:
    """Write an override so that Hydra can apply it to a section that is a map or may be null.

    ``evaluate.models.mine=path`` adds a name to a map, which Hydra wants said with ``++``; ``evaluate.text.path=file``
    reaches into a section that may be null, which Hydra can only merge from one level higher:
    ``evaluate={text: {path: file}}``.  ``teachers.mine.path=folder`` adds a whole section to a map of sections:
    ``++teachers={mine: {path: folder}}``; so does ``prepare.against.mine.path=file``.
    """
    key, equals, value = override.partition("=")
    prefix, parts = key[: len(key) - len(key.lstrip("+~"))], key.lstrip("+~").split(".")
    for depth in range(len(parts)) if equals else ():
        hint = hint_of(".".join(parts[: depth + 1]))
        if "~" not in prefix and mapped_section(hint) is not None:
            for part in reversed(parts[depth + 1 :]):
                value = f"{{{part}: {value}}}"
            return f"++{'.'.join(parts[: depth + 1])}={value}"
        if typing.get_origin(hint) is dict and "~" not in prefix and (depth + 1 < len(parts) or value.startswith("{")):
            return f"++{'.'.join(parts)}={value}"
        if section_of(hint) is not None and type(None) in typing.get_args(hint):
            for part in reversed(parts[depth:]):
                value = f"{{{part}: {value}}}"
            return f"{prefix}{'.'.join(parts[:depth])}={value}"
    return override


def _refuse_added_keys(found: object, section: type, path: str) -> None:
    """``+sft.new=1``: Hydra's + opens even a typed section, and the key would then be dropped without a word."""
    if not isinstance(found, dict):
        return
    known = hints(section)
    for name, value in found.items():
        if name not in known:
            mend = nearest(name, list(known), prefix=path) or "see --help=all for every key"
            raise ConfigError(f"{path}{name}", value, " | ".join(known), mend)
        inner = section_of(known[name])
        if inner is not None:
            _refuse_added_keys(value, inner, f"{path}{name}.")


def _expand_home(node: DictConfig) -> None:
    """``student.path=~/models/mine``: no shell has expanded what stands behind a ``=``, or in a file."""
    raws = cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))
    for name, raw in raws.items():
        if isinstance(raw, str) and (raw == "~" or raw.startswith("~/")):
            node[name] = os.path.expanduser(raw)
        elif isinstance(raw, dict) and OmegaConf.is_dict(inner := node._get_node(name)) and raw:
            _expand_home(cast(DictConfig, inner))


def _require_resolvable(node: DictConfig, path: str = "") -> None:
    """Name the key that is missing, or whose interpolation leads nowhere; OmegaConf's error names only the target."""
    raws = cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))
    for name, raw in raws.items():
        key = f"{path}{name}"
        if raw == MISSING:
            raise ConfigError(key, MISSING, type_of(key), f"give it: {key}=...")
        try:
            value = node[name]
        except InterpolationToMissingValueError:
            continue  # the missing key itself is met in its own section
        except InterpolationResolutionError as error:
            raise ConfigError(key, raw, "an existing key inside ${...}", first_line(error.msg)) from error
        if OmegaConf.is_dict(value):
            _require_resolvable(value, f"{key}.")
