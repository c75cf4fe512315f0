r"""A value with its unit: ``12\text{ cm}``, ``35\%``, ``\$4.50``, ``60^\circ``, ``1011_2``, and what keeps an
expression from being computed.
"""

from __future__ import annotations

import re
from fractions import Fraction

from vold_nemo.rewards.shapes import ACCENTS, COMPUTED, FIGURES, FUNCTIONS, GREEK, Based, Opaque, Shape, Tokens, Value
from vold_nemo.rewards.tokens import COMMAND, LETTER, MARK, NUMBER, RUN, WORD, Token
from vold_nemo.rewards.units import Unit, unit_of


def value_of(found: Tokens, text: str) -> Shape:
    sign, unit = "", None
    core = found
    if core and core[0].text == "\\$":
        sign, core = "$", core[1:]
    elif len(core) > 2 and core[0].text == "-" and core[1].text == "\\$":
        sign, core = "$", (core[0], *core[2:])
    applied = any(token.kind == COMMAND and token.text in FUNCTIONS for token in core)
    if len(core) > 1 and (
        core[-1].text == "%" or (core[-1].kind in (WORD, RUN) and core[-1].text.lower() in ("percent", "pct"))
    ):
        sign, core = sign + "%", core[:-1]
    elif (
        len(core) > 1
        and not applied
        and (core[-1].text == "°" or (core[-1].kind in (WORD, RUN) and core[-1].text.lower() in ("degrees", "degree")))
    ):
        sign, core = sign + "°", core[:-1]
    elif len(core) > 2 and core[-2].text == "°" and core[-1].text in ("C", "F"):
        core, unit = core[:-2], Unit(f"°{core[-1].text}", Fraction(1))
    else:
        core, unit = _without_unit(core)
    if not core or len(sign) > 1:
        return Opaque("a value with several signs", text=text)
    based = _based(core)
    if based is not None:
        return Based(*based, text=text) if unit is None and not sign else Opaque("a base with a unit", text=text)
    why = _unreadable(core)
    return Opaque(why, text=text) if why else Value(core, unit, sign, text=text)


def _without_unit(found: Tokens) -> tuple[Tokens, Unit | None]:
    """The longest unit that closes ``found``: words after a number or a bracket, ``/`` and small powers among them."""
    for place in range(1, len(found)):
        token = found[place]
        bare_run = token.kind == RUN and found[place - 1].kind in (NUMBER, MARK)
        if not (token.kind == WORD or (token.kind == LETTER and token.prose) or bare_run) or found[place - 1].text in (
            "_",
            "^",
            "(",
            "{",
            "+",
            "-",
        ):
            continue
        phrase = (
            "".join(
                (
                    ""
                    if after.kind == MARK
                    or not (before.kind in (WORD, RUN, LETTER) and after.kind in (WORD, RUN, LETTER))
                    else " "
                )
                + after.text
                for before, after in zip(found[place - 1 :], found[place:], strict=False)
            )
            .replace("{", "")
            .replace("}", "")
            .replace("°C", "k")
            .strip()
        )
        unit = unit_of(phrase)
        return (found[:place], unit) if unit is not None else (found, None)
    return found, None


def _based(core: Tokens) -> tuple[str, str] | None:
    if len(core) >= 5 and core[0].text == "(" and core[2].text == ")":
        core = (core[1], *core[3:])
    digits = [token.text for token in core]
    stop = digits.index("_") if "_" in digits else 0
    if stop and core[0].kind == NUMBER and all(re.fullmatch(r"\d+|[A-Fa-f]", said) for said in digits[:stop]):
        base = "".join(said for said in digits[stop + 1 :] if said not in "{}").lower()
        return "".join(digits[:stop]).upper(), {"two": "2", "ten": "10", "three": "3", "five": "5", "eight": "8"}.get(
            base, base
        )
    return None


def _unreadable(core: Tokens) -> str:
    """Why an expression cannot be computed as it is written; empty if it can."""
    for place, token in enumerate(core):
        before = core[place - 1] if place else Token(MARK, "")
        if token.kind == WORD:
            return "a word beside a value"
        if (
            token.kind == RUN
            and not (len(token.text) <= 3 and token.text.islower())
            and not token.text.isupper()
            and len(token.text) > 2
        ):
            return "a word beside a value"
        if token.kind == COMMAND and token.text not in COMPUTED | GREEK | ACCENTS | FIGURES | {"emptyset"}:
            return f"\\{token.text} is not computed"
        if token.kind == NUMBER and before.kind == NUMBER and not (place > 1 and core[place - 2].text == "_"):
            return "two numbers side by side"
        if token.kind == COMMAND and token.text in ACCENTS and before.kind == NUMBER and before.text.endswith("."):
            return "a decimal that is not read"
        if (
            token.text == "_"
            and before.kind not in (LETTER, RUN)
            and before.text not in GREEK | {"log"} | ACCENTS
            and before.text not in ("}", ")")
        ):
            return "a subscript of no letter"
        if token.text == "'" and (before.kind == NUMBER or before.text in (")", "°", "") or before.kind == COMMAND):
            return "a prime of no letter"
        if token.text in ("[", "]") and "sqrt" in [other.text for other in core]:
            continue  # the degree of a root
        if token.kind == MARK and token.text in (":", "%", "=", ";", ",", "\\$", ".", "]", "["):
            return f"{token.text} inside a value"
        if token.text == "°" and not (
            place and before.kind == NUMBER and any(t.text in FUNCTIONS for t in core[:place])
        ):
            return "a degree sign inside a value"
        if token.text == "!" and before.text == "!":
            return "a double factorial"
        if token.kind == MARK and token.text in "+-" and before.kind == MARK and before.text in ("+", "-"):
            return "two signs in a row"
    last = core[-1]
    if last.text in ("+", "-", "*", "/", "^", "_") or last[:2] in (
        (COMMAND, "cdot"),
        (COMMAND, "div"),
        (COMMAND, "frac"),
        (COMMAND, "sqrt"),
        (COMMAND, "pm"),
    ):
        return "an unfinished expression"
    return ""
