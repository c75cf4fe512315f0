r"""A key as its set has it, as the text that a plain answer is compared with.

Numbers are written as people write them: ``5.0`` of a column with gaps is ``5``, a float of 32 bits has the shortest text that
names it (``data/rows.py``), NaN and infinity are gaps.  What wraps a key whole comes off: a box, dollar signs, the solution
before ``#### 5`` (GSM8K) or around its only box (MATH), an ``<answer>`` tag, a JSON list of one text (Skywork-OR1).
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

from vold_nemo.rewards.boxed import last_box

_BOX = re.compile(r"\\f?boxed\s*\{")
_HASHES = re.compile(r"(?:\A|\n)[ \t]*####[ \t]*(\S[^\n]*?)\s*\Z")
_TAG = re.compile(r"<answer>(.*)</answer>", re.DOTALL | re.IGNORECASE)
# Whole keys in dollar signs or LaTeX's own: nothing inside may end them earlier.
_MATHEMATICS = (
    re.compile(r"\$\$((?:[^$\\]|\\.)+)\$\$", re.DOTALL), re.compile(r"\$((?:[^$\\]|\\.)+)\$", re.DOTALL),
    re.compile(r"\\\(((?:(?!\\[()]).)+)\\\)", re.DOTALL), re.compile(r"\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL),
)  # fmt: skip
_EXACT = 1e21  # whole floats below it are written out, as JSON's own writers do


def number_text(value: int | float | Decimal) -> str | None:
    """The number as people write it; None for NaN and infinities, which stand for a gap."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return None
    if isinstance(value, Decimal):
        written = format(value, "f")
        return (written.rstrip("0").rstrip(".") if "." in written else written) or "0"
    if value == int(value) and abs(value) < _EXACT:
        return str(int(value))
    return repr(float(value))


def scalar_text(value: Any) -> str | None:
    """A text without outer blanks, or a number as text; None for a gap.

    Raises:
        TypeError: neither; its message is the type's name.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError(type(value).__name__)
    return number_text(value)


def unwrapped(key: str) -> str:
    """``key`` without what wraps it whole; as it is where that is not certain."""
    for _ in range(8):  # $\boxed{\text{...}}$: one layer a turn
        inner = _inner(key)
        if inner is None or not inner.strip():
            return key
        key = inner.strip()
    return key


def _inner(key: str) -> str | None:
    if found := _HASHES.search(key):
        return found[1] if key.count("####") == 1 else None
    boxes = len(_BOX.findall(key))
    if boxes == 1 and "\\fbox" not in key:
        return last_box(key)
    if boxes:
        return None
    if (found := _TAG.fullmatch(key)) and "<answer>" not in found[1].lower():
        return found[1]
    for form in _MATHEMATICS:
        if found := form.fullmatch(key):
            return found[1]
    if key.startswith('["') and key.endswith('"]'):
        try:
            listed = json.loads(key)
        except ValueError:
            return None
        return listed[0] if len(listed) == 1 and isinstance(listed[0], str) else None
    return None
