r"""Mathematical equality: ``\boxed{1/2}`` is ``0.5``.

What a box says is decided before anything is computed (:mod:`vold_nemo.rewards.reading`), and so is which forms may
stand for which (:mod:`vold_nemo.rewards.meeting`): where nobody could say by reading the box, the answer is wrong.
What is left are pairs of expressions, which SymPy compares (:mod:`vold_nemo.rewards.expressions`).

Two halves.  :func:`screen` decides what needs no SymPy, in bounded time, wherever it is called: no box, another form,
the letters of the key, two plain numbers.  On a mathematics dataset that is most answers.  :func:`compare` judges the
rest.  SymPy can compute for ever (``9^{9^{9^9}}``), and a C loop inside it hears no signal: call it only in the
killable workers of :mod:`vold_nemo.rewards.pool`.
"""

from __future__ import annotations

import functools
import re

from vold_nemo.rewards.boxed import extract
from vold_nemo.rewards.meeting import Meeting
from vold_nemo.rewards.reading import read
from vold_nemo.rewards.shapes import Opaque
from vold_nemo.rewards.verdict import Comparison, Verdict

LONGEST = 1_000  # characters of an answer that is worth reading
REMEMBERED = 4096  # verdicts that a worker keeps: keys come back with every rollout of a group
WARM_UP = (
    r"\frac{1}{2}\pi", "x^2+1", r"\sqrt{3}+1", r"2^{n+1}-1", r"\frac{n(n+1)}{2}", r"2\pi", r"\sin x", r"\log_2 3", "x(x+1)",
    r"1.2\pi", r"\binom{5}{2}", "2i+1", r"\frac{2\sqrt{3}}{3}", r"(x+1)^2", r"|x|", r"e^{x}", r"\ln 2", "5!",
)  # fmt: skip
_INTEGER = re.compile(r"[+-]?[0-9]{1,100}")


class _NeedsWorker(Exception):
    """Only SymPy can say."""


def _ask(*_: object) -> bool:
    raise _NeedsWorker


_HERE = Meeting(_ask, _ask, _ask)


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
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(truth):
        right = int(answer) == int(truth)
        return Verdict.of(right, answer, "equivalent" if right else "differs")
    if len(truth) > LONGEST:
        return Verdict.of(False, answer, f"the key is longer than {LONGEST} characters")
    try:
        return _verdict(_HERE, answer, truth)
    except _NeedsWorker:
        return Comparison("math", answer, truth, extracted=answer)


@functools.lru_cache(REMEMBERED)
def compare(answer: str, truth: str) -> Verdict:
    """1 if ``answer`` says what ``truth`` says."""
    from vold_nemo.rewards.expressions import Unread, near, proportional, same_expression

    try:
        return _verdict(Meeting(same_expression, proportional, near), answer, truth)
    except (Unread, RecursionError):
        return Verdict.of(False, answer, "cannot be parsed")


def _verdict(meeting: Meeting, answer: str, truth: str) -> Verdict:
    said, key = read(answer), read(truth)
    if meeting.meets(said, key):
        return Verdict.of(True, answer, "equivalent")
    return Verdict.of(False, answer, f"not read: {said.why}" if isinstance(said, Opaque) else "differs")


def warm_up() -> None:
    """Import SymPy and use it once: its first powers, roots and functions cost half a second, charged to no answer."""
    for form in WARM_UP:
        compare(form, form + "+1")
        compare(form, f"1+{form}-1")
