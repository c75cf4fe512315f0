r"""The paper's reward: the last ``\boxed{}`` of a response against the truth, letter by letter.

Everything here is one pass over the text with a constant amount of work a character, whatever a model writes: a hundred
thousand braces, NULs, lone surrogates, boxes that never close.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vold_nemo.rewards.verdict import Verdict

OPEN_THINKING, CLOSE_THINKING = "<think>", "</think>"
# An opening box (also after a backslash too many), an escaped character (so that \{ and \} are no braces), or a brace.
_TOKEN = re.compile(r"\\boxed\s*\{|\\(?!\\boxed\s{0,9}\{).|[{}]", re.DOTALL)


@dataclass(frozen=True)
class Extraction:
    answer: str | None
    reason: str  # why there is no answer; empty if there is one


def outside_thinking(text: str) -> str:
    """What follows the last finished thought, up to an unfinished one.

    Templates may open ``<think>`` in the prompt, so a ``</think>`` needs no opening mark; a thought without a closing
    mark answers nothing.
    """
    return text.rpartition(CLOSE_THINKING)[2].partition(OPEN_THINKING)[0]


def last_box(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}``, nested braces and all; None without one.

    The last one is the one that closes last, so of boxes inside each other the outermost complete one counts.
    """
    start = text.find("\\boxed")
    if start < 0:
        return None
    opened: list[int | None] = []  # a stack of open braces: where a box's content starts, None for any other brace
    found = None
    for token in _TOKEN.finditer(text, start):
        mark = token.group()
        if mark == "}":
            content = opened.pop() if opened else None
            if content is not None:
                found = (content, token.start())
        elif mark[-1] == "{" and mark != "\\{":
            opened.append(None if mark == "{" else token.end())
    return text[slice(*found)] if found else None


def extract(response: str) -> Extraction:
    """The answer of ``response``: the last complete box outside the thinking parts, stripped of outer blanks."""
    answered = outside_thinking(response)
    content = last_box(answered)
    if content is not None:
        return Extraction(content.strip(), "")
    if "\\boxed" in answered:
        return Extraction(None, "the box never closes")
    if "\\boxed" in response:
        return Extraction(None, "a box in the thinking part only")
    return Extraction(None, "no box")


def exact_match(response: str, truth: str) -> Verdict:
    """1 if the boxed answer equals ``truth``; outer blanks aside, nothing is normalised (paper, section 3)."""
    found = extract(response)
    if found.answer is None:
        return Verdict.of(False, None, found.reason)
    right = found.answer == truth.strip()
    return Verdict.of(right, found.answer, "equal" if right else "differs" if found.answer else "the box is empty")
