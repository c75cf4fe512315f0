"""What a verifier is asked, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

UNREADABLE = ("cannot be parsed", "not text")  # reasons of rules that found an answer and could not read it
RIGHT, WRONG = "right", "wrong"  # reasons of verifiers that give none
KEPT_CHARACTERS = 200  # of an extracted answer: verdicts travel between processes and into logs


@dataclass(frozen=True)
class Verdict:
    """``reward`` in [0, 1] (the paper's is 0 or 1), the answer that was found, and why.

    ``trouble`` is ``"time-out"`` or ``"error"`` where the verifier came to no verdict of its own: the answer is wrong then.
    """

    reward: float
    extracted: str | None
    reason: str
    trouble: str | None = None

    @classmethod
    def of(cls, right: bool, extracted: str | None, reason: str) -> Verdict:
        """1 or 0, with a long answer cut short."""
        return cls(1.0 if right else 0.0, shortened(extracted), reason)


def is_verdict(said: list) -> bool:
    """Whether ``said`` is what a :class:`Verdict` is made of."""
    reward, extracted, reason, trouble = said
    number = isinstance(reward, int | float) and 0 <= reward <= 1
    return number and isinstance(extracted, str | None) and isinstance(reason, str) and trouble in (None, "time-out", "error")


def unread(verdict: Verdict) -> bool:
    """Whether nobody came to a reading of the answer: none was found, it cannot be parsed, or a limit was met.

    The user's own verifiers need not say what they read: theirs is unread only where they met a limit.
    """
    if verdict.trouble is not None or verdict.reason in UNREADABLE:
        return True
    return verdict.extracted is None and verdict.reward == 0 and verdict.reason != WRONG


def shortened(extracted: str | None) -> str | None:
    if extracted is None or len(extracted) <= KEPT_CHARACTERS:
        return extracted
    return extracted[:KEPT_CHARACTERS] + "..."


class Item(NamedTuple):
    """One answer to judge.  ``verifier`` None = the configured one; ``question`` is what a language model is told, if asked."""

    text: str
    truth: str
    verifier: str | None = None
    question: str = ""


class Comparison(NamedTuple):
    """What only a killable process may compute of an answer: whether ``text`` meets ``truth``.

    Equal comparisons have equal verdicts, and are made once.  ``extracted`` is what was read before, if anything.
    """

    verifier: str
    text: str
    truth: str
    extracted: str | None = None
