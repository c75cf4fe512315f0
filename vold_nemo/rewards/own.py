"""The user's own verifiers, ``package.module:function``: found, called, and what they return made a verdict.

    function(response: str, truth: str) -> Verdict | a number in [0, 1] | a bool

Numbers are Python's, numpy's (scalars and arrays of one) and torch's.  Anything else is :class:`NotAVerdict`: a function that
returns it never gives a reward, so it is an error when the run starts (``trial.py``), not a wrong answer.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable
from decimal import Decimal
from numbers import Real
from typing import Any

from vold_nemo.config import ConfigError
from vold_nemo.rewards.verdict import KEPT_CHARACTERS, RIGHT, WRONG, Verdict, shortened

PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
ROUNDING = 1e-6  # a float32 sum of weights may stand so far outside of [0, 1]
SIGNATURE = "a function of (response, truth) that returns a Verdict, a number in [0, 1] or a bool"


class NotAVerdict(TypeError):
    """What a verifier returned says nothing about the answer."""


@functools.cache
def imported(name: str) -> Callable[[str, str], Any]:
    """The function at the path ``name``.

    Raises:
        ConfigError: it cannot be imported, or not be called with a response and a truth, or only be awaited.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ConfigError(
            "reward.verifier", name, "package.module:function that can be imported",
            f"correct the path, or install the package ({type(error).__name__}: {str(error)[:200]})",
        ) from error  # fmt: skip
    if not callable(found):
        raise ConfigError("reward.verifier", name, SIGNATURE, f"it is of type {type(found).__name__}: name a function")
    call = found if inspect.isroutine(found) or inspect.isclass(found) else type(found).__call__
    if any(map(inspect.iscoroutinefunction, (found, call))) or any(map(inspect.isasyncgenfunction, (found, call))):
        raise ConfigError("reward.verifier", name, SIGNATURE, "it is a coroutine: run it inside, asyncio.run(...)")
    try:
        inspect.signature(found).bind("", "")
    except TypeError as error:
        raise ConfigError("reward.verifier", name, SIGNATURE, f"change its parameters: {error}") from None
    except ValueError:  # a function in C that does not tell
        pass
    return found


def called(name: str, response: str, truth: str) -> Verdict:
    """The verdict of the function at ``name``.

    Raises:
        NotAVerdict: it returned something else.
        Exception: what it raised.
    """
    function = imported(name)
    try:
        result = function(response, truth)
    except TypeError as error:
        if error.__traceback__.tb_next is None:  # raised by the call, not inside: a function in C that told no signature
            raise NotAVerdict(f"it is not called with (response, truth): {error}") from None
        raise
    if not isinstance(result, Verdict):
        reward = _number(result)
        return Verdict(reward, None, RIGHT if reward == 1 else WRONG)
    reward = _number(result.reward)
    extracted = None if result.extracted is None else shortened(str(result.extracted))
    reason = str(result.reason or (RIGHT if reward == 1 else WRONG))[:KEPT_CHARACTERS]
    return Verdict(reward, extracted, reason, result.trouble if result.trouble in ("time-out", "error") else None)


def _number(value: Any) -> float:
    kind = type(value).__name__
    if inspect.iscoroutine(value):
        value.close()  # nobody will await it
        raise NotAVerdict("a coroutine is not awaited: use asyncio.run(...) inside")
    item = getattr(value, "item", None)
    if callable(item) and not isinstance(value, type):  # numpy and torch: a scalar, or an array of one number
        try:
            value = item()
        except Exception as error:
            raise NotAVerdict(f"reward of type {kind} is no single number ({str(error)[:100]})") from None
    if not isinstance(value, Real | Decimal):  # a bool is one, and so is a Fraction
        raise NotAVerdict(f"reward {str(value)[:100]!r} of type {kind} is not a number in [0, 1]")
    number = float(value)
    if math.isnan(number) or not -ROUNDING <= number <= 1 + ROUNDING:
        raise NotAVerdict(f"reward {number!r} is not a number in [0, 1]")
    return min(1.0, max(0.0, number))
