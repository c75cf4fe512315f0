"""A benchmark's question: a prompt, and what its scorer and its published scores must know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vold_nemo.data.prompts import Prompt

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_IMAGE = re.compile(r"<image\s*(\d*)>")


@dataclass
class Question(Prompt):
    """``answer`` is the truth as the scorer compares it: a letter for ``choice``, letters for ``letters``, else a text.

    ``domain`` is the subject; ``kind`` the question type in the benchmark's own words; ``skill`` is perception or reasoning
    where the benchmark says so.  ``group`` and ``member`` name what is scored together (We-Math's steps, DynaMath's variants).
    """

    scorer: str = "choice"  # vold_nemo/evaluation/scorers
    options: tuple[str, ...] = ()  # texts of A, B, ...; empty where the options stand in the image
    letters: str = ""  # the letters that may be answered; empty = as many as there are options
    kind: str | None = None
    skill: str | None = None
    group: str | None = None
    member: str | None = None
    precision: int | None = None  # decimals to which a number is rounded before it is compared
    tolerance: float | None = None  # or the largest absolute difference

    def facts(self) -> dict[str, str]:
        """What a row of answers keeps besides question and truth, for accuracies by subject, type and skill."""
        known = {
            "subject": self.domain,
            "type": self.kind,
            "skill": self.skill,
            "group": self.group,
            "member": self.member,
        }
        return {name: value for name, value in known.items() if value is not None}

    def allowed(self) -> str:
        return self.letters or LETTERS[: len(self.options)]


def lettered(options: tuple[str, ...] | list[str], form: str = "{letter}. {text}") -> str:
    """The options, one a line."""
    return "\n".join(form.format(letter=letter, text=text) for letter, text in zip(LETTERS, options, strict=False))


def with_images(text: str, images: list[Any]) -> tuple[list[dict], list[Any]]:
    """The user's turn and its images in order: each stands at its first ``<image 3>`` or ``<image>``, the others before.

    An image may be named again ("in <image 1>"): the repetition stays in the text, since one image part is one image.
    """
    parts: list[dict] = []
    used: list[int] = []
    at = 0
    for mark in _IMAGE.finditer(text):
        number = int(mark[1]) - 1 if mark[1] else len(used)
        if number >= len(images) or number in used:
            continue
        parts += [{"type": "text", "text": text[at : mark.start()]}] * (mark.start() > at) + [{"type": "image"}]
        used.append(number)
        at = mark.end()
    parts += [{"type": "text", "text": text[at:]}] * (at < len(text))
    before = [i for i in range(len(images)) if i not in used]
    content = [{"type": "image"}] * len(before) + parts
    return content if images else "".join(part["text"] for part in parts), [images[i] for i in before + used]
