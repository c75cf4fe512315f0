r"""Plain numbers, exactly: ``-3/4``, ``\frac{3}{4}``, ``2\frac{3}{4}``, ``1.6\times10^{-19}``.  No SymPy, no floats."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from vold_nemo.rewards.tokens import COMMAND, MARK, NUMBER, Token

LONGEST_EXPONENT = 4_000  # 10^4000 is written out in microseconds
SIGNIFICANT = 6  # digits from which a decimal key stands for the exact value that it rounds


class Number(NamedTuple):
    value: Fraction
    places: int | None  # digits behind the point; None for what is not written as a decimal
    digits: int  # significant ones


_DECIMAL = re.compile(r"(\d+)(?:\.(\d*))?(?:[eE]([+-]?\d+))?")


def number_in(core: tuple[Token, ...]) -> Number | None:
    """The number that ``core`` is; None for whatever needs computing beyond one fraction or power of ten."""
    sign, rest = 1, core
    while len(rest) > 1 and rest[0].kind == MARK and rest[0].text in "+-" and len(core) - len(rest) < 1:
        sign, rest = (-sign if rest[0].text == "-" else sign), rest[1:]
    found = _unsigned(rest)
    return found and found._replace(value=sign * found.value)


def _unsigned(core: tuple[Token, ...]) -> Number | None:
    if not core:
        return None
    if core[0].kind == NUMBER:
        first = _decimal(core[0].text)
        if first is None or len(core) == 1:
            return first
        return _with_more(first, core[1:])
    if core[0][:2] == (COMMAND, "frac"):
        return _fraction(core[1:])
    if (
        core[0].kind == MARK
        and core[0].text == "("
        and core[-1].text == ")"
        and sum(token.text in "()" for token in core) == 2
    ):
        return number_in(core[1:-1])
    return None


def _with_more(first: Number, rest: tuple[Token, ...]) -> Number | None:
    texts = [token.text for token in rest]
    if texts[0] == "/" and len(rest) == 2 and rest[1].kind == NUMBER:
        under = _decimal(rest[1].text)
        return Number(first.value / under.value, None, 0) if under is not None and under.value else None
    if rest[0][:2] == (COMMAND, "frac") and first.places is None:  # a mixed number
        part = _fraction(rest[1:])
        return Number(first.value + part.value, None, 0) if part is not None and 0 < part.value < 1 else None
    if (rest[0][:2] == (COMMAND, "cdot") or texts[0] == "*") and len(rest) > 3 and texts[1:3] == ["10", "^"]:
        exponent = _exponent(rest[3:])
        if exponent is not None:
            return Number(
                first.value * Fraction(10) ** exponent,
                None if first.places is None else first.places - exponent,
                first.digits,
            )
    if first.value == 10 and texts[0] == "^":
        exponent = _exponent(rest[1:])
        return Number(Fraction(10) ** exponent, None, 0) if exponent is not None else None
    return None


def _exponent(core: tuple[Token, ...]) -> int | None:
    text = "".join(token.text for token in core)
    text = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    if not re.fullmatch(r"[+-]?\d{1,4}", text):
        return None
    return int(text) if abs(int(text)) <= LONGEST_EXPONENT else None


def _decimal(text: str) -> Number | None:
    found = _DECIMAL.fullmatch(text)
    if found is None or len(text) > 1000:
        return None
    whole, part, exponent = found.groups()
    power = int(exponent or 0)
    if abs(power) > LONGEST_EXPONENT:
        return None
    value = Fraction(int(whole + (part or "")), 10 ** len(part or "")) * Fraction(10) ** power
    digits = len((whole + (part or "")).lstrip("0"))
    return Number(value, len(part) - power if part else (None if not exponent else -power), digits)


def _fraction(core: tuple[Token, ...]) -> Number | None:
    """``{3}{4}`` or ``34``, and nothing behind it."""
    texts = [token.text for token in core]
    if len(core) == 1 and re.fullmatch(r"\d\d", texts[0]):  # \frac34
        top, bottom = texts[0]
        return Number(Fraction(int(top), int(bottom)), None, 0) if bottom != "0" else None
    parts, place = [], 0
    for _ in range(2):
        if place < len(core) and core[place].kind == NUMBER and (place or len(texts[0]) == 1):
            parts.append((core[place],))
            place += 1
        elif place < len(core) and texts[place] == "{" and "}" in texts[place:]:
            end = texts.index("}", place)
            parts.append(core[place + 1 : end])
            place = end + 1
        else:
            return None
    if place != len(core) or not all(parts):
        return None
    sign = 1
    values = []
    for part in parts:
        if part[0].text in ("+", "-"):
            sign, part = (-sign if part[0].text == "-" else sign), part[1:]
        if len(part) != 1 or part[0].kind != NUMBER:
            return None
        values.append(_decimal(part[0].text))
    if None in values or not values[1].value:
        return None
    return Number(sign * values[0].value / values[1].value, None, 0)


def same_number(answer: Number, key: Number) -> bool:
    """Equal as exact numbers; beside a decimal key of six digits or more, what is no decimal may be what it rounds."""
    if answer.value == key.value:
        return True
    return answer.places is None and answer.value.denominator != 1 and rounds_to(answer.value, key)


def rounds_to(value: Fraction, key: Number) -> bool:
    """Whether a value, rounded to the digits of a long decimal key, is the key: a tolerance relative to its own digits."""
    if key.places is None or key.digits < SIGNIFICANT:
        return False
    return 2 * abs(value - key.value) <= Fraction(10) ** -key.places
