"""Verifiers by name.  A data field chooses one for each row, ``reward.verifier`` for the rows that do not say.

    boxed                      the paper's: last box, letter by letter
    math                       last box says what the key says (equivalence.py)
    choice                     multiple choice: a letter
    numeric                    last box as a number, relative tolerance 1e-4; numeric(0.02) sets another
    judge                      math, and what it cannot read a language model (reward.judge); judge(NAME): another rule
    package.module:function    the user's own: function(response, truth) -> Verdict, or a number in [0, 1], or a bool
    0.8*math+0.2*boxed         weighted sum of the above

A weighted reward is for experiments: the paper's mask switches the KL off by 1 - r, and is exact for r in {0, 1}.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from vold_nemo.config import ConfigError
from vold_nemo.rewards.boxed import exact_match
from vold_nemo.rewards.choice import choice_match
from vold_nemo.rewards.equivalence import compare, screen, warm_up
from vold_nemo.rewards.numeric import DEFAULT_TOLERANCE, numeric_match
from vold_nemo.rewards.own import PATH, called, imported
from vold_nemo.rewards.verdict import Comparison, Verdict, shortened

_WEIGHTED = re.compile(r"(\d+(?:\.\d+)?)\*(.+)")
_NUMERIC = re.compile(r"numeric\(([0-9.eE+-]+)\)")
_JUDGE = re.compile(r"judge(?:\((.+)\))?")


class Sum(NamedTuple):
    """What a weighted verifier reads: for each term its weight, its name, and what it reads itself."""

    terms: tuple[tuple[float, str, Verdict | Comparison], ...]


Reading = Verdict | Comparison | Sum


@dataclass(frozen=True)
class Verifier:
    """``read(response, truth)`` takes bounded time and may be called anywhere; what it leaves open as a :class:`Comparison`,
    ``compute(text, truth)`` answers.  That may hang: only ever call it in a killable process.

    ``warm_up`` imports what ``compute`` needs, which is charged to no answer; ``computing`` names the verifiers that this one
    asks: itself, or terms of a sum.  ``judged``: what it cannot read, a language model is asked about (``judge.py``).
    """

    name: str
    read: Callable[[str, str], Reading]
    compute: Callable[[str, str], Verdict] | None = None
    warm_up: Callable[[], object] | None = None
    computing: frozenset[str] = frozenset()
    judged: bool = False

    def judge(self, response: str, truth: str) -> Verdict:
        """Both, in this process: for verifiers that are trusted not to hang."""
        return settle(self.read(response, truth), lambda asked: resolve(asked.verifier).compute(asked.text, asked.truth))


def comparisons_in(reading: Reading) -> Iterator[Comparison]:
    if isinstance(reading, Comparison):
        yield reading
    elif isinstance(reading, Sum):
        yield from (part for _, _, part in reading.terms if isinstance(part, Comparison))


def settle(reading: Reading, answer: Callable[[Comparison], Verdict]) -> Verdict:
    """The verdict of ``reading`` once its comparisons have theirs."""
    if isinstance(reading, Comparison):
        verdict = answer(reading)
        # a time-out has not seen what was read before it
        return verdict if verdict.extracted is not None else replace(verdict, extracted=shortened(reading.extracted))
    if isinstance(reading, Sum):
        verdicts = [(weight, name, settle(part, answer)) for weight, name, part in reading.terms]
        extracted = next((verdict.extracted for *_, verdict in verdicts if verdict.extracted is not None), None)
        reasons = "; ".join(f"{name}: {verdict.reason}" for _, name, verdict in verdicts)
        trouble = next((verdict.trouble for *_, verdict in verdicts if verdict.trouble is not None), None)
        reward = sum(weight * verdict.reward for weight, _, verdict in verdicts)
        return Verdict(round(reward, 9), extracted, reasons, trouble)
    return reading


SIMPLE = {
    "boxed": Verifier("boxed", exact_match),
    "choice": Verifier("choice", choice_match),
    "numeric": Verifier("numeric", functools.partial(numeric_match, tolerance=DEFAULT_TOLERANCE)),
    "math": Verifier("math", screen, compare, warm_up, frozenset(["math"])),
}
BUILT_IN = (*SIMPLE, "judge")


@functools.cache
def resolve(name: str) -> Verifier:
    """The verifier called ``name``.  A user's own is imported when it first computes (see :func:`check`).

    Raises:
        ConfigError: an unknown name, or weights that do not sum to 1.
    """
    parts = re.split(r"\+(?=\d+(?:\.\d+)?\*)", name)
    if len(parts) > 1 or _WEIGHTED.fullmatch(name):
        return _weighted(name, parts)
    if name in SIMPLE:
        return SIMPLE[name]
    if found := _NUMERIC.fullmatch(name):
        tolerance = _tolerance(found.group(1), name)
        return Verifier(name, functools.partial(numeric_match, tolerance=tolerance))
    if found := _JUDGE.fullmatch(name):
        rule = resolve(found.group(1) or "math")
        if rule.judged:
            raise _unknown(name)
        return replace(rule, name=name, judged=True)
    if PATH.fullmatch(name):
        return Verifier(
            name, functools.partial(Comparison, name), functools.partial(called, name),
            functools.partial(imported, name), frozenset([name]),
        )  # fmt: skip
    raise _unknown(name)


def check(name: str) -> Verifier:
    """:func:`resolve`, and import what it names, so that a typing error is found before the first answer.

    Raises:
        ConfigError: also an import path that does not lead to a function.
    """
    verifier = resolve(name)
    for own in filter(PATH.fullmatch, verifier.computing):
        imported(own)
    return verifier


def _unknown(name: str) -> ConfigError:
    allowed = f"{' | '.join(SIMPLE)} | numeric(TOLERANCE) | judge | package.module:function | WEIGHT*NAME+WEIGHT*NAME"
    return ConfigError("reward.verifier", name, allowed, "correct it, here or in the data's verifier column")


def _tolerance(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _unknown(name) from None
    if not 0 <= value < 1:
        raise ConfigError("reward.verifier", name, "a relative tolerance in [0, 1)", "correct the tolerance")
    return value


def _weighted(name: str, parts: list[str]) -> Verifier:
    terms: list[tuple[float, Verifier]] = []
    for part in parts:
        found = _WEIGHTED.fullmatch(part)
        if found is None:
            raise _unknown(name)
        terms.append((float(found.group(1)), resolve(found.group(2))))
        if terms[-1][1].judged:
            raise ConfigError("reward.verifier", name, "judge alone", "name it without weights, judge or judge(NAME)")
    total = sum(weight for weight, _ in terms)
    if abs(total - 1) > 1e-6:
        raise ConfigError("reward.verifier", name, "weights that sum to 1", f"they sum to {total:g}: correct them")

    def read(response: str, truth: str) -> Sum:
        return Sum(tuple((weight, verifier.name, verifier.read(response, truth)) for weight, verifier in terms))

    return Verifier(name, read, computing=frozenset().union(*(verifier.computing for _, verifier in terms)))
