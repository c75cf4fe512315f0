"""Multiple choice: a letter, in a box or announced as the answer.

A letter counts where it is marked as one (``(B)``, ``B.``, ``B: 12``) or stands alone.  "A triangle", "A is wrong, B"
and "B or C" announce nothing.
"""

from __future__ import annotations

import re

from vold_nemo.rewards.boxed import extract, outside_thinking
from vold_nemo.rewards.verdict import Verdict

LONGEST_BOX = 500  # characters: "(B) twelve apples" is a choice, an essay is not
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|boldsymbol|mbox|boxed)\s*\{([^{}]*)\}")
_SILENT = re.compile(r"\\[,;:! ]|\\(?:quad|left|right|displaystyle)(?![A-Za-z])|(?<!\\)\$|\*\*|~")
_SAID_BEFORE = re.compile(r"(?:the )?(?:correct |final )?(?:answer|option|choice)(?: is)?\s*:?\s*", re.IGNORECASE)
_ALONE = re.compile(r"[A-Za-z]|\{([A-Za-z])\}")
_MARKED = re.compile(r"(?:\(\s*([A-Za-z])\s*\)|\[\s*([A-Za-z])\s*\]|([A-Za-z])[.):])(.*)", re.DOTALL)
# What takes a choice back, or makes another: denials, and a second letter alone (but for the article of "A square").
_TAKES_BACK = re.compile(
    r"(?i:\b(?:not|no|nor|or|neither|wrong|incorrect|false|but|unless|isn|if|then)\b)|\?|\\n(?:ot|eq?)\b|\\(?:to|lor|vee|neg)\b"
)
_OTHER_LETTER = re.compile(r"(?<![A-Za-z\\])(?:[B-J]|A(?!\s+[a-z]))(?![A-Za-z'])")
_ANNOUNCED = re.compile(
    r"\b(?:(?:(?i:answer|choice|option)\s{0,3}(?:(?i:is)\b|:)|(?i:option|choice)(?=\s))\s{0,3}(?:(?i:option|choice)\s)?)"
    r"(?P<open>[*(\[$]{0,4})(?P<letter>[A-Z])(?P<close>[*)\]$]{0,4})(?=(?P<after>.{0,12}))", re.DOTALL
)  # fmt: skip
_ENDS = re.compile(
    r"\s*(?:$|[.!;:\n]|,(?!\s*(?:no|not|or|and|but|[A-Z])\b)|\s(?:because|since|as|for)\b)", re.IGNORECASE
)
_JOINED = re.compile(r"\s*(?:,\s*)?(?:or|and|nor|is|isn|was|not|no)\b|\s*[/?]", re.IGNORECASE)
_OPEN_QUESTION = re.compile(
    r"\b(?:if|whether|not|never|cannot|between|either|neither|unless|suppose|assume)\b|n't\b", re.IGNORECASE
)
_CLAUSE = 120  # characters before an announcement that may deny it


def letter_of(text: str) -> str | None:
    """The letter that ``text`` chooses, in upper case; None if it is a word, a number, or several letters."""
    text = _SILENT.sub(" ", text.strip())
    for _ in range(3):
        text = _WRAPPED.sub(r"\1", text).strip()
    text = text[found.end() :] if (found := _SAID_BEFORE.match(text)) and found.end() > 3 else text
    text = text.rstrip(". ") if len(text.rstrip(". ")) == 1 else text
    if found := _ALONE.fullmatch(text):
        return (found[1] or text).upper()
    found = _MARKED.fullmatch(text)
    if found is None:
        return None
    behind = found[4].strip()
    if behind[:1] in tuple("+-*/^_=(<>!|&,:'") or _TAKES_BACK.search(behind) or _OTHER_LETTER.search(behind):
        return None
    return (found[1] or found[2] or found[3]).upper()


def announced_in(text: str) -> str | None:
    """The letter of the last announcement; None if there is none, or if the last one does not settle on a letter."""
    announcements = list(_ANNOUNCED.finditer(text))
    if not announcements:
        return None
    found = announcements[-1]
    clause = re.split(r"[.;,!?\n]", text[max(0, found.start() - _CLAUSE) : found.start()])[-1]
    after = found["after"]
    if _OPEN_QUESTION.search(clause) or _JOINED.match(after):
        return None
    marked = found["close"][:1] in (")", "]") and bool(found["open"])
    return found["letter"] if marked or _ENDS.match(after) else None


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
        letter = announced_in(outside_thinking(response))
        if letter is None:
            return Verdict.of(False, None, f"{box.reason}, no letter announced")
    return Verdict.of(letter == wanted, letter, "equal" if letter == wanted else "differs")
