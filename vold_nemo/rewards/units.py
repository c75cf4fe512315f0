"""Units and things that are counted: what may follow a number without making it another one.

A word that is not here makes a box unreadable: ``3 million`` is not 3, nor is ``3 is wrong``.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

# dimension: names of one unit = its size; names are singular, "s" and "es" are taken off before the look-up.
_SIZES: dict[str, dict[str, Fraction | int]] = {
    "length": {
        "mm millimeter millimetre": Fraction(1, 1000), "cm centimeter centimetre": Fraction(1, 100),
        "dm decimeter": Fraction(1, 10),
        "m meter metre": 1, "km kilometer kilometre": 1000, "nm nanometer": Fraction(1, 10**9),
        "μm micrometer": Fraction(1, 10**6),
        "in inch inche": Fraction(254, 10000), "ft foot feet": Fraction(3048, 10000), "yd yard": Fraction(9144, 10000),
        "mi mile": Fraction(1609344, 1000),
    },
    "mass": {
        "mg milligram": Fraction(1, 10**6), "g gram gm": Fraction(1, 1000), "kg kilogram kilo": 1, "ton tonne": 1000,
        "lb pound": Fraction(45359237, 10**8), "oz ounce": Fraction(45359237, 16 * 10**8),
    },
    "time": {
        "ms millisecond": Fraction(1, 1000), "s sec second": 1, "min minute": 60, "h hr hour": 3600,
        "day": 86400, "week": 604800,
        "month": 2629746, "yr year": 31556952, "decade": 315569520, "century": 3155695200,
    },
    "volume": {
        "ml milliliter millilitre": Fraction(1, 1000), "l liter litre": 1, "gal gallon": Fraction(3785411784, 10**9),
        "quart": Fraction(946352946, 10**9), "pint": Fraction(473176473, 10**9),
    },
    "area": {"acre": Fraction(40468564224, 10**7), "hectare": 10000},
    "speed": {"mph": Fraction(1609344, 3600000), "kmh kph kmph": Fraction(1000, 3600), "knot": Fraction(1852, 3600)},
    "money": {"dollar usd buck": 1}, "cents": {"cent": 1}, "euro": {"euro eur": 1}, "rupee": {"rupee": 1}, "yuan": {"yuan": 1},
    "angle": {"rad radian": 1}, "force": {"n newton": 1}, "energy": {"j joule": 1, "kj kilojoule": 1000},
    "power": {"w watt": 1, "kw kilowatt": 1000}, "charge": {"c coulomb": 1}, "current": {"a ampere amp": 1},
    "voltage": {"v volt": 1}, "resistance": {"ohm": 1}, "frequency": {"hz hertz": 1}, "amount": {"mol mole": 1},
    "pressure": {"pa pascal": 1, "kpa kilopascal": 1000, "atm": 101325}, "temperature": {"k kelvin": 1},
    "digital": {"bit": 1, "byte": 8},
}  # fmt: skip
_UNITS = {
    name: (dimension, Fraction(size))
    for dimension, names in _SIZES.items()
    for group, size in names.items()
    for name in group.split()
}
COUNTED = frozenset((
    "unit", "apple", "orange", "banana", "pear", "student", "people", "person", "child", "children", "boy", "girl", "man",
    "men", "woman", "women", "way", "time", "integer", "number", "solution", "digit", "point", "game", "match", "ticket",
    "book", "page", "pen", "pencil", "marble", "ball", "coin", "card", "car", "bus", "bike", "animal", "cow", "horse",
    "sheep", "chicken", "duck", "dog", "cat", "fish", "bird", "egg", "flower", "tree", "bottle", "box", "bag", "cup",
    "glass", "plate", "piece", "slice", "cake", "cookie", "pizza", "candy", "sandwich", "shirt", "dress", "shoe", "toy",
    "block", "tile", "side", "edge", "vertex", "vertice", "face", "diagonal", "term", "factor", "divisor", "row", "column",
    "team", "player", "teacher", "friend", "member", "house", "room", "chair", "table", "seat", "stamp", "sticker", "bead",
    "letter", "word", "question", "problem", "test", "arrangement", "permutation", "combination", "subset", "path", "route",
    "outcome", "root", "pound", "worker", "step", "lap", "trip", "stop", "floor", "class", "classroom", "guest", "crayon",
    "balloon",
))  # fmt: skip
_ONE_LETTER = frozenset("mgshlLNJWCAVK")
_CAPITALS = frozenset(("Hz", "mL", "kW", "kJ", "Pa", "kPa", "USD", "EUR", "MPH"))
_POWER = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_PHRASE = re.compile(
    r"(?:(square|sq|cubic|cu) )?([a-zμ]+)(?:\^(-?[1-4])| (squared|cubed))?"
    r"(?:(?:/| per )(?:(square|sq) )?([a-z]+)(?:\^([23]))?)?"
)


class Unit(NamedTuple):
    """``size`` in the dimension's own unit; things that are counted have their name for a dimension, "unit" has none."""

    dimension: str
    size: Fraction


def unit_of(phrase: str) -> Unit | None:
    """The unit that ``phrase`` names (``square meters``, ``m/s^2``, ``km per hour``, ``apples``); None for other words."""
    phrase = phrase.strip().replace("sq. ", "sq ")
    if not all(_as_written(word) for word in re.findall(r"[A-Za-zμ]+", phrase)):
        return None
    found = _PHRASE.fullmatch(phrase.lower())
    if found is None:
        return None
    before, name, power, after, under_before, under, under_power = found.groups()
    upper = _named(name, int(power or _POWER.get(before or after or "", 1)))
    if upper is None or under is None:
        return upper
    lower = _named(under, int(under_power or _POWER.get(under_before or "", 1)))
    return Unit(f"{upper.dimension}/{lower.dimension}", upper.size / lower.size) if lower is not None else None


def _as_written(word: str) -> bool:
    """Case tells units apart: 7 M is no 7 m, and 250 k no 250 K."""
    if len(word) == 1:
        return word in _ONE_LETTER
    return word.islower() or word in _CAPITALS or (len(word) > 3 and word[1:].islower())


def _named(name: str, power: int) -> Unit | None:
    for singular in (name, name.removesuffix("s"), name.removesuffix("es")):
        if singular in _UNITS:
            dimension, size = _UNITS[singular]
            if dimension == "length" and power == 3:
                return Unit("volume", 1000 * size**3)
            return Unit(
                "area" if dimension == "length" and power == 2 else f"{dimension}{power if power != 1 else ''}",
                size**power,
            )
        if singular in COUNTED:
            return (
                Unit("" if singular == "unit" else singular, Fraction(1)) if power == 1 or singular == "unit" else None
            )
    return None


def share(answer: Unit, key: Unit) -> Fraction | None:
    """By what a number of ``answer`` is multiplied to be one of ``key``; None for units of different kinds."""
    if "" in (answer.dimension, key.dimension) and answer.dimension not in ("cents",):
        return Fraction(1)
    same = {"speed": "length/time"}
    if same.get(answer.dimension, answer.dimension) != same.get(key.dimension, key.dimension):
        return None
    return answer.size / key.size
