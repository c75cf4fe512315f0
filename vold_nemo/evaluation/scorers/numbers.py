"""Numbers in answers: read from an expression or a sentence, compared after rounding or within a tolerance."""

from __future__ import annotations

import ast
import math
import operator
import re

from vold_nemo.evaluation.scorers.spans import announcements, closing, first_sentence, stated, visible
from vold_nemo.rewards.numeric import number_of
from vold_nemo.rewards.verdict import Verdict

WORDS = {
    word: value
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")
    )
}  # fmt: skip
_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?[$£€]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:\s*(?:×|\\times|\*)\s*10\^\{?[-+−]?\d+\}?|[eE][-+]?\d+)?"
    r"(?:\s?/\s?\d+(?:\.\d+)?)?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\s*(?:\[(\d)\])?\s*(?:\{([^{}]*)\}|(\d))")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.Pow: operator.pow}  # fmt: skip
_VERB = re.compile(
    r".*(?:\b(?:is|are|was|were|be|equals?|approximately|about|gives?|get|has|have|costs?|needs?)\b|=|≈|\\approx)",
    re.DOTALL,
)
LONGEST = 120  # characters of an expression that is computed


def value_of(text: str) -> float | None:
    """The number that the whole of ``text`` is: ``1,234.5 cm``, ``\\frac{\\pi}{3}``, ``2\\sqrt{5}``, ``$3.50``, ``seven``."""
    text = text.strip().strip("*_ ").rstrip(".").strip()
    if text.casefold() in WORDS:
        return float(WORDS[text.casefold()])
    text = re.sub(r"^\\?[$£€]\s*|(?<!\\)\$", "", text)
    text = re.sub(r"^(?:\\approx|≈|~|about\s|approximately\s)\s*", "", text)
    plain = number_of(text)
    if plain is None:  # the end of a calculation
        plain = number_of(text.rpartition("=")[2])
    return plain if plain is not None else _expression(text)


def _expression(text: str) -> float | None:
    if len(text) > LONGEST:
        return None
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|:|!| )", "", text.rpartition("=")[2].rpartition("≈")[2])
    text = re.sub(r"\\approx.*", "", text) if not text.startswith("\\approx") else text.removeprefix("\\approx")
    text = _TEXT.sub("", text)
    for _ in range(3):  # a fraction in a root in a fraction
        text = _ROOT.sub(lambda m: f"(({m[2] or m[3]})**(1/{m[1] or 2}))", text)
        text = _FRACTION.sub(r"((\1)/(\2))", text)
    for sign, meaning in (
        ("\\pi", "π"),
        ("\\cdot", "*"),
        ("\\times", "*"),
        ("×", "*"),
        ("−", "-"),
        ("√", ""),
        ("^", "**"),
        ("{", "("),
        ("}", ")"),
    ):
        text = text.replace(sign, meaning)
    text = re.sub(r"(?<=[\dπ)])\s*(?=[π(])", "*", text)
    text = re.sub(r"(?<=[π)])\s*(?=\d)", "*", text).replace("π", f"({math.pi!r})")
    if not re.fullmatch(r"[\d.()+\-*/\s]+", text) or not re.search(r"\d", text):
        return None
    try:
        value = _compute(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _compute(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return -_compute(node.operand) if isinstance(node.op, ast.USub) else _compute(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](
            _compute(node.left), _compute(node.right)
        )  # floats: a power overflows, it never hangs
    raise ValueError("not arithmetic")


def numbers_in(text: str) -> list[tuple[float, bool]]:
    """(number, whether a percent sign follows) for the numbers of a sentence; names such as ``x1`` hold none."""
    text = text.replace("\\%", "%").replace("\\$", "$").replace("{,}", ",")
    found = []
    for match in _NUMBER.finditer(text):
        if not any(c.isdigit() for c in match[0]):
            continue
        value = number_of(re.sub(r"[$£€]", "", match[0]))
        if value is not None:
            found.append((value, text[match.end() :].lstrip().startswith("%")))
    if not found:
        words = [WORDS[word] for word in re.findall(r"[a-z]+", text.casefold()) if word in WORDS]
        found = [(float(words[0]), False)] if len(words) == 1 else []
    return found


def answered_numbers(response: str) -> tuple[list[tuple[float, bool]], str]:
    """The readings of the number that is answered (several where a percentage may be one), and where it stands.

    Empty, with the reason, where no number is answered or the sentence holds several and none of them is said to be it.
    """
    stating = stated(response)
    if stating is not None:
        return _reading(stating.text, stating.place)
    text = visible(response)
    if len(text) <= 60 and "\n" not in text:
        found = _reading(text, "alone")
        if found[0]:
            return found
    for _, after in reversed(announcements(response)):
        found = _reading(first_sentence(after), "announced", first=True)
        if found[0]:
            return found
    return _reading(closing(response), "closing")


def _reading(text: str, place: str, first: bool = False) -> tuple[list[tuple[float, bool]], str]:
    percent = bool(re.search(r"\\?%\s*\$?\.?\s*\Z", text.strip()))
    whole = value_of(re.sub(r"\\?%", "", text) if percent else text)
    if whole is not None:
        return [(whole, percent)], place
    found = numbers_in(text)
    if len(found) > 1:
        said = _VERB.match(text)
        after = numbers_in(text[said.end() :]) if said else []
        found = after[:1] or (found[:1] if first else found)
    if len(found) == 1:
        return found, place
    return [], "several numbers" if found else "no number announced"


def close(value: float, wanted: float, precision: int | None, tolerance: float | None) -> bool:
    """|value - wanted| within half a unit of the last decimal, or within ``tolerance``; equal (1e-9) without either."""
    if tolerance is not None:
        bound = tolerance
    elif precision is not None:
        bound = 0.5 * 10.0**-precision
    else:
        bound = 0.0
    return abs(value - wanted) <= bound * (1 + 1e-9) + 1e-9 * max(1.0, abs(wanted))


def score_number(response: str, truth: str, precision: int | None, tolerance: float | None) -> Verdict:
    """1 if the number that is answered is ``truth`` after rounding.  ``60 %`` is 60 as well as 0.6."""
    wanted = value_of(truth)
    if wanted is None:
        return Verdict.of(False, None, "the truth is not a number")
    found, place = answered_numbers(response)
    if not found:
        return Verdict.of(False, None, place)
    (value, percent) = found[0]
    right = close(value, wanted, precision, tolerance) or (percent and close(value / 100, wanted, precision, tolerance))
    return Verdict.of(right, f"{value:g}{'%' if percent else ''}", ("equal, " if right else "differs, ") + place)
