"""Where in a response the answer stands: one place for every benchmark, in bounded time.

Looked for in this order, and the first that is there decides:

    field       <answer> ... </answer>, We-Math's "<Answer>: ...", DynaMath's JSON key "short answer"
    box         the last complete \\boxed{}
    announced   the last "the answer is ...", "Answer: ...", "option B is correct"
    alone       the whole response, where it is nothing but an answer
    closing     the last sentence

Thinking parts are no part of a response.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from vold_nemo.rewards.boxed import last_box, outside_thinking

LOOKED_AT = 20_000  # characters from the end in which an announcement is looked for
AFTER = 300  # characters of an announcement
_TAG = re.compile(r"<answer>\s*:?(.*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_SHORT = re.compile(r'"short[ _]answer"\s*:\s*("(?:[^"\\]|\\.)*"|[^,}\n]+)', re.IGNORECASE)
# "(the) (final) answer (to this) is", "Answer:", "correct option:"; a verb or a colon must follow within a few words.
_ANNOUNCED = re.compile(
    r"\b(?:answers?|option|choice|solution|(?:correct|right|valid)\s+(?:options|choices|figures))\b"
    r"(?!\s+(?:choices|options|letter(?!\s+is\b|\s?:))\b)[^.\n:=?]{0,60}?"
    r"(?:\b(?:is|are|be)\b(?:\s+(?:therefore|thus|hence|then|simply|clearly|indeed|approximately|about|given by))?"
    r"(?:[ \t]*:)?|[:：]|\s(?==))|答案(?:是|为|：|:)?",
    re.IGNORECASE,
)
_BARE = re.compile(r"\A[\s*_#$]*(?:the\s+)?(?:final\s+|correct\s+)?answer[\s*_]*\n?(?=[(\w$\\*])", re.IGNORECASE)
_NOT = re.compile(r"[\s*_]*(?:not|n't|neither|never|incorrect|wrong|unclear|unknown)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?。])(?<!\d\.)(?<!\b[A-Za-z]\.)\s+|\n+")


@dataclass(frozen=True)
class Span:
    """``text`` of the answer as it was written, and the ``place`` it was found in; None where there is none."""

    text: str
    place: str  # field | box | announced | alone | closing


def visible(response: str) -> str:
    return outside_thinking(response).strip()


def stated(response: str) -> Span | None:
    """The answer in a field, or in the last box: what needs no reading."""
    text = visible(response)
    found = [match[1].strip() for match in _TAG.finditer(text[-LOOKED_AT:])]
    if found and found[-1]:
        inner = last_box(found[-1])
        return Span((inner if inner is not None else found[-1]).strip(), "field")
    if shorts := _SHORT.findall(text[-LOOKED_AT:]):
        return Span(_unquoted(shorts[-1]), "field")
    box = last_box(text)
    return Span(box.strip(), "box") if box is not None and box.strip() else None


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)).strip()
    except ValueError:  # \( and other escapes that JSON does not know
        return value.strip().strip('"').strip()


def announcements(response: str) -> list[tuple[int, str]]:
    """(place, what follows) for each announcement in the order of the text; denied ones are left out."""
    text = visible(response)[-LOOKED_AT:]
    found = []
    for match in _ANNOUNCED.finditer(text):
        after = text[match.end() : match.end() + AFTER]
        if not _NOT.match(after) and not re.search(r"\bnot\b", match[0], re.IGNORECASE) and after.strip():
            found.append((match.start(), after))
    if not found and (bare := _BARE.match(text)):
        found.append((0, text[bare.end() : bare.end() + AFTER]))
    return found


def closing(response: str) -> str:
    """The last sentence, without the marks of Markdown around it."""
    for sentence in reversed(_SENTENCE.split(visible(response)[-LOOKED_AT:])):
        if re.search(r"[\w\\]", sentence):
            return sentence.strip().strip("*_# ")
    return ""


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, or the end of the line (a display formula's lines count as one)."""
    text = text.lstrip(" \t\n*_:#")
    for open_, close in (("\\[", "\\]"), ("$$", "$$"), ("\\(", "\\)")):
        if text.startswith(open_) and (end := text.find(close, 2)) > 0:
            return text[2:end].strip()
    return _SENTENCE.split(text, maxsplit=1)[0].strip().strip("*_ ")
