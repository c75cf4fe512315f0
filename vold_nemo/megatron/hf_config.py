"""What a ``config.json`` says of its language backbone, read as transformers reads it.  No torch; transformers if it must be.

A key that the file leaves out has the value that transformers' own class gives it, and each class has values of its own
(``rope_theta`` is 10^4 for Qwen2 and 10^6 for Qwen2.5-VL).  That class is asked for it, and only then: importing it takes
seconds, and files as people publish them leave nothing out that counts.  A key that is said twice, in two spellings or on
two levels, must say the same both times: tools differ in which of the two they believe.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from vold_nemo.config import ConfigError

OWN = "give the checkpoint's own config.json"
UNBUILT = "this is not implemented: use another model"
MOST_LAYERS = 10_000  # some eighty times the deepest that is published
_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor", "attention_factor")


class TextConfig:
    """The keys of the language backbone in a parsed ``config.json``.

    ``flat``: whether the family may keep them at the top level; otherwise they are in ``text_config``.  ``source`` is the
    file's name in errors.

    :raises ConfigError: as all its methods, for what cannot be used, under the file and the key.
    """

    def __init__(self, config: dict[str, Any], source: str, *, flat: bool):
        self._whole, self._source = config, source
        inner = config.get("text_config")
        if inner is None and not flat:
            raise self.error("text_config", None, "an object with the keys of the language model", OWN)
        if inner is not None and not isinstance(inner, dict):
            raise self.error("text_config", inner, "an object", OWN)
        self._text: dict[str, Any] = config if inner is None else inner
        for level in (config, self._text):  # transformers' classes make a list of them before anything is checked
            layers = level.get("num_hidden_layers")
            if isinstance(layers, int) and layers > MOST_LAYERS:
                raise self.error("num_hidden_layers", str(layers)[:20], f"at most {MOST_LAYERS:,}", OWN)

    def error(self, key: str, value: object, allowed: str, mend: str) -> ConfigError:
        return ConfigError(f"{self._source}: {key}", value, allowed, mend)

    def value(self, key: str) -> Any:
        """What the file says, or what transformers' class makes of a file without it (or with null)."""
        found = self._text.get(key)
        return getattr(self._resolved, key, None) if found is None else found

    def said(self, key: str) -> Any:
        """What the file itself says; None if nothing."""
        return self._text.get(key)

    def integer(self, key: str) -> int:
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, value, "a positive integer", OWN)
        return value

    def number(self, key: str) -> float:
        return self._positive(key, self.value(key))

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.error(key, value, "true | false", OWN)
        return value

    def refuse(self, key: str, allowed: tuple, absent: Any, mend: str = UNBUILT) -> None:
        """Settings with which our model would compute something else.

        ``absent``: what every family's class takes where the key is missing (a test asks them all).
        """
        value = self._text.get(key, absent)
        if value not in allowed:
            raise self.error(key, value, " | ".join(map(str, allowed)), mend)

    def either(self, *keys: str) -> int:
        """One number with several spellings; a null is one, too, and transformers takes it."""
        said = {key: self._text[key] for key in keys if key in self._text}
        if len(set(map(repr, said.values()))) > 1:
            raise self.error(" and ".join(said), list(said.values()), "the same number twice, or one of the keys",
                             "remove the one that is wrong")
        return self.integer(next(iter(said), keys[0]))

    def tied(self) -> bool:
        """Whether the LM head is the embedding.

        The flag of the top level decides, and where it is false or missing a class may look into ``text_config`` (Qwen2.5-VL's
        does, Qwen3-VL's does not).
        """
        key = "tie_word_embeddings"
        outer, inner = self._whole.get(key), self._text.get(key)
        for flag in (outer, inner):
            if flag is not None and not isinstance(flag, bool):
                raise self.error(key, flag, "true | false", OWN)
        if outer or (outer is False and not inner):
            return outer
        return bool(getattr(self._whole_resolved, key, False))

    def rope_theta(self, kinds: tuple[str, ...]) -> float:
        """The base of the plain rotary embedding, whichever way it is written.

        ``rope_theta`` (transformers 4) beside ``rope_scaling`` or nothing, or ``rope_parameters`` with both (transformers 5).
        ``kinds``: names of its plain form.  Everything that scales it is refused.
        """
        forms = {key: self._rope(key, kinds) for key in ("rope_scaling", "rope_parameters") if self._text.get(key)}
        if len(forms) == 2 and forms["rope_scaling"] != forms["rope_parameters"]:
            both = [self._text[key] for key in forms]
            raise self.error("rope_scaling and rope_parameters", both, "one of them, or both equal",
                             "transformers takes rope_scaling and forgets rope_parameters: remove the one that is wrong")
        for holder in (self._text, *(self._text[key] for key in forms)):
            if holder.get("partial_rotary_factor") not in (None, 1):
                raise self.error("partial_rotary_factor", holder["partial_rotary_factor"], "1", UNBUILT)
        flat = self._text.get("rope_theta")
        nested = next(iter(forms.values()), {}).get("rope_theta")
        if flat is not None and nested is not None and flat != nested:
            raise self.error("rope_theta", [flat, nested], f"the same here and in {next(iter(forms))}",
                             "remove the one that is wrong")
        theta = nested if flat is None else flat
        if theta is None:
            theta = (getattr(self._resolved, "rope_parameters", None) or {}).get("rope_theta")
        return self._positive("rope_theta", theta)

    def _rope(self, key: str, kinds: tuple[str, ...]) -> dict[str, Any]:
        """A spelling of the rotary embedding, its kind under one name."""
        form = self._text[key]
        if not isinstance(form, dict):
            raise self.error(key, form, "an object", OWN)
        said = {name: form[name] for name in ("rope_type", "type") if form.get(name) is not None}
        for value in said.values():
            if value not in kinds:
                raise self.error(f"{key}: rope_type", value, " | ".join(kinds), UNBUILT)
        for name, value in form.items():
            if isinstance(value, dict) or (name in _SCALING and value not in (None, 1)):
                raise self.error(f"{key}: {name}", value, "one plain rotary embedding for all layers", UNBUILT)
        plain = {name: value for name, value in form.items() if name not in ("rope_type", "type")}
        return {"rope_theta": self._text.get("rope_theta"), **plain}

    def _positive(self, key: str, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.error(key, value, "a positive number", OWN)
        return float(value)

    @cached_property
    def _whole_resolved(self):
        return _resolve(self._whole, self._source)

    @cached_property
    def _resolved(self):
        return self._whole_resolved.get_text_config()


def vision_sizes(config: dict[str, Any], source: str, keys: Sequence[str]) -> dict[str, int]:
    """``keys`` of the vision tower; a list counts by its length.

    :raises ConfigError: as :class:`TextConfig`.
    """
    said = config.get("vision_config")
    if not isinstance(said, dict):
        raise ConfigError(f"{source}: vision_config", said, "an object", OWN)
    found = {key: said.get(key) for key in keys}
    if None in found.values():
        whole = _resolve(config, source).vision_config
        found = {key: getattr(whole, key, None) if value is None else value for key, value in found.items()}
    sizes = {key: len(value) if isinstance(value, list | tuple) else value for key, value in found.items()}
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{source}: vision_config: {key}", value, "a whole number", OWN)
    return sizes


def _resolve(config: dict[str, Any], source: str) -> Any:
    """transformers' configuration of the whole file."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    except Exception as error:  # whatever its validation, or a value of another kind, comes to raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(source, said[-1].strip()[:200], "a config.json that transformers reads", OWN) from error
