r"""What a box or a key says, before anybody computes.

:func:`read` decides it from the tokens alone.  What it cannot place (an arrow, ``\pmod``, an unknown word beside a
number, a sequence with dots, an unfinished command) is :class:`Opaque`.
"""

from __future__ import annotations

import functools
import re

from vold_nemo.rewards.shapes import (
    OPEN_TASKS,
    Chain,
    Choice,
    Clock,
    Comparison,
    Equation,
    Grid,
    Items,
    Named,
    Opaque,
    Range,
    Ratio,
    Rounded,
    Row,
    Shape,
    Tokens,
    Value,
    Words,
    infinite,
    is_name,
    letters_of,
)
from vold_nemo.rewards.tokens import (
    CLOSING,
    COMMAND,
    LETTER,
    MARK,
    NUMBER,
    OPENING,
    RUN,
    STRANGE,
    WORD,
    Token,
    canonical,
    closing,
    split,
    tokens_of,
)
from vold_nemo.rewards.written_values import value_of

DEEPEST = 24  # brackets in each other, bars and roots in one text: reading follows them down
RELATIONS = frozenset(("<", ">", "le", "ge", "ne", "in"))
_ARTICLES = frozenset(("a", "an", "the"))
_JOINING = frozenset((",", ";", "and", "or"))
_MATRIX = re.compile(r"\\begin\{([pbBvV]?matrix|array)\}(?:\{[clr|]+\})?(.*)\\end\{\1\}", re.DOTALL)
_LETTER_CHOICE = re.compile(r"\(\s*([A-Z])\s*\)\s*|\[([A-Z])\]\s*|([A-Z])[).:]\s*|([A-Z])(?=\s)")


@functools.lru_cache(4096)
def read(text: str) -> Shape:
    """The shape of a box or a key."""
    found = tokens_of(text)
    if _depth(found) > DEEPEST:
        return Opaque("brackets in brackets in brackets", text=canonical(found))
    if "\\begin" in text:
        return _grid(text)
    choice = _choice(text)
    return choice if choice is not None else shape_of(found)


def _depth(found: Tokens) -> int:
    depth = deepest = 0
    for token in found:
        depth += (token.text in OPENING) - (token.text in CLOSING)
        deepest = max(deepest, depth)
    return max(deepest, sum(token.text in ("|", "sqrt") for token in found))


def shape_of(found: Tokens) -> Shape:
    text = canonical(found)
    if not found:
        return Opaque("nothing is said", text=text)
    if any(token.kind == STRANGE for token in found):
        return Opaque("a sign that is not read", text=text)
    found = _outward(found)
    if not _balanced(found):
        return Opaque("brackets that do not close", text=text)
    if found[0][:2] == (COMMAND, "approx") and len(found) > 1:
        return shape_of(found[1:])
    if _thousands(found):
        return Value((Token(NUMBER, "".join(token.text for token in found if token.text != ",")),), text=text)
    words = _words(found)
    joined = words is None or any(word in ("and", "or") for word in words)
    if words is not None and not joined:
        return Words(words, text=text)
    grouped = _grouped(found)
    if grouped is not None:
        found = grouped
    parts, between = split(found, _JOINING)
    if between:
        return _items(parts, between, text)
    if any(token[:2] == (COMMAND, "approx") for token in found):
        return _rounded(found, text)
    parts, between = split(found, RELATIONS)
    if between:
        return _relation(parts, between, text)
    parts, between = split(found, frozenset("="))
    if between:
        return _equation(parts, text)
    parts, between = split(found, frozenset(("cup",)))
    if between:
        read_parts = tuple(shape_of(part) for part in parts)
        bad = next((part for part in read_parts if not isinstance(part, Row | Items | Range)), None)
        return Items(read_parts, "cup", text=text) if bad is None else Opaque("a union of no sets", text=text)
    parts, between = split(found, frozenset(":"))
    if not between:
        parts, between = (
            split(found, frozenset(("to",)))
            if any(token[:2] in ((WORD, "to"), (RUN, "to")) for token in found)
            else ([], [])
        )
    if between:
        return _ratio(parts, text)
    return _bracketed(found, text) or value_of(found, text)


def _balanced(found: Tokens) -> bool:
    depth = 0
    for token in found:
        if token.kind == MARK:
            depth += (token.text in OPENING) - (token.text in CLOSING)
            if depth < 0:
                return False
    return depth == 0


def _outward(found: Tokens) -> Tokens:
    """``]1,2[`` as ``(1,2)``: brackets that look outward leave the end out."""
    if len(found) < 5 or found[0].kind != MARK or found[-1].kind != MARK:
        return found
    first, last = found[0].text, found[-1].text
    if (first == "]" and last in "[])") or (first in "[(" and last == "["):
        return (Token(MARK, "(" if first == "]" else first), *found[1:-1], Token(MARK, ")" if last == "[" else last))
    return found


def _grouped(found: Tokens) -> Tokens | None:
    r"""``\$1,234.50`` and ``1,234 \text{ km}`` with their number in one token; None where commas may join a list."""
    places = [place for place, token in enumerate(found) if token[:2] == (MARK, ",")]
    if not places:
        return None
    begin, end = places[0] - 1, places[-1] + 2
    before, behind = found[: max(begin, 0)], found[end:]
    signed = all(token.text in ("\\$", "-", "+") or token[:2] == (COMMAND, "approx") for token in before)
    if begin < 0 or not signed or any(token.kind == NUMBER for token in behind) or not _thousands(found[begin:end]):
        return None
    if not before and not behind:
        return None
    return (*before, Token(NUMBER, "".join(token.text for token in found[begin:end] if token.text != ",")), *behind)


def _thousands(found: Tokens) -> bool:
    """``1,234,567.8`` without blanks."""
    if len(found) < 3 or len(found) % 2 == 0 or any(token.gap for token in found[1:]):
        return False
    numbers, commas = found[::2], found[1::2]
    return (
        all(token[:2] == (MARK, ",") for token in commas) and all(token.kind == NUMBER for token in numbers)
        and re.fullmatch(r"[1-9]\d{0,2}", numbers[0].text) is not None
        and all(re.fullmatch(r"\d{3}", token.text) for token in numbers[1:-1])
        and re.fullmatch(r"\d{3}(\.\d+)?", numbers[-1].text) is not None
    )  # fmt: skip


def _words(found: Tokens) -> tuple[str, ...] | None:
    """The words of a text that has nothing else, but for one letter alone; articles before them say nothing."""
    if not all(token.kind in (WORD, RUN, LETTER) or token.text in ("-", "'") for token in found):
        return None
    if not any(token.kind in (WORD, RUN) for token in found) or any(
        token.kind == LETTER and not token.prose and token.text not in "aAI" for token in found
    ):
        return None
    kept = [token for token in found if token.kind != MARK]
    if len(kept) > 1 and kept[0].text.lower() in _ARTICLES:
        kept = kept[1:]
    return tuple(token.text for token in kept)


def _choice(text: str) -> Choice | None:
    r"""``(B)``, ``B.``, ``(B) 12 cm``: a letter, marked as one, and at most a plain value behind it."""
    said = (
        re.sub(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1", text.strip())
        .replace("\\ ", " ")
        .strip()
    )
    found = _LETTER_CHOICE.match(said)
    if found is None or (found[4] and not re.match(r"\s", said[found.end() :])):
        return None
    if found[4]:
        return None
    letter, rest = found[1] or found[2] or found[3], said[found.end() :].strip(" .")
    if not rest:
        return Choice(letter, text=letter)
    if rest[0] in "+-*/^_=(<>,':!|&" or rest.startswith(("\\cdot", "\\times")):
        return None
    behind = shape_of(tokens_of(rest))
    plain = isinstance(behind, Value) and all(token.kind not in (LETTER, RUN, WORD) for token in behind.core)
    return Choice(letter, text=canonical(tokens_of(text))) if plain else None


def _items(parts: list[Tokens], between: list[Token], text: str) -> Shape:
    # "2, 3, and 7": the comma before the word joins nothing
    kept = [part for part in parts if part]
    if len(kept) < 2 or not parts[0] or not parts[-1]:
        return Opaque("a list with gaps", text=text)
    joining = {token.text.lower() for token in between}
    if any(not part for part in parts) and not joining & {"and", "or"}:
        return Opaque("a list with gaps", text=text)
    read_parts = [shape_of(part) for part in kept]
    if any(isinstance(part, Opaque) for part in read_parts):
        return Opaque("a list with a part that is not read", text=text)
    kind = "or" if "or" in joining else "and" if "and" in joining else ","
    if kind != "," and all(isinstance(part, Range | Comparison) for part in read_parts):
        if kind == "and":
            return Opaque("conditions that hold together", text=text)
        return Items(tuple(read_parts), "cup", text=text)
    first = read_parts[0]
    if isinstance(first, Named) and not first.label and all(isinstance(part, Value) for part in read_parts[1:]):
        read_parts = [first, *(Named(first.name, part, text=part.text) for part in read_parts[1:])]  # x = 1, 2
    return Items(tuple(read_parts), kind, text=text)


def _rounded(found: Tokens, text: str) -> Shape:
    parts, between = split(found, frozenset(("approx",)))
    if len(between) != 1 or not all(parts):
        return Opaque("several approximations", text=text)
    exact, rounded = shape_of(parts[0]), shape_of(parts[1])
    if isinstance(exact, Named) and not exact.further and not isinstance(exact.value, Opaque):
        exact = exact.value
    if not isinstance(rounded, Value):
        return Opaque("an approximation of no number", text=text)
    return Rounded(exact, rounded, text=text)


def _relation(parts: list[Tokens], between: list[Token], text: str) -> Shape:
    marks = [token.text for token in between]
    if not all(parts) or any(token.text == "=" for part in parts for token in split(part, frozenset("="))[1]):
        return Opaque("a relation among others", text=text)
    if marks == ["in"]:
        inside = shape_of(parts[1])
        return (
            inside
            if is_name(parts[0]) and isinstance(inside, Row | Items)
            else Opaque("a set that is not read", text=text)
        )
    if marks in (["<"], [">"], ["le"], ["ge"], ["ne"]):
        left, right = parts
        if marks[0] in (">", "ge"):
            left, right, marks = right, left, ["<" if marks[0] == ">" else "le"]
        if marks == ["ne"]:
            return Comparison(left, "ne", right, text=text)
        strict = marks == ["<"]
        if is_name(left) and not is_name(right):
            return _range(left, None, right, True, strict, text)
        if is_name(right) and not is_name(left):
            return _range(right, left, None, strict, True, text)
        return Comparison(left, marks[0], right, text=text)
    if len(marks) == 2 and set(marks) in ({"<"}, {"le"}, {"<", "le"}, {">"}, {"ge"}, {">", "ge"}):
        low, name, high = parts
        opened = [mark in "<>" for mark in marks]
        if marks[0] in (">", "ge"):
            low, high, opened = high, low, opened[::-1]
        if is_name(name):
            return _range(name, low, high, opened[0], opened[1], text)
    return Opaque("a chain of relations", text=text)


def _range(name: Tokens, low: Tokens | None, high: Tokens | None, open_low: bool, open_high: bool, text: str) -> Shape:
    bounds = [None if side is None else shape_of(side) for side in (low, high)]
    if not all(bound is None or (isinstance(bound, Value) and not bound.unit) for bound in bounds):
        return Opaque("a bound that is not read", text=text)
    if letters_of(name) & set().union(*(letters_of(bound.core) for bound in bounds if bound is not None)):
        return Opaque("a bound that hangs on itself", text=text)
    values = [None if bound is None or infinite(bound) else bound for bound in bounds]
    return Range(canonical(name), values[0], values[1], open_low, open_high, text=text)


def _equation(parts: list[Tokens], text: str) -> Shape:
    if not all(parts):
        return Opaque("an equation without a side", text=text)
    first, last = parts[0], parts[-1]
    if len(parts) == 2 and is_name(last) and not is_name(first):
        first, parts = last, [last, parts[0]]
    sides = tuple(shape_of(part) for part in parts[1:])
    if is_name(first) or (first[0].text == "(" and isinstance(shape_of(first), Row)):
        if any(isinstance(side, Opaque) for side in sides):
            return Opaque("an equation with a side that is not read", text=text)
        return Named(first, sides[0], sides[1:], text=text)
    if _asks(first) or _quantity(first):
        if isinstance(sides[-1], Opaque):
            return Opaque("an equation with a side that is not read", text=text)
        known = tuple(side for side in sides if not isinstance(side, Opaque))
        return Named(first, known[0], known[1:], label=True, text=text)
    left = shape_of(parts[0])
    if isinstance(left, Opaque) or any(isinstance(side, Opaque) for side in sides):
        return Opaque("an equation with a side that is not read", text=text)
    if len(parts) == 2 and (letters_of(parts[0]) or letters_of(parts[1])):
        return Equation(parts[0], parts[1], text=text)
    return Chain((left, *sides), text=text)


def _asks(found: Tokens) -> bool:
    return any(token.kind in (COMMAND, WORD, RUN) and token.text in OPEN_TASKS for token in found) or (
        found[0].text == "C" and len(found) > 2 and found[1].text == "("
    )


def _quantity(found: Tokens) -> bool:
    """Letters joined by signs, as in ``m + n = 25``: the quantity that was asked for, not an equation to solve."""
    letters = [token for token in found if token.kind in (LETTER, RUN)]
    joined = all(
        token.kind in (LETTER, RUN) or token.text in ("+", "-", "/", "{", "}", "_") or token[:2] in ((COMMAND, "cdot"),
        (COMMAND, "frac"))
        or (token.kind == NUMBER and place and found[place - 1].text == "_")
        for place, token in enumerate(found)
    )  # fmt: skip
    return len(letters) > 1 and joined


def _ratio(parts: list[Tokens], text: str) -> Shape:
    half = ""
    if parts[-1] and parts[-1][-1].kind == WORD and parts[-1][-1].text.lower() in ("am", "pm"):
        half, parts = parts[-1][-1].text.lower(), [*parts[:-1], parts[-1][:-1]]
    if all(len(part) == 1 and part[0].kind == NUMBER for part in parts):
        said = tuple(part[0].text for part in parts)
        if re.fullmatch(r"\d{1,2}", said[0]) and all(re.fullmatch(r"[0-5]\d", part) for part in said[1:]):
            return Clock(said, half, text=text)
    if half or not all(parts):
        return Opaque("a time that is not read", text=text)
    values = tuple(value_of(part, canonical(part)) for part in parts)
    if not all(isinstance(value, Value) and not value.unit and not value.sign for value in values):
        return Opaque("a ratio that is not read", text=text)
    return Ratio(values, text=text)


def _bracketed(found: Tokens, text: str) -> Shape | None:
    first, last = found[0], found[-1]
    if first.kind == MARK and first.text in OPENING and closing(found, 0) == len(found) - 1:
        opened, closed, inner = first.text, last.text, found[1:-1]
    else:
        # P(3,-4): a point with its name
        if (
            first.kind == LETTER
            and first.text.isupper()
            and len(found) > 4
            and found[1].text == "("
            and closing(found, 1) == len(found) - 1
        ):
            row = _bracketed(found[1:], text)
            return row if isinstance(row, Row) else None
        return None
    if opened == "\\{" and closed == "\\}":
        if not inner:
            return Value((Token(COMMAND, "emptyset"),), text="\\emptyset")
        parts, between = split(inner, frozenset(",;"))
        shapes = tuple(shape_of(part) for part in parts)
        return (
            Opaque("a set that is not read", text=text)
            if any(isinstance(part, Opaque) for part in shapes)
            else Items(shapes, "{", text=text)
        )
    parts, between = split(inner, frozenset(",;"))
    if not between:
        return shape_of(inner) if opened == "(" and closed == ")" and inner else None
    if opened == "{" or closed == "}" or not all(parts):
        return Opaque("a list in braces", text=text)
    shapes = tuple(shape_of(part) for part in parts)
    if any(isinstance(part, Opaque) for part in shapes):
        return Opaque("a point that is not read", text=text)
    if len(parts) > 2 and opened + closed not in ("()", "[]"):
        return Opaque("a point in odd brackets", text=text)
    return Row(shapes, opened + closed, text=text)


def _grid(text: str) -> Shape:
    """A matrix by its entries; a column or a row of one is a vector."""
    cleaned = text.strip().replace("\\left", "").replace("\\right", "").strip(" .$")
    cleaned = cleaned.replace("\\\\\\\\", "\\\\").replace("\\\\begin", "\\begin").replace("\\\\end", "\\end")
    label, _, rest = cleaned.partition("=")
    if "\\begin" not in label and is_name(tokens_of(label)):
        cleaned = rest.strip()
    for opened, closed in ("()", "[]"):
        if cleaned.startswith(opened) and cleaned.endswith(closed):
            cleaned = cleaned[1:-1].strip()
    found = _MATRIX.fullmatch(cleaned)
    said = canonical(tokens_of(text))
    if found is None or found[1] in ("vmatrix", "Vmatrix") or "\\begin" in found[2]:
        return Opaque("a table that is not read", text=said)
    rows = tuple(
        tuple(shape_of(tokens_of(cell)) for cell in row.split("&"))
        for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[2])
        if row.strip()
    )
    if (
        not rows
        or len({len(row) for row in rows}) > 1
        or any(not isinstance(cell, Value) for row in rows for cell in row)
    ):
        return Opaque("a table that is not read", text=said)
    return Grid(rows, text=said)
