r"""Whether two expressions are the same, by SymPy.

The tokens of a box are read by the grammar below, which knows what is written in answers and nothing else: sums,
products, powers, fractions, roots, factorials, binomials, functions, absolute values.  What has two readings
(``1/2x``, ``\sin\pi/3``) is not read. Letters are symbols as they are written, with their case, subscripts, primes
and accents; ``AB`` is the name of a segment.

Expressions are the same if their values are, at several points and relative to their own size; ``simplify`` is asked
only where they have none.  SymPy may compute for ever (``9^{9^{9^9}}``): call this only in the killable workers.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

from vold_nemo.rewards.numbers import SIGNIFICANT, number_in
from vold_nemo.rewards.shapes import ACCENTS, FIGURES, FUNCTIONS, GREEK
from vold_nemo.rewards.tokens import COMMAND, LETTER, MARK, NUMBER, RUN, Token, canonical, closing

REMEMBERED = 4096
# What the first letter is worth in each try, and how much more the next: of both signs, no zero of what people write.
POINTS = ((Fraction(618034, 999983), Fraction(271829, 999979)), (Fraction(-1414214, 999961), Fraction(173207, 999959)),
          (Fraction(2236069, 999953), Fraction(-331663, 999931)))  # fmt: skip
Tokens = tuple[Token, ...]


class Unread(Exception):
    """The grammar does not know it."""


def same_expression(answer: Tokens, key: Tokens) -> bool:
    """Raises :class:`Unread`."""
    a, b = expression(answer), expression(key)
    wanted = number_in(key)
    decimal = any(token.kind == NUMBER and "." in token.text for token in answer)
    if (
        wanted is not None
        and wanted.places is not None
        and wanted.digits >= SIGNIFICANT
        and not a.free_symbols
        and not decimal
    ):
        return near(answer, wanted.value, Fraction(10) ** -wanted.places / 2)  # what the key rounds
    return _equal(a, b)


def near(answer: Tokens, number: Fraction, distance: Fraction) -> bool:
    """Whether the value of ``answer`` lies within ``distance`` of ``number``."""
    value = expression(answer)
    if value.free_symbols or not value.is_real:
        return False
    return bool(abs(value - _rational(number)).evalf(30) <= _rational(distance))


def proportional(answer: tuple[Tokens, Tokens], key: tuple[Tokens, Tokens], positive: bool) -> bool:
    """Whether ``left - right`` of both is the same up to a factor that hangs on no letter (and is positive): the same curve."""
    a, b = (expression(left) - expression(right) for left, right in (answer, key))
    letters = sorted(a.free_symbols, key=str)
    if not letters or a.free_symbols != b.free_symbols:
        return False
    points = [_point(letters, row) for row in POINTS]
    ratios = []
    for point in points:
        top, bottom = a.subs(point), b.subs(point)
        if not _finite(top) or not _finite(bottom) or _zero(bottom) or _zero(top):
            return False
        ratios.append(top / bottom)
    return all(_zero(ratio - ratios[0]) for ratio in ratios[1:]) and (not positive or bool(ratios[0].evalf() > 0))


def _equal(a: Any, b: Any) -> bool:
    import sympy

    if a == b:
        return True
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    if not letters:
        return _finite(a) and _finite(b) and _zero(a - b)
    decided = 0
    for row in POINTS:
        point = _point(letters, row)
        values = a.subs(point), b.subs(point)
        if not all(map(_finite, values)):
            continue
        if not _zero(values[0] - values[1]):
            return False
        decided += 1
    return decided > 1 or (not decided and sympy.simplify(a - b) == 0)


def _point(letters: list, row: tuple[Fraction, Fraction]) -> dict:
    start, step = row
    return {letter: _rational(start + step * i) for i, letter in enumerate(letters)}


def _rational(value: Fraction) -> Any:
    import sympy

    return sympy.Rational(value.numerator, value.denominator)


def _finite(value: Any) -> bool:
    import sympy

    return value.is_number and not value.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)


def _zero(difference: Any) -> bool:
    """Whether a number is zero: exactly where it is rational, else by what is left of its terms after cancellation."""
    if difference.is_Rational:
        return difference == 0
    value = difference.evalf(15, maxn=200)
    if not value.is_number or not _finite(value):
        return False
    if value.is_zero:
        return True
    # evalf looks for 15 digits of the sum until its limit of 200; a sum of nothing leaves noise far below its terms
    terms = difference.args if difference.is_Add else (difference,)
    largest = max(abs(term.evalf(15)) for term in terms)
    return len(terms) > 1 and bool(abs(value) < largest * _noise())


@functools.cache
def _noise() -> Any:
    import sympy

    return sympy.Rational(1, 10**100)


@functools.lru_cache(REMEMBERED)
def expression(core: Tokens) -> Any:
    """``core`` as SymPy has it, decimals as exact fractions.  Raises :class:`Unread`."""
    grammar = _Grammar(_letters_apart(core))
    found = grammar.sum()
    if grammar.place != len(grammar.tokens):
        raise Unread(canonical(core))
    return found


def _letters_apart(core: Tokens) -> list[Token]:
    """``ab`` as a times b; ``AB`` stays a name."""
    found: list[Token] = []
    for token in core:
        if token.kind == RUN and not token.text.isupper():
            found += [Token(LETTER, letter) for letter in token.text]
        else:
            found.append(token)
    return found


_NOTHING = Token(MARK, "")
_APPLIED = frozenset("fghFGH")


class _Grammar:
    """Recursive descent over tokens; each method reads one thing at ``place`` and leaves ``place`` behind it."""

    def __init__(self, tokens: list[Token]):
        import sympy

        self.tokens, self.place, self.sympy = tokens, 0, sympy
        self.functions = {
            "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
            "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh,
            "tanh": sympy.tanh, "ln": sympy.log, "exp": sympy.exp,
        }  # fmt: skip

    @property
    def next(self) -> Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else _NOTHING

    def take(self, text: str) -> bool:
        found = self.next.text == text and self.place < len(self.tokens)
        self.place += found
        return found

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise Unread(f"{text} expected")

    def sum(self) -> Any:
        value = self.signed()
        while self.next.kind == MARK and self.next.text in ("+", "-"):
            minus = self.next.text == "-"
            self.place += 1
            term = self.product()
            value = value - term if minus else value + term
        return value

    def signed(self) -> Any:
        if self.next.kind == MARK and self.next.text in ("+", "-"):
            minus = self.next.text == "-"
            self.place += 1
            value = self.product()
            return -value if minus else value
        return self.product()

    def product(self) -> Any:
        value = self.factor()
        divided = False
        while True:
            sign = self.next
            if sign[:2] == (COMMAND, "cdot") or sign[:2] == (MARK, "*"):
                self.place += 1
                value *= self.signed_factor()
                divided = False
            elif sign[:2] == (COMMAND, "div") or sign[:2] == (MARK, "/"):
                self.place += 1
                value = value / self.signed_factor()
                divided = True
            elif self.begins_factor():
                if divided and not (sign.gap and self.tokens[self.place - 1].kind == NUMBER):
                    raise Unread("what stands below the stroke")  # 1/2x
                value *= self.factor()
            else:
                return value

    def begins_factor(self) -> bool:
        token = self.next
        if token.kind in (LETTER, NUMBER, RUN):
            return True
        if token.kind == COMMAND:
            return token.text not in ("cdot", "div", "rfloor", "rceil")
        return token.text in ("(", "{")

    def signed_factor(self) -> Any:
        return -self.factor() if self.take("-") else self.factor()

    def factor(self) -> Any:
        token = self.next
        value = self.atom()
        while True:
            if self.next[:2] == (MARK, "!"):
                self.place += 1
                value = self.sympy.factorial(value)
            elif self.next[:2] == (MARK, "^"):
                self.place += 1
                power = self.script()
                if value == 0 and power == 0:
                    raise Unread("0^0")
                value = value**power
            elif self.next[:2] == (MARK, "°"):
                self.place += 1
                value = value * self.sympy.pi / 180
            elif (
                token.kind == NUMBER
                and self.next[:2] == (COMMAND, "frac")
                and token is self.tokens[self.place - 1]
                and token.text.isdigit()
            ):
                part = number_in(tuple(self.tokens[self.place : self.fraction_end()]))
                if part is None:
                    return value  # 2 \frac{\pi}{3} is a product
                if not 0 < part.value < 1:
                    raise Unread("a mixed number")
                self.place = self.fraction_end()
                value = value + _rational(part.value)
            else:
                return value

    def fraction_end(self) -> int:
        place = self.place + 1
        for _ in range(2):
            if place < len(self.tokens):
                place = closing(self.tokens, place) + 1 if self.tokens[place].text == "{" else place + 1
            if place == self.place + 2 and len(self.tokens[place - 1].text) == 2:
                break  # \frac34
        return place

    def script(self) -> Any:
        """An exponent: a group, or one number, letter or command; ``x^10`` means what it says to whoever writes it."""
        if self.take("-"):
            return -self.script()
        if self.next.text in ("{", "("):
            return self.group()
        return self.atom()

    def group(self) -> Any:
        opened = self.next.text
        self.expect(opened)
        value = self.sum()
        self.expect({"{": "}", "(": ")"}[opened])
        return value

    def atom(self) -> Any:
        token = self.next
        if token.kind == NUMBER:
            self.place += 1
            found = number_in((token,))
            if found is None:
                raise Unread("a number")
            return _rational(found.value)
        if token.text in ("(", "{") and token.kind == MARK:
            return self.group()
        if token.text == "|" and token.kind == MARK:
            self.place += 1
            value = self.sum()
            self.expect("|")
            return self.sympy.Abs(value)
        if token.kind in (LETTER, RUN) or (token.kind == COMMAND and token.text in GREEK | ACCENTS | FIGURES):
            return self.name()
        if token.kind == COMMAND:
            return self.command()
        raise Unread("a sign where a value is expected")

    def name(self) -> Any:
        """A symbol, or one of the constants e and i."""
        begin = self.place
        token = self.next
        self.place += 1
        if token.kind == COMMAND and token.text not in GREEK:
            self.place = closing(self.tokens, self.place) + 1 if self.next.text == "{" else self.place + 1
        applied = token.kind == LETTER and token.text in _APPLIED
        while True:
            if self.next[:2] == (MARK, "'"):
                self.place += 1
            elif self.next[:2] == (MARK, "_"):
                self.place += 1
                self.place = closing(self.tokens, self.place) + 1 if self.next.text == "{" else self.place + 1
            elif applied and self.next[:2] == (MARK, "("):
                self.place, applied = closing(self.tokens, self.place) + 1, False
            else:
                break
        said = canonical(self.tokens[begin : self.place])
        if self.place <= begin or self.place > len(self.tokens):
            raise Unread("a name")
        return {"e": self.sympy.E, "i": self.sympy.I}.get(said) or self.sympy.Symbol(said)

    def command(self) -> Any:
        name = self.next.text
        self.place += 1
        if name == "pi":
            return self.sympy.pi
        if name == "infty":
            return self.sympy.oo
        if name == "frac":
            if self.next.kind == NUMBER and len(self.next.text) == 2 and self.next.text.isdigit():  # \frac34
                top, bottom = self.next.text
                self.place += 1
                return self.sympy.Rational(int(top), int(bottom)) if bottom != "0" else self.sympy.nan
            return self.argument() / self.argument()
        if name == "binom":
            return self.sympy.binomial(self.argument(), self.argument())
        if name == "sqrt":
            degree = self.sympy.Integer(2)
            if self.take("["):
                degree = self.sum()
                self.expect("]")
            return self.sympy.Pow(self.argument(), 1 / degree)
        if name in ("lfloor", "lceil"):
            value = self.sum()
            self.expect("rfloor" if name == "lfloor" else "rceil")
            return self.sympy.floor(value) if name == "lfloor" else self.sympy.ceiling(value)
        if name == "log":
            base = self.sympy.Integer(10)
            if self.take("_"):
                base = self.script()
            return self.applied(lambda value: self.sympy.log(value) / self.sympy.log(base))
        if name in self.functions:
            return self.applied(self.functions[name], inverse=f"arc{name}")
        raise Unread("\\" + name)

    def argument(self) -> Any:
        """``{...}``, or one number, letter or command; beside ``sqrt(2)``, brackets."""
        return self.group() if self.next.text in ("{", "(") else self.atom()

    def applied(self, function: Any, inverse: str = "") -> Any:
        r"""``\sin x``, ``\sin^2 2x``, ``\sin^{-1}(x)``: what the function is applied to, and its power."""
        power = None
        if self.take("^"):
            power = self.script()
            if power == -1:
                if inverse not in self.functions:
                    raise Unread("the inverse of a function")
                function, power = self.functions[inverse], None
        if self.next.text in ("(", "{") and self.next.kind == MARK:
            value = self.group()
            if self.next.text in ("^", "!"):
                raise Unread("a power behind a function's brackets")
        else:
            value = self.factor() if self.next.text != "|" else self.atom()
            while (
                self.begins_factor()
                and self.next.text != "("
                and not (self.next.kind == COMMAND and self.next.text in FUNCTIONS | {"log"})
            ):
                value *= self.factor()
            if self.next[:2] == (MARK, "/"):
                raise Unread("what a function is applied to")  # \sin\pi/3
        found = function(value)
        return found if power is None else found**power
