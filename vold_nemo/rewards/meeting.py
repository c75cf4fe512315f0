r"""Whether an answer's shape meets a key's: which forms may stand for which, before anything is computed.

Where the box does not say which of two things is meant, it is not right: a list for a point, names in another order,
``0.5\%`` for 0.5, ``1011`` for ``1011_2``, the question for its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from vold_nemo.rewards import shapes as s
from vold_nemo.rewards.likeness import (
    asks,
    both_signs,
    is_all_real,
    is_letters,
    is_word,
    left_to_do,
    letter_of_choice,
    letters_in,
    loosened,
    names_of,
    ratio_parts,
    refers_to_itself,
    same_base,
    same_letters,
    same_words,
    sides_of,
    told_apart,
    unit_factor,
)
from vold_nemo.rewards.numbers import Number, number_in, same_number
from vold_nemo.rewards.reading import shape_of
from vold_nemo.rewards.tokens import COMMAND, LETTER, MARK, NUMBER, RUN, Token, canonical

MOST_ITEMS = 60
Same = Callable[[s.Tokens, s.Tokens], bool]  # whether two expressions are the same
Curve = Callable[[tuple[s.Tokens, s.Tokens], tuple[s.Tokens, s.Tokens], bool], bool]
Near = Callable[[s.Tokens, Fraction, Fraction], bool]  # whether an expression lies within a distance of a number
_PI, _PM, _TIMES, _OVER = Token(COMMAND, "pi"), Token(COMMAND, "pm"), Token(COMMAND, "cdot"), Token(MARK, "/")


class Meeting:
    """Compares shapes; ``same`` and ``curve`` say whether expressions are the same and equations describe the same."""

    def __init__(self, same: Same, curve: Curve, near: Near):
        self._same, self._curve, self._near = same, curve, near

    def meets(self, answer: s.Shape, key: s.Shape) -> bool:
        if isinstance(answer, s.Words) and isinstance(key, s.Words):
            return same_words(answer.words, key.words)
        if answer.text == key.text:
            return not isinstance(answer, s.Opaque) or bool(answer.text)
        if isinstance(answer, s.Opaque) or isinstance(key, s.Opaque):
            return False
        if isinstance(answer, s.Rounded) or isinstance(key, s.Rounded):
            return self._rounded(answer, key)
        if isinstance(answer, s.Choice) or isinstance(key, s.Choice):
            return letter_of_choice(answer) is not None and letter_of_choice(answer) == letter_of_choice(key)
        if isinstance(answer, s.Chain):
            return len({side.text for side in answer.sides}) > 1 and self._sides(answer.sides, key)
        if isinstance(key, s.Chain):
            return self.meets(answer, key.sides[-1])
        if isinstance(answer, s.Equation) or isinstance(key, s.Equation):
            return self._equation(answer, key)
        if isinstance(answer, s.Named) or isinstance(key, s.Named):
            return self._named(answer, key)
        return self._plain(answer, key)

    def _sides(self, sides: Sequence[s.Shape], key: s.Shape) -> bool:
        """Whether the last side of a chain meets the key, and those on the way to it are the same: ``17 \\cdot 23 = 391``."""
        told = key.value if isinstance(key, s.Named) else key
        if not isinstance(told, s.Value):
            return all(self.meets(side, key) for side in sides)
        on_the_way = all(
            isinstance(side, s.Value) and (self.meets(side, told) or self._same(side.core, told.core))
            for side in sides[:-1]
        )
        return on_the_way and self.meets(sides[-1], key)

    def _plain(self, answer: s.Shape, key: s.Shape) -> bool:
        if isinstance(answer, s.Value) and isinstance(key, s.Value):
            return self.values(answer, key)
        if isinstance(answer, s.Items) and isinstance(key, s.Items):
            return self._items(answer, key)
        if isinstance(answer, s.Items) and len(answer.parts) == 1 and answer.kind == "{":
            return False
        if isinstance(key, s.Items) and isinstance(answer, s.Value):
            return self._both_signs(answer, key.parts)
        if isinstance(answer, s.Items) and isinstance(key, s.Value):
            expanded = both_signs(key)
            return (
                expanded is not None and self._match(answer.parts, expanded)
                if answer.kind in (",", "{", "and", "or")
                else False
            )
        if is_all_real(answer) or is_all_real(key):
            return is_all_real(answer) and is_all_real(key)
        if isinstance(answer, s.Items) and isinstance(key, s.Row):  # x = 1, y = 2
            names = names_of(answer.parts)
            in_order = bool(names) and names == sorted(set(names)) and key.brackets == "()" and answer.kind != "or"
            return in_order and self._in_order([part.value for part in answer.parts], key.parts)
        if isinstance(answer, s.Row) and isinstance(key, s.Items):
            names = names_of(key.parts)
            in_order = bool(names) and len(set(names)) == len(names) and answer.brackets == "()" and key.kind != "or"
            return in_order and self._in_order(answer.parts, [part.value for part in key.parts])
        if isinstance(answer, s.Range | s.Row) and isinstance(key, s.Range | s.Row):
            return self._ordered(answer, key)
        if isinstance(answer, s.Comparison) and isinstance(key, s.Comparison):
            return self._comparison(answer, key)
        if isinstance(answer, s.Grid) or isinstance(key, s.Grid):
            return self._grid(answer, key)
        if isinstance(answer, s.Based) or isinstance(key, s.Based):
            return same_base(answer, key)
        return self._ratio(answer, key)

    # -- values

    def values(self, answer: s.Value, key: s.Value) -> bool:
        if answer.core == key.core and answer.sign == key.sign and answer.unit == key.unit:
            return True
        if _PM[:2] in {token[:2] for token in (*answer.core, *key.core)}:
            both = both_signs(answer), both_signs(key)
            return None not in both and self._match(*both)
        if "%" in (answer.sign, key.sign):
            return self._percent(answer, key)
        if "°" in (answer.sign, key.sign):
            return self._degrees(answer, key)
        factor = unit_factor(answer, key)
        if factor is None:
            return False
        letters = [is_letters(side.core) for side in (answer, key)]
        if all(letters) or any(
            found and is_word(side.core) for found, side in zip(letters, (answer, key), strict=True)
        ):
            return same_letters(answer.core, key.core)
        a, b = number_in(answer.core), number_in(key.core)
        if factor != 1:
            return a is not None and b is not None and a.value * factor == b.value
        if a is not None and b is not None:
            return same_number(a, b)
        return self._computed(answer.core, key.core, b)

    def _computed(self, answer: s.Tokens, key: s.Tokens, number: Number | None) -> bool:
        if asks(answer) and not asks(key):
            return False
        if number is not None and left_to_do(answer):
            return False
        letters = s.letters_of(key)
        if any(
            token.kind == RUN and not token.text.isupper() and not set(token.text) <= letters | {"e", "i"}
            for token in answer
        ):
            return False  # a word that is no product of the key's letters
        names = {token.text for token in key if token.kind == RUN and token.text.isupper()}
        single = {token.text for token in key if token.kind == LETTER}
        for token in answer:
            if token.kind == RUN and token.text.isupper() and token.text not in names and not set(token.text) <= single:
                return False
        return self._same(loosened(answer, names), loosened(key, names if names else set()))

    def _percent(self, answer: s.Value, key: s.Value) -> bool:
        if answer.unit or key.unit or {answer.sign, key.sign} - {"%", ""}:
            return False
        if answer.sign == key.sign:
            return self._bare(answer.core, key.core)
        a, b = number_in(answer.core), number_in(key.core)
        if a is None or b is None:
            return False
        # without its sign, a number above 1 counts hundredths, one up to 1 is a share
        signed, plain = (a, b) if answer.sign else (b, a)
        return signed.value == plain.value if abs(plain.value) > 1 else signed.value == 100 * plain.value

    def _degrees(self, answer: s.Value, key: s.Value) -> bool:
        other = key if answer.sign == "°" else answer
        if answer.sign == key.sign:
            return self._bare(answer.core, key.core)
        radians = other.unit is not None and other.unit.dimension == "angle"
        if other.sign or (other.unit and not radians):
            return False
        if radians or _PI[:2] in {token[:2] for token in other.core}:
            half_turn = (*other.core, _TIMES, Token(NUMBER, "180"), _OVER, _PI)
            return self._same(half_turn, key.core) if other is answer else self._same(answer.core, half_turn)
        return self._bare(answer.core, key.core)

    def _bare(self, answer: s.Tokens, key: s.Tokens) -> bool:
        return self.values(s.Value(answer), s.Value(key))

    # -- several values

    def _items(self, answer: s.Items, key: s.Items) -> bool:
        if answer.kind == "cup" or key.kind == "cup":
            return self._union(answer, key)
        words = any(isinstance(part, s.Words) for part in (*answer.parts, *key.parts))
        if words and "or" in (answer.kind, key.kind) and answer.kind != key.kind:
            return False
        names = [names_of(answer.parts), names_of(key.parts)]
        if all(names):
            return self._by_name(answer, key, *names)
        if names[1] and len(set(names[1])) > 1:  # x = 1, y = 2: values alone must come in that order
            return (
                names[0] is None
                and answer.kind != "or"
                and self._in_order(answer.parts, [part.value for part in key.parts])
            )
        if names[0] and len(set(names[0])) > 1:
            ordered = names[0] == sorted(names[0]) and answer.kind != "or"
            return ordered and self._in_order([part.value for part in answer.parts], key.parts)
        parts = [
            [part.value if found else part for part in one.parts]
            for one, found in zip((answer, key), names, strict=True)
        ]
        if key.kind == "{":  # in a set, what comes twice is there once
            parts = [self._once(one) for one in parts]
        return self._match(*parts)

    def _once(self, parts: Sequence[s.Shape]) -> list[s.Shape]:
        return list({part.text: part for part in parts}.values())

    def _by_name(self, answer: s.Items, key: s.Items, names: list[str], wanted: list[str]) -> bool:
        if len(set(wanted)) == 1 or len(set(names)) == 1:
            return set(names) == set(wanted) and self._match(
                [part.value for part in answer.parts], [part.value for part in key.parts]
            )
        if (
            sorted(names) != sorted(wanted)
            or (answer.kind == "or") != (key.kind == "or")
            or len(set(wanted)) < len(wanted)
        ):
            return False
        values = {name: part.value for name, part in zip(names, answer.parts, strict=True)}
        return all(self.meets(values[name], part.value) for name, part in zip(wanted, key.parts, strict=True))

    def _union(self, answer: s.Items, key: s.Items) -> bool:
        return answer.kind == key.kind and self._match(answer.parts, key.parts)

    def _both_signs(self, answer: s.Value, key: Sequence[s.Shape]) -> bool:
        found, names = both_signs(answer), names_of(key)
        if found is None or (names and len(set(names)) > 1):
            return False
        return self._match(found, [part.value if names else part for part in key])

    def _match(self, answer: Sequence[s.Shape], key: Sequence[s.Shape]) -> bool:
        """Every part of the one is a part of the other, in any order."""
        answer, key = ([part for whole in parts for part in both_signs(whole) or [whole]] for parts in (answer, key))
        if len(answer) != len(key) or len(key) > MOST_ITEMS:
            return False
        left = list(key)
        for part in answer:
            found = next((other for other in left if self.meets(part, other)), None)
            if found is None:
                return False
            left.remove(found)
        return True

    def _in_order(self, answer: Sequence[s.Shape], key: Sequence[s.Shape]) -> bool:
        return len(answer) == len(key) and all(self.meets(a, k) for a, k in zip(answer, key, strict=True))

    def _ordered(self, answer: s.Row | s.Range, key: s.Row | s.Range) -> bool:
        if isinstance(answer, s.Row) and isinstance(key, s.Row):
            return answer.brackets == key.brackets and self._in_order(answer.parts, key.parts)
        ranges = [s.as_range(side) if isinstance(side, s.Row) else side for side in (answer, key)]
        if None in ranges:
            return False
        a, b = ranges
        if a.name is not None and b.name is not None and a.name != b.name:
            return False
        return self._bound(a.low, b.low, a.open_low, b.open_low) and self._bound(
            a.high, b.high, a.open_high, b.open_high
        )

    def _bound(self, a: s.Value | None, b: s.Value | None, a_open: bool, b_open: bool) -> bool:
        if a is None or b is None:
            return a is None and b is None
        return a_open == b_open and self.meets(a, b)

    def _comparison(self, answer: s.Comparison, key: s.Comparison) -> bool:
        if answer.relation != key.relation:
            return False
        return self._curve((answer.left, answer.right), (key.left, key.right), key.relation != "ne")

    def _grid(self, answer: s.Shape, key: s.Shape) -> bool:
        if isinstance(answer, s.Grid) and isinstance(key, s.Grid):
            return len(answer.rows) == len(key.rows) and all(map(self._in_order, answer.rows, key.rows))
        grid, row = (answer, key) if isinstance(answer, s.Grid) else (key, answer)
        if not isinstance(row, s.Row) or row.brackets != "()" or len(grid.rows[0]) != 1:
            return False
        column = [cells[0] for cells in grid.rows]
        return self._in_order(column, row.parts) if grid is answer else self._in_order(row.parts, column)

    # -- ratios and times

    def _ratio(self, answer: s.Shape, key: s.Shape) -> bool:
        if isinstance(answer, s.Clock) and isinstance(key, s.Clock):
            said = [[int(part) for part in clock.parts] for clock in (answer, key)]
            return said[0] == said[1] and (not key.half or answer.half == key.half)
        if isinstance(key, s.Clock):
            return False
        a, b = ratio_parts(answer), ratio_parts(key)
        if a is None or b is None:
            return False
        if len(a) == len(b):
            return all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True))
        if {len(a), len(b)} == {1, 2}:
            return a[0] / (a[1] if len(a) == 2 else 1) == b[0] / (b[1] if len(b) == 2 else 1)
        return False

    # -- equations and names

    def _equation(self, answer: s.Shape, key: s.Shape) -> bool:
        sides = [sides_of(answer), sides_of(key)]
        if None in sides:
            return False
        if isinstance(key, s.Named):  # solved: only of a curve y = f(x) is the equation itself another way to write it
            letters = s.letters_of(key.name) | letters_in(key.value)
            if letters != {"x", "y"} or len(key.name) != 1:
                return False
        return self._curve(sides[0], sides[1], False)

    def _named(self, answer: s.Shape, key: s.Shape) -> bool:
        if isinstance(answer, s.Named) and (answer.further or answer.label):
            unsolved = isinstance(key, s.Named) and canonical(answer.name) != canonical(key.name)
            value = key.value if isinstance(key, s.Named) and not unsolved else key
            return not unsolved and not refers_to_itself(answer) and self._sides((answer.value, *answer.further), value)
        if isinstance(key, s.Named) and key.further:
            return self.meets(answer, s.Named(key.name, key.further[-1], text=key.text))
        if isinstance(answer, s.Named) and isinstance(key, s.Named):
            tuples = [shape_of(side.name) for side in (answer, key)]
            if all(isinstance(side, s.Row) for side in tuples):
                return self._by_tuple(answer, key)
            if canonical(answer.name) == canonical(key.name):
                return not refers_to_itself(answer) and self.meets(answer.value, key.value)
            return canonical(answer.name) == key.value.text and answer.value.text == canonical(
                key.name
            )  # a = b for b = a
        if isinstance(key, s.Named):
            names = shape_of(key.name)
            if isinstance(names, s.Row):
                return self.meets(answer, told_apart(names, key.value)) if isinstance(key.value, s.Row) else False
            return self.meets(answer, key.value)
        names = shape_of(answer.name)
        if isinstance(names, s.Row):  # (x, y) = (1, 2)
            if not isinstance(answer.value, s.Row):
                return False
            if isinstance(key, s.Items) and names_of(key.parts):
                told = told_apart(names, answer.value)
                return told is not None and self.meets(told, key)
            said = [part.text for part in names.parts]
            return said == sorted(said) and self.meets(answer.value, key)
        return not refers_to_itself(answer) and self.meets(answer.value, key)

    def _by_tuple(self, answer: s.Named, key: s.Named) -> bool:
        told = [told_apart(shape_of(side.name), side.value) for side in (answer, key)]
        return None not in told and self.meets(*told)

    # -- approximations

    def _rounded(self, answer: s.Shape, key: s.Shape) -> bool:
        if isinstance(key, s.Rounded):
            if isinstance(answer, s.Rounded):
                return self.meets(answer.exact, key.exact) and self.meets(answer.rounded, key.rounded)
            return self.meets(answer, key.exact)
        number = number_in(answer.rounded.core)
        if number is None or answer.rounded.sign or not isinstance(answer.exact, s.Value):
            # x ≈ 3.14: the letter only names it
            named = isinstance(answer.exact, s.Value) and s.is_name(answer.exact.core)
            return named and self.meets(answer.rounded, key)
        if s.is_name(answer.exact.core):
            return self.meets(answer.rounded, key)
        told = key.value if isinstance(key, s.Named) else key
        if not isinstance(told, s.Value) or not self._near(
            answer.exact.core, number.value, Fraction(10) ** -(number.places or 0) / 2
        ):
            return False
        wanted = number_in(told.core)
        return self.meets(answer.exact, key) or (
            wanted is not None and wanted.places is not None and wanted.value == number.value
        )
