"""Multiple choice: a letter, in a box or announced as the answer."""

from __future__ import annotations

import re

from vold_nemo.rewards.boxed import extract, outside_thinking
from vold_nemo.rewards.verdict import Verdict

LONGEST_BOX = 500  # characters: "(B) twelve apples" is a choice, an essay is not
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boldsymbol)\s*\{([^{}]*)\}")
# B, (B), B., B) 12 cm, [B]: a letter, then the end or something that is neither letter nor digit.
_LETTER = re.compile(r"[\s(\[$]*([A-Za-z])(?![A-Za-z0-9])")
_ANNOUNCED = re.compile(
    r"\b(?:answer|choice|option)\b\s{0,3}(?:is|:)?\s{0,3}[*(\[$]{0,3}([A-Z])(?![A-Za-z0-9])", re.IGNORECASE
)


def letter_of(text: str) -> str | None:
    """The letter that ``text`` begins with, in upper case; None if it begins with a word or a number."""
    found = _LETTER.match(_WRAPPED.sub(r"\1", text.strip()))
    return found.group(1).upper() if found else None


def choice_match(response: str, truth: str) -> Verdict:
    """1 if the letter in the last box, or else the last one announced ("the answer is B"), is the true one."""
    wanted = letter_of(truth)
    if wanted is None:
        return Verdict.of(False, None, "the truth is not a letter")
    box = extract(response)
    if box.answer is not None:
        letter = letter_of(box.answer) if len(box.answer) <= LONGEST_BOX else None
        if letter is None:
            return Verdict.of(False, box.answer, "the box holds no letter")
    else:
        announced = _ANNOUNCED.findall(outside_thinking(response))
        if not announced:
            return Verdict.of(False, None, f"{box.reason}, no letter announced")
        letter = announced[-1].upper()
    return Verdict.of(letter == wanted, letter, "equal" if letter == wanted else "differs")
