"""Numbers within a tolerance: measured quantities, read from figures."""

from __future__ import annotations

import math
import re

from vold_nemo.rewards.boxed import extract
from vold_nemo.rewards.verdict import Verdict

DEFAULT_TOLERANCE = 1e-4
LONGEST = 200  # characters of a number with its unit
_DROPPED = re.compile(r"\\[,;:! ]|\\(?:left|right|displaystyle)\b|[$\s]|(?<=\d)\{,\}(?=\d{3})")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{([+-]?[\d.]+)\}\{([\d.]+)\}(.*)")
_PLAIN = re.compile(
    r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?)"  # 1,234.5
    r"(?:(?:e|\\times10\^|\*10\^|×10\^)\{?([+-]?\d{1,3})\}?)?"  # e3
    r"(/\d+(?:\.\d+)?)?(.*)"  # /4, and what follows
)
# What may follow a number: a unit, in letters, degrees or \text{}; digits and operators may not.
_UNIT = re.compile(r"(?:%|\\%|°|\^?\{?\\circ\}?|\\?(?:text|mathrm|mbox)?\{?[A-Za-zμΩ²³./°]*(?:\^\{?[23]\}?)?\}?)")


def number_of(text: str) -> float | None:
    """The number that ``text`` is, units aside: ``1,234.5``, ``-3/4``, ``\\frac{1}{2}``, ``1.2e3``, ``12%``.

    A percentage is read as the number before the sign, and ``x = 3`` as 3.  None for anything else, and for infinities.
    """
    if len(text) > LONGEST:
        return None
    text = _DROPPED.sub("", text.replace("−", "-")).rpartition("=")[2]
    if found := _FRACTION.fullmatch(text):
        sign, top, bottom, unit = found.groups()
        exponent = None
    elif found := _PLAIN.fullmatch(text):
        top, exponent, bottom, unit = found.groups()
        sign, top, bottom = "", top.replace(",", ""), (bottom or "/1")[1:]
    else:
        return None
    if not _UNIT.fullmatch(unit):
        return None
    try:
        value = float(f"{sign}1") * float(top) / float(bottom) * 10.0 ** int(exponent or 0)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def numeric_match(response: str, truth: str, *, tolerance: float) -> Verdict:
    """1 if the last box is a number x with ``|x - truth| <= tolerance * |truth|`` (exactly 0 where the truth is 0)."""
    wanted = number_of(truth)
    if wanted is None:
        return Verdict.of(False, None, "the truth is not a number")
    box = extract(response)
    if box.answer is None:
        return Verdict.of(False, None, box.reason)
    value = number_of(box.answer)
    if value is None:
        return Verdict.of(False, box.answer, "the box holds no number")
    right = abs(value - wanted) <= tolerance * abs(wanted)
    return Verdict.of(right, box.answer, "within tolerance" if right else "differs")
