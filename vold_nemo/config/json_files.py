"""JSON files that others wrote: an object, or an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vold_nemo.config.errors import ConfigError


def parse_object(text: str | bytes, source: str, mend: str) -> dict[str, Any]:
    """The JSON object that ``text`` is.

    :raises ConfigError: under the name ``source``: no JSON, no text, another JSON value than an object, nested too deeply.
    """
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ConfigError(source, "JSON nested without end", "a JSON object", mend) from error
    except ValueError as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise ConfigError(source, str(error)[:200], "a JSON object", mend) from error
    if not isinstance(value, dict):
        raise ConfigError(source, f"a JSON {type(value).__name__}", "a JSON object", mend)
    return value


def read_object(file: Path, mend: str) -> dict[str, Any]:
    """:func:`parse_object` of ``file``.

    :raises ConfigError: also where it cannot be read.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigError(str(file), error.strerror or str(error), "a JSON file", mend) from error
    return parse_object(text, str(file), mend)
