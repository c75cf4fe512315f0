"""Composition: ``conf/`` and the command line become one :class:`Config`, or errors that say how to mend them.

Hydra checks every key and type against the dataclasses of :mod:`vold_nemo.config` while it composes, but its messages
name its own internals.  :func:`as_config_error` turns each of them into a :class:`ConfigError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError, OmegaConfBaseException

from vold_nemo.config import Config, ConfigError, to_config

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("student", "teacher", "parallel", "objective", "rollout", "data", "cluster", "experiment")


@dataclass(frozen=True)
class HydraArguments:
    """What Hydra's own argument parser found on the command line."""

    overrides: list[str]
    help: bool
    inspects: bool  # --cfg, --info, --hydra-help, --shell-completion: print something and leave
    config_dir: str | None

    @classmethod
    def parse(cls, argv: list[str]) -> HydraArguments:
        """Read ``argv``; flags that would start several runs or swap the configuration for another are refused."""
        from hydra._internal.utils import get_args_parser

        found = get_args_parser().parse_args(argv)
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
        overrides = [enter_open_sections(override) for override in found.overrides]
        return cls(overrides, bool(found.help), inspects, found.config_dir)

    def argv(self) -> list[str]:
        """The command line that makes Hydra compose the same configuration again."""
        return [*self.overrides, *(["--config-dir", self.config_dir] if self.config_dir else [])]


def register_schema() -> None:
    """Make :class:`Config` the ``schema`` entry that ``conf/config.yaml`` starts from."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def compose(overrides: list[str], config_dir: str | None = None) -> Config:
    """``conf/config.yaml`` with ``overrides``, resolved; ``config_dir`` is searched before ``conf/``.

    Raises what Hydra and OmegaConf raise: hand it to :func:`as_config_error`.
    """
    import hydra
    from hydra.errors import HydraException

    register_schema()
    if config_dir is not None:
        folder = Path(config_dir).expanduser().resolve()
        if not folder.is_dir():
            raise ConfigError("--config-dir", config_dir, "an existing folder", "correct the path")
        overrides = [*overrides, f"hydra.searchpath=['file://{folder}']"]
    _require_experiment(overrides, [CONF, *([folder] if config_dir is not None else [])])
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        try:
            composed = hydra.compose(config_name="config", overrides=overrides)
        except (HydraException, OmegaConfBaseException):
            raise
        except (AssertionError, AttributeError, TypeError, ValueError) as error:  # bare ones, from Hydra's own checks
            reason = _first_line(str(error))
            raise ConfigError("command line", " ".join(overrides), "key=value, group=option, ~key", reason) from error
    _refuse_added_keys(OmegaConf.to_container(composed, resolve=False), Config, "")
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
            raise _no_such_option("experiment", name, options)


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
        hint = _hint(".".join(parts[: depth + 1]))
        if "~" not in prefix and depth + 1 < len(parts) and _is_map_of_sections(hint):
            for part in reversed(parts[depth + 1 :]):
                value = f"{{{part}: {value}}}"
            return f"++{'.'.join(parts[: depth + 1])}={value}"
        if typing.get_origin(hint) is dict and depth + 1 < len(parts):
            return f"++{'.'.join(parts)}={value}"
        if _section(hint) is not None and type(None) in typing.get_args(hint):
            for part in reversed(parts[depth:]):
                value = f"{{{part}: {value}}}"
            return f"{prefix}{'.'.join(parts[:depth])}={value}"
    return override


def _is_map_of_sections(hint: object) -> bool:
    return typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1])


def _refuse_added_keys(found: object, section: type, path: str) -> None:
    """``+sft.new=1``: Hydra's + opens even a typed section, and the key would then be dropped without a word."""
    if not isinstance(found, dict):
        return
    known = _hints(section)
    for name, value in found.items():
        if name not in known:
            mend = _nearest(name, list(known), prefix=path) or "see --help for every key"
            raise ConfigError(f"{path}{name}", value, " | ".join(known), mend)
        inner = _section(known[name])
        if inner is not None:
            _refuse_added_keys(value, inner, f"{path}{name}.")


def _require_resolvable(node, path: str = "") -> None:
    """Name the key that is missing, or whose interpolation leads nowhere; OmegaConf's error names only the target."""
    for name, raw in OmegaConf.to_container(node, resolve=False).items():
        key = f"{path}{name}"
        if raw == MISSING:
            raise ConfigError(key, MISSING, _type_of(key), f"give it: {key}=...")
        try:
            value = node[name]
        except InterpolationToMissingValueError:
            continue  # the missing key itself is met in its own section
        except InterpolationResolutionError as error:
            raise ConfigError(key, raw, "an existing key inside ${...}", _first_line(error.msg)) from error
        if OmegaConf.is_dict(value):
            _require_resolvable(value, f"{key}.")


def as_config_error(error: BaseException, overrides: list[str] = ()) -> list[ConfigError]:
    """The configuration errors that ``error`` stands for; an empty list if it is something else."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException

    if isinstance(error, ConfigError):
        return [error]
    if isinstance(error, ExceptionGroup):
        found = [as_config_error(inner, overrides) for inner in error.exceptions]
        return [inner for errors in found for inner in errors] if all(found) else []
    if isinstance(error, OverrideParseException):
        reason = _first_line(str(error))
        return [ConfigError("command line", error.override, "key=value, group=option, ~key", f"quote it ({reason})")]
    if isinstance(error, MissingConfigException):
        return [_missing_option(error)]
    cause = (error.__cause__ or error.__context__) if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException):
        found = _omegaconf(cause, overrides)
        file = re.match(r"In '([^']+)'", str(error))
        mend = f"{found.mend} (in {file.group(1)}.yaml)" if file else found.mend
        return [ConfigError(found.key, found.value, found.allowed, mend)]
    if isinstance(error, ConfigCompositionException):
        return [_composition(str(error), overrides)]
    if isinstance(error, HydraException):
        return [ConfigError("configuration", _first_line(str(error)), "what conf/config.yaml composes", "see --help")]
    return []


def _missing_option(error) -> ConfigError:
    """``student=qwen9`` where conf/student/qwen9.yaml does not exist."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    return _no_such_option(group, option, list(error.options or ()))


def _no_such_option(group: str, option: str, options: list[str]) -> ConfigError:
    mend = _nearest(option, options, prefix=f"{group}=") or f"choose one of these, or add conf/{group}/{option}.yaml"
    return ConfigError(group or "configuration file", option, " | ".join(options) or "a file in conf/", mend)


def _composition(message: str, overrides: list[str]) -> ConfigError:
    """``studnet=miniature``: Hydra knows neither a key nor a group of that name."""
    named = re.search(r"'([^']*)'", message)
    name = named.group(1).lstrip("+~/") if named else _first_line(message)
    names = sorted({*GROUPS, *_hints(Config)})
    mend = _nearest(name.split("=")[0], names) or "see --help for every key"
    return ConfigError(name, _value(name, overrides, message), " | ".join(names), mend)


def _omegaconf(error: OmegaConfBaseException, overrides: list[str]) -> ConfigError:
    """A key that the schema does not have, or a value that is not of its type."""
    message = _first_line(error.msg or str(error))
    key = error.full_key or (str(error.key) if error.key is not None else "configuration")
    if isinstance(error, InterpolationResolutionError):
        return ConfigError(key, message, "an existing key inside ${...}", "correct it")
    value = error.value if getattr(error, "value", None) is not None else _value(key, overrides, message)
    owner, known = _owner(key)
    if known is None:
        return ConfigError(key, value, f"any name under {owner}, added with ++", f"++{key}={value}")
    wrong = key[len(owner) :].lstrip(".").split(".")[0]
    if wrong not in known:
        mend = _nearest(wrong, known, prefix=f"{owner}." if owner else "") or "see --help for every key"
        return ConfigError(key, value, " | ".join(known), mend)
    return ConfigError(key, value, _type_of(key), f"give a value of that type ({message})")


def _owner(key: str) -> tuple[str, list[str] | None]:
    """Longest prefix of ``key`` that is a section, and the section's keys (None where any key may stand)."""
    section, walked = Config, []
    for part in key.split("."):
        hint = _hints(section).get(part)
        if hint is None:
            break
        inner = _section(hint)
        if inner is None:
            if typing.get_origin(hint) is dict:
                return ".".join([*walked, part]), None
            break
        section, walked = inner, [*walked, part]
    return ".".join(walked), list(_hints(section))


def _hint(key: str) -> object | None:
    """The type annotation of ``key``; None if there is no such key."""
    section: type | None = Config
    hint: object = Config
    for part in key.split("."):
        if section is None or part not in _hints(section):
            return None
        hint = _hints(section)[part]
        section = _section(hint)
    return hint


def _type_of(key: str) -> str:
    """The type of ``key`` in words."""
    hint = _hint(key)
    inner = _section(hint)
    if inner is not None:
        return f"a section with the keys {' | '.join(_hints(inner))}"
    return hint.__name__ if isinstance(hint, type) else "see --help" if hint is None else str(hint)


def _hints(section: type) -> dict[str, object]:
    return typing.get_type_hints(section)


def _section(hint: object) -> type | None:
    """The dataclass inside ``hint`` (``X`` or ``X | None``), if there is one."""
    candidates = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((item for item in candidates if dataclasses.is_dataclass(item)), None)


def _nearest(name: str, names: list[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {prefix}{found[0]}?" if found else ""


def _value(key: str, overrides: list[str], otherwise: str) -> str:
    """What the command line gave for ``key`` or for a key below it."""
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        if name == key or name.startswith(f"{key}."):
            return value
    return _first_line(otherwise)


def _first_line(message: str | None) -> str:
    return (message or "").strip().splitlines()[0] if (message or "").strip() else ""
