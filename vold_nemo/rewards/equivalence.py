r"""Mathematical equality by math-verify: ``\boxed{1/2}`` is ``0.5``.

Two halves.  :func:`screen` decides what needs no SymPy, in bounded time, wherever it is called: no box, the letters of the
truth, two plain numbers.  On a mathematics dataset that is most answers.  :func:`compare` judges the rest.  SymPy can compute
for ever (``9^{9^{9^9}}``), and a C loop inside it hears no signal: call it only in the killable workers of
:mod:`vold_nemo.rewards.pool`.  math-verify's own time-outs are off: they use ``signal.alarm`` and swallow the hang as "wrong"
only where the interpreter gets to run; the pool's limit holds always.
"""

from __future__ import annotations

import functools
import logging
import re
from fractions import Fraction

from vold_nemo.rewards.boxed import extract
from vold_nemo.rewards.verdict import Comparison, Verdict

LONGEST = 1_000  # characters of an answer that is worth parsing: the grammar's cost grows faster than the text
REMEMBERED = 4096  # readings and verdicts that a worker keeps: keys come back with every rollout of a group
ROUNDING = 1e-5  # math-verify rounds decimals to 6 places: numbers further apart than this are different to it, too
WARM_UP = (
    r"\frac{1}{2}", "x^2+1", r"\{1,2\}", "(1,2]", "(1,2)", r"[-1,\infty)", r"50\%", r"\sqrt{3}+1", "n=4", r"2^{n+1}-1",
    r"\begin{pmatrix}1\\2\end{pmatrix}", r"3\text{ cm}", r"60^\circ", r"2\pi", "3:4", r"1,\ 2", r"\sin x", r"\log_2 3", "x>3",
    "f(x)=x^2", "x(x+1)", r"1.2\times 10^{3}", r"1<x\le 2", r"\binom{5}{2}", r"(1,2)\cup(3,\infty)", r"1\text{ and }2", "2i+1",
)  # fmt: skip
_DOLLAR = re.compile(r"(?<!\\)\$")
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:(?P<integer>[0-9]{1,100})|\\[dt]?frac\{(?P<top>[0-9]{1,30})\}\{(?P<bottom>[0-9]{1,30})\}"
    r"|(?P<over>[0-9]{1,30})/(?P<under>[0-9]{1,30})|(?P<decimal>[0-9]{1,9}\.[0-9]{0,9}|\.[0-9]{1,9}))"
)


def screen(response: str, truth: str) -> Verdict | Comparison:
    """The verdict where it needs no SymPy; else the comparison of the last box's content with ``truth``."""
    box = extract(response)
    if box.answer is None:
        return Verdict.of(False, None, box.reason)
    answer, truth = box.answer, truth.strip()
    if answer == truth:
        return Verdict.of(True, answer, "equal")
    if not answer:
        return Verdict.of(False, "", "the box is empty")
    if len(answer) > LONGEST:
        return Verdict.of(False, answer, f"longer than {LONGEST} characters")
    if "\x00" in answer or any("\ud800" <= c <= "\udfff" for c in answer):
        return Verdict.of(False, answer, "not text")
    right = _same_number(answer, truth)
    if right is not None:
        return Verdict.of(right, answer, "equivalent" if right else "differs")
    return Comparison("math", answer, truth, extracted=answer)


@functools.lru_cache(REMEMBERED)
def compare(answer: str, truth: str) -> Verdict:
    """1 if math-verify reads ``answer`` and ``truth`` as the same."""
    gold, target = _parse(truth), _parse(answer)
    if not gold:
        return Verdict.of(False, answer, "the truth cannot be parsed")
    if not target:
        return Verdict.of(False, answer, "cannot be parsed")
    if _far_apart(gold[0], target[0]):
        return Verdict.of(False, answer, "differs")

    from math_verify import verify

    # A key "(3, oo)" is met by "x > 3": relations may stand for the sets they describe.
    right = verify(list(gold), list(target), timeout_seconds=None, allow_set_relation_comp=True)
    return Verdict.of(right, answer, "equivalent" if right else "differs")


def _same_number(answer: str, truth: str) -> bool | None:
    """Whether two plain numbers (``7``, ``-3/4``, ``\\frac{3}{4}``, ``0.75``) are the same; None if only SymPy can say."""
    numbers = _number(answer), _number(truth)
    if None in numbers:
        return None
    (a, rounded_a), (b, rounded_b) = numbers
    if a != b and (rounded_a or rounded_b) and abs(a - b) <= ROUNDING:
        return None
    return a == b


def _number(text: str) -> tuple[Fraction, bool] | None:
    """Value, and whether it is written as a decimal."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    top = found["integer"] or found["top"] or found["over"] or found["decimal"]
    bottom = int(found["bottom"] or found["under"] or 1)
    if bottom == 0:
        return None
    return Fraction(found["sign"] + top) / bottom, found["decimal"] is not None


@functools.lru_cache(REMEMBERED)
def _parse(answer: str) -> tuple:
    """math-verify's readings of ``answer``: expressions, then the text itself; empty if there are none.

    Between dollar signs rather than in a box: in a box it reads no percentage.  Dollar signs inside would end it early.
    """
    from math_verify import parse

    from vold_nemo.rewards.grammar import read_in_two_stages

    read_in_two_stages()
    return tuple(parse(f"${_DOLLAR.sub('', answer)}$", parsing_timeout=None))


def _far_apart(gold: object, target: object) -> bool:
    """Whether two expressions have values at one point that no rounding brings together: then nothing can prove them equal.

    math-verify, too, finds them different, but only after ``simplify`` has looked for a proof that 16*sqrt(3) is 16*sqrt(2) or
    ``solve`` has compared n = 4 with n = 5: tens of milliseconds each.  ``y = R`` and ``y = S`` differ where R and S do, if y,
    a letter or f(x), is in neither; beside a plain expression, an equation stands for its right side, as for math-verify.
    Percentages are left to it (it takes 50 % for 50 and for 1/2), and so is whatever takes work to evaluate.
    """
    import sympy
    from sympy.core.function import AppliedUndef

    if not (isinstance(gold, sympy.Basic) and isinstance(target, sympy.Basic)):  # texts that are no mathematics, matrices
        return False
    equations = [isinstance(side, sympy.Eq) for side in (gold, target)]
    if any(equations):
        named = [side.lhs for side, equation in zip((gold, target), equations, strict=True) if equation]
        gold, target = (side.rhs if equation else side for side, equation in zip((gold, target), equations, strict=True))
        if len(set(named)) > 1 or not isinstance(named[0], sympy.Symbol | AppliedUndef):
            return False
        if gold.has(named[0]) or target.has(named[0]):
            return False
    left_alone = (sympy.UnevaluatedExpr, sympy.Integral, sympy.Derivative, sympy.Limit, sympy.Sum, sympy.Product)
    if not all(isinstance(side, sympy.Expr) and not side.is_Symbol and not side.has(*left_alone) for side in (gold, target)):
        return False
    letters = sorted(gold.free_symbols | target.free_symbols, key=str)
    point = {letter: sympy.Float(0.6180339887 + 0.2718281828 * i) for i, letter in enumerate(letters)}
    try:
        a, b = (complex(side.evalf(15, subs=point)) for side in (gold, target))
        return abs(a - b) > max(ROUNDING, 1e-9 * abs(a))  # false for NaN
    except Exception:  # undefined there, infinite, beyond floats: whatever SymPy raises, math-verify is asked
        return False


def warm_up() -> None:
    """Import SymPy and build the parsers: the first use of a form costs up to 600 ms, charged to no answer."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # one line for each unparsed answer
    for form in WARM_UP:
        compare(form, form + "+1")
        compare(form, f"{form} ")
