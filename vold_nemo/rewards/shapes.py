r"""The shapes of what a box or a key says: a value, a list, a point, an interval, an equation, a time, words.

:mod:`vold_nemo.rewards.reading` finds them, :mod:`vold_nemo.rewards.meeting` compares them.  A text that is
:class:`Opaque` is right only where it is the key's own, token by token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vold_nemo.rewards.tokens import COMMAND, LETTER, MARK, RUN, WORD, Token, canonical, closing
from vold_nemo.rewards.units import Unit

Tokens = tuple[Token, ...]
FUNCTIONS = frozenset(
    ["sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp"]
)
GREEK = frozenset((
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "kappa", "lambda", "mu",
    "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi",
    "Sigma", "Phi", "Psi", "Omega", "ell", "hbar",
))  # fmt: skip
ACCENTS = frozenset(
    ["hat", "bar", "vec", "tilde", "overline", "dot", "widetilde", "mathbb", "mathcal", "mathfrak", "overarc"]
)
FIGURES = frozenset(["angle", "triangle", "measuredangle", "square", "odot", "parallel", "perp"])
COMPUTED = FUNCTIONS | frozenset(
    ("frac", "sqrt", "pi", "cdot", "div", "binom", "infty", "lfloor", "rfloor", "lceil", "rceil", "pm")
)
# Computing them is the question: an answer that still has one restates it.
OPEN_TASKS = frozenset(
    ["sum", "prod", "int", "lim", "gcd", "lcm", "max", "min", "det", "bmod", "mod", "ldots", "lfloor", "lceil"]
)


@dataclass(frozen=True)
class Shape:
    text: str = field(default="", kw_only=True)  # the canonical text


@dataclass(frozen=True)
class Opaque(Shape):
    why: str


@dataclass(frozen=True)
class Value(Shape):
    """A number or an expression.  ``sign``: ``%``, ``°``, ``$`` or none."""

    core: Tokens
    unit: Unit | None = None
    sign: str = ""


@dataclass(frozen=True)
class Words(Shape):
    words: tuple[str, ...]


@dataclass(frozen=True)
class Choice(Shape):
    letter: str


@dataclass(frozen=True)
class Clock(Shape):
    """A time of day or a ratio of whole numbers that could be one."""

    parts: tuple[str, ...]
    half: str = ""  # am, pm


@dataclass(frozen=True)
class Ratio(Shape):
    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Based(Shape):
    digits: str
    base: str


@dataclass(frozen=True)
class Items(Shape):
    """``kind``: ``,`` as a list, ``{`` as a set, the joining word ``and`` or ``or``, or ``cup``.  Order says nothing."""

    parts: tuple[Shape, ...]
    kind: str


@dataclass(frozen=True)
class Row(Shape):
    """A point, a vector or an interval: order matters, and so do the brackets."""

    parts: tuple[Shape, ...]
    brackets: str


@dataclass(frozen=True)
class Range(Shape):
    """``low < name <= high``; a bound is None where there is none."""

    name: str | None
    low: Value | None
    high: Value | None
    open_low: bool
    open_high: bool


@dataclass(frozen=True)
class Comparison(Shape):
    left: Tokens
    relation: str  # "<", "le", "ne"
    right: Tokens


@dataclass(frozen=True)
class Named(Shape):
    """``name = value``, and ``further`` sides of a chain, each of which is said to be the value, too."""

    name: Tokens
    value: Shape
    further: tuple[Shape, ...] = ()
    label: bool = False  # the first side asks (``1+2+...+100``) or names a quantity (``a+b``) rather than one letter


@dataclass(frozen=True)
class Equation(Shape):
    left: Tokens
    right: Tokens


@dataclass(frozen=True)
class Chain(Shape):
    """Sides that are all said to be equal, the first of them no name."""

    sides: tuple[Shape, ...]


@dataclass(frozen=True)
class Rounded(Shape):
    exact: Shape
    rounded: Shape


@dataclass(frozen=True)
class Grid(Shape):
    rows: tuple[tuple[Shape, ...], ...]


def as_range(row: Row) -> Range | None:
    """An interval as the inequality that it stands for."""
    if len(row.parts) != 2 or not all(isinstance(part, Value) for part in row.parts) or row.brackets[0] not in "([":
        return None
    low, high = row.parts
    return Range(
        None, None if infinite(low) else low, None if infinite(high) else high,
        row.brackets[0] == "(", row.brackets[1] == ")", text=row.text,
    )  # fmt: skip


def infinite(bound: Value) -> bool:
    return any(token[:2] == (COMMAND, "infty") for token in bound.core) and len(bound.core) <= 2


def is_name(found: Tokens) -> bool:
    r"""Whether it names something: ``x``, ``a_{10}``, ``f(x)``, ``P(A)``, ``m\angle ABC``, ``\text{Area}``, ``AB``."""
    place = named = 0
    while place < len(found):
        token = found[place]
        if token.kind in (LETTER, RUN, WORD) or (
            token.kind == COMMAND and token.text in GREEK | FIGURES | {"pi"} - {"pi"}
        ):
            if token.text in ("e", "i") and token.kind == LETTER and len(found) == 1:
                return False  # constants
            named, place = named + 1, place + 1
        elif token.kind == COMMAND and token.text in ACCENTS and place + 1 < len(found):
            end = closing(found, place + 1) if found[place + 1].text == "{" else place + 1
            named, place = named + 1, (end if end >= 0 else place) + 1
        elif token.text in ("_", "^") and named and place + 1 < len(found):
            end = closing(found, place + 1) if found[place + 1].text == "{" else place + 1
            inside = canonical(found[place + 1 : end + 1])
            if end < 0 or (token.text == "^" and inside != "{ - 1 }"):
                return False
            place = end + 1
        elif token.text == "'" and named:
            place += 1
        elif token.text == "(" and named:
            end = closing(found, place)
            if end < 0:
                return False
            place = end + 1
            if place < len(found) and found[place].text != "'":
                return False
        else:
            return False
    kinds = [token for token in found if token.kind == LETTER]
    plain = [token for token in found if token.kind != MARK]
    # xy = 5 names a product, which is no unknown; m of an angle does
    return bool(named) and (
        len(plain) != len(kinds)
        or len(kinds) == 1
        or "(" in canonical(found)
        or "_" in canonical(found)
        or all(token.text.isupper() for token in kinds)
    )


def letters_of(found: Tokens) -> set[str]:
    """The letters that stand for something unknown, Greek ones too."""
    return {
        token.text for token in found if (token.kind == LETTER and token.text not in ("e", "i")) or token.text in GREEK
    } | {letter for token in found if token.kind in (RUN, WORD) for letter in token.text}
