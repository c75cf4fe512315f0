r"""Small questions that a comparison asks about shapes: a letter of a choice, a word, what is left to compute, names
of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from vold_nemo.rewards import shapes as s
from vold_nemo.rewards.numbers import number_in
from vold_nemo.rewards.tokens import COMMAND, LETTER, MARK, NUMBER, RUN, WORD, Token, canonical
from vold_nemo.rewards.units import share

_ONE_WORD = {"yes", "no", "true", "false"}
_ALL_REAL = ({"all", "real", "numbers"}, {"all", "reals"}, {"real", "numbers"})


def is_all_real(shape: s.Shape) -> bool:
    """All real numbers: as a letter, as an interval, in words."""
    if isinstance(shape, s.Words):
        return {word.lower() for word in shape.words} in _ALL_REAL
    found = s.as_range(shape) if isinstance(shape, s.Row) else shape if isinstance(shape, s.Range) else None
    if found is not None:
        return found.low is None and found.high is None and (not isinstance(shape, s.Row) or shape.brackets == "()")
    return isinstance(shape, s.Value) and shape.text == "\\mathbb R"


def ratio_parts(shape: s.Shape) -> list[Fraction] | None:
    """The numbers of a ratio, or a number alone; a time that is no reduced ratio is none."""
    if isinstance(shape, s.Clock):
        numbers = [Fraction(part) for part in shape.parts]
        reduced = (
            len(numbers) == 2
            and numbers[1] != 0
            and (numbers[0] / numbers[1]).denominator == numbers[1]
            and not shape.half
        )
        return numbers if reduced else None
    cores = [shape] if isinstance(shape, s.Value) else list(shape.parts) if isinstance(shape, s.Ratio) else None
    if cores is None or any(part.sign or part.unit for part in cores):
        return None
    numbers = [number_in(part.core) for part in cores]
    if None in numbers or (len(numbers) > 1 and any(number.value == 0 for number in numbers)):
        return None
    return [number.value for number in numbers]


def unit_factor(answer: s.Value, key: s.Value) -> Fraction | None:
    if answer.sign == "$" or key.sign == "$":
        units = {side.unit.dimension for side in (answer, key) if side.unit is not None}
        return Fraction(1) if units <= {"money"} else None
    if answer.unit is None or key.unit is None:
        return (
            None if key.unit is None and answer.unit is not None and answer.unit.dimension == "cents" else Fraction(1)
        )
    return share(answer.unit, key.unit)


def letter_of_choice(shape: s.Shape) -> str | None:
    """The letter of a multiple choice: marked as one, or a capital from A to J alone (a to h small)."""
    if isinstance(shape, s.Choice):
        return shape.letter
    if (
        isinstance(shape, s.Value)
        and len(shape.core) == 1
        and shape.core[0].kind == LETTER
        and not shape.sign
        and not shape.unit
    ):
        return shape.core[0].text.upper() if shape.core[0].text in "ABCDEFGHIJabcdfgh" else None
    return None


def is_letters(core: s.Tokens) -> bool:
    return all(token.kind in (LETTER, RUN, WORD) for token in core)


def is_word(core: s.Tokens) -> bool:
    return len(core) > 1 or core[0].kind != LETTER


def same_letters(answer: s.Tokens, key: s.Tokens) -> bool:
    """Letters and nothing else are a name or a word: neither order nor case is free, but for the letter of a choice."""
    if canonical(answer) == canonical(key):
        return True
    if len(answer) == len(key) == 1 and answer[0].kind == key[0].kind == LETTER:
        return key[0].text in "ABCDFGH" and answer[0].text.upper() == key[0].text
    return False


def same_words(answer: tuple[str, ...], key: tuple[str, ...]) -> bool:
    if len(answer) != len(key):
        return set(map(str.lower, answer)) in _ALL_REAL and set(map(str.lower, key)) in _ALL_REAL
    return all(_same_word(a, k) for a, k in zip(answer, key, strict=True))


def _same_word(answer: str, key: str) -> bool:
    """Case aside, but a short word in capitals is a name: PQR is not pqr."""
    if answer == key:
        return True
    if answer.lower() != key.lower() or not all(word.isupper() or word[1:].islower() for word in (answer, key)):
        return False
    capitals = [word.isupper() and len(word) < 5 for word in (answer, key)]
    return capitals[0] == capitals[1] or key.lower() in _ONE_WORD


def asks(core: s.Tokens) -> bool:
    return any(token.kind == COMMAND and token.text in s.OPEN_TASKS for token in core)


def left_to_do(core: s.Tokens) -> bool:
    """Whether a sum or a product of plain numbers still stands there: ``17 \\cdot 23`` is the question, 391 the answer."""
    if s.letters_of(core):
        return False
    for place, token in enumerate(core):
        opens = place and core[place - 1].text == "|" and sum(other.text == "|" for other in core[:place]) % 2
        if (
            token.kind == MARK
            and token.text in "+-"
            and place
            and not opens
            and core[place - 1].text not in ("{", "(", "^", "[")
        ):
            return True
        if token[:2] in ((COMMAND, "cdot"), (COMMAND, "div"), (MARK, "*")) and place and core[place - 1].kind == NUMBER:
            after = core[place + 1] if place + 1 < len(core) else None
            if after is not None and after.kind == NUMBER and core[place + 2 : place + 3] not in ((Token(MARK, "!"),),):
                return True
    return False


def loosened(core: s.Tokens, names: set[str]) -> s.Tokens:
    """Capitals in a row that the key writes apart are a product there."""
    found: list[Token] = []
    for token in core:
        if token.kind == RUN and token.text.isupper() and token.text not in names:
            found += [Token(LETTER, letter) for letter in token.text]
        else:
            found.append(token)
    return tuple(found)


def both_signs(shape: s.Shape) -> list[s.Shape] | None:
    """``1 \\pm \\sqrt 2`` as its two values; None without one ``\\pm``."""
    if isinstance(shape, s.Named) and not shape.further and not shape.label:
        shape = shape.value
    if not isinstance(shape, s.Value):
        return None
    places = [place for place, token in enumerate(shape.core) if token[:2] == (COMMAND, "pm")]
    if len(places) != 1:
        return None
    place = places[0]
    found = []
    for sign in ("+", "-"):
        before = shape.core[:place]
        signed = () if sign == "+" and not before else (Token(MARK, sign),)
        core = (*before, *signed, *shape.core[place + 1 :])
        found.append(s.Value(core, shape.unit, shape.sign, text=canonical(core)))
    return found


def names_of(parts: Sequence[s.Shape]) -> list[str] | None:
    """The names of ``x = 1, y = 2``; None if not every part has one."""
    if not all(isinstance(part, s.Named) and not part.further and not part.label for part in parts):
        return None
    return [canonical(part.name) for part in parts]


def told_apart(names: s.Row, values: s.Shape) -> s.Items | None:
    """``(x, y) = (1, 2)`` as ``x = 1, y = 2``."""
    if (
        not isinstance(values, s.Row)
        or len(values.parts) != len(names.parts)
        or not all(isinstance(n, s.Value) for n in names.parts)
    ):
        return None
    parts = tuple(
        s.Named(n.core, v, text=f"{n.text} = {v.text}") for n, v in zip(names.parts, values.parts, strict=True)
    )
    return s.Items(parts, ",")


def letters_in(shape: s.Shape) -> set[str]:
    return s.letters_of(shape.core) if isinstance(shape, s.Value) else set()


def refers_to_itself(named: s.Named) -> bool:
    """Whether a value hangs on the letter that it is said to be: ``x = 2x``."""
    own = {canonical(named.name)} if not named.label else set()
    return any(
        isinstance(side, s.Value) and bool(own & s.letters_of(side.core)) for side in (named.value, *named.further)
    )


def sides_of(shape: s.Shape) -> tuple[s.Tokens, s.Tokens] | None:
    if isinstance(shape, s.Equation):
        return shape.left, shape.right
    if isinstance(shape, s.Named) and isinstance(shape.value, s.Value) and not shape.further and not shape.value.unit:
        return shape.name, shape.value.core
    return None


def same_base(answer: s.Shape, key: s.Shape) -> bool:
    """Digits with the same base; base ten may be left out."""
    sides = []
    for side in (answer, key):
        number = number_in(side.core) if isinstance(side, s.Value) and not side.unit and not side.sign else None
        if isinstance(side, s.Based):
            sides.append((side.digits.lstrip("0"), side.base))
        elif number is not None and number.value.denominator == 1 and number.value >= 0:
            sides.append((str(number.value).lstrip("0"), "10"))
        else:
            return False
    return sides[0] == sides[1]
