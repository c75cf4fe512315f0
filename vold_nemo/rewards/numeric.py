"""Numbers within a tolerance: measured quantities, read from figures."""

from __future__ import annotations

import functools
import math

from vold_nemo.rewards import shapes
from vold_nemo.rewards.boxed import extract
from vold_nemo.rewards.numbers import number_in
from vold_nemo.rewards.reading import DEEPEST, shape_of
from vold_nemo.rewards.tokens import LETTER, MARK, NUMBER, Token, tokens_of
from vold_nemo.rewards.verdict import Verdict

DEFAULT_TOLERANCE = 1e-4
LONGEST = 200  # characters of a number with its unit
_UNIT_LETTERS = frozenset(
    "mgshLNJWVA"
)  # units that are written behind a number without \text{}; k and M make it another number


@functools.lru_cache(4096)
def number_of(text: str) -> float | None:
    """The number that ``text`` is, units aside: ``1,234.5``, ``-3/4``, ``\\frac{1}{2}``, ``1.2e3``, ``12%``, ``9.8 m/s^2``.

    A percentage is read as the number before the sign, and ``x = 3`` as 3.  None for anything else, several numbers, words that
    are no units, and infinities.
    """
    if len(text) > LONGEST or "\\begin" in text:
        return None
    return _number(shape_of(_with_units(tokens_of(text)))) if text.count("(") + text.count("{") <= DEEPEST else None


def _with_units(found: tuple[Token, ...]) -> tuple[Token, ...]:
    """Bare letters behind a number or a stroke as the units that they are."""
    told = []
    for place, token in enumerate(found):
        before = found[place - 1] if place else None
        unit = token.kind == LETTER and token.text in _UNIT_LETTERS and before is not None
        told.append(
            token._replace(prose=True) if unit and (before.kind == NUMBER or before[:2] == (MARK, "/")) else token
        )
    return tuple(told)


def _number(shape: shapes.Shape) -> float | None:
    if isinstance(shape, shapes.Named):
        sides = [_number(side) for side in (shape.value, *shape.further)]
        return sides[0] if len(set(sides)) == 1 else None
    if isinstance(shape, shapes.Rounded):
        named = isinstance(shape.exact, shapes.Value) and shapes.is_name(shape.exact.core)
        return _number(shape.rounded if named else shape.exact)
    if not isinstance(shape, shapes.Value) or (
        shape.sign == "$" and shape.unit is not None and shape.unit.dimension != "money"
    ):
        return None
    found = number_in(shape.core)
    try:
        value = float(found.value) if found is not None else math.inf
    except OverflowError:
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
