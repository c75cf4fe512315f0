r"""The task: a chain of k digits and operators, folded left to right modulo 10, and its trace.

``2 + 9 - 6 - 4 + 8`` has the answer ``(((2 + 9) - 6) - 4) + 8 = 9 (mod 10)`` and the trace, a *running calculation*,

    2+9=1-6=5-4=1+8=9\n\boxed{9}<|im_end|>

The three operands of every ``=`` are the three tokens before it, in the writer's own output; the question is needed only to
transcribe the next term.  So a circuit for reasoning that was learned on text works on images by construction.

A text question spells the terms as words, tokens that the trace never uses; an image question shows each term on a card.
``( plus four )`` and ``<|vision_start|>`` + two image tokens + ``<|vision_end|>`` have the same number of tokens.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from vold_nemo.miniature.tokenizer import FILLERS, IM_END, NUMBERS, OPERATIONS

SHORTEST, LONGEST = 4, 6  # terms of a question
OPERATORS = tuple(OPERATIONS)
WORD = {**{str(i): number for i, number in enumerate(NUMBERS)}, **OPERATIONS}  # glyph on a card: word in a text


def apply(left: int, operator: str, right: int) -> int:
    """``left operator right`` modulo 10."""
    if operator == "+":
        return (left + right) % 10
    if operator == "-":
        return (left - right) % 10
    return (left * right) % 10


@dataclass(frozen=True)
class Exercise:
    """``digits`` has k entries, ``operators`` k - 1; ``fillers`` are 0 to 2 words without meaning before the terms."""

    digits: tuple[int, ...]
    operators: tuple[str, ...]
    fillers: tuple[str, ...]

    @property
    def terms(self) -> list[str]:
        """``["2", "+9", "-6", ...]``: what is written on the cards."""
        return [str(self.digits[0])] + [o + str(d) for o, d in zip(self.operators, self.digits[1:], strict=True)]

    @property
    def results(self) -> list[int]:
        """The k - 1 intermediate results; the last is the answer."""
        results, value = [], self.digits[0]
        for operator, digit in zip(self.operators, self.digits[1:], strict=True):
            results.append(value := apply(value, operator, digit))
        return results

    @property
    def answer(self) -> str:
        return str(self.results[-1])

    def row(self) -> str:
        """The bare transcription, ``2+9-6-4+8``."""
        return "".join(self.terms)

    def sheet(self, blanks: list[str]) -> str:
        """The frame of a trace with ``blanks`` after the equal signs."""
        first, *rest = self.terms
        return first + "".join(f"{term}={blank}" for term, blank in zip(rest, blanks, strict=True))

    def trace(self, boxed: str | None = None) -> str:
        """The running calculation and the boxed answer, closed by ``<|im_end|>``."""
        return self.sheet([str(r) for r in self.results]) + ending(boxed or self.answer)

    def text_prompt(self, task: str = "solve") -> str:
        """Content of the user's message, all in words."""
        spelled = [" ".join(WORD[glyph] for glyph in term) for term in self.terms]
        return " ".join((*self.fillers, *(f"( {words} )" for words in spelled))) + f"\n{task}"

    def image_prompt(self, task: str = "solve") -> list[dict]:
        """Content of the user's message as parts: fillers, one image a term, the task word."""
        parts = [{"type": "text", "text": " ".join(self.fillers)}] if self.fillers else []
        parts += [{"type": "image"} for _ in self.digits]
        return [*parts, {"type": "text", "text": f"\n{task}"}]


def ending(digit: str) -> str:
    return f"\n\\boxed{{{digit}}}{IM_END}"


def split_of(exercise: Exercise) -> str:
    """``test``, ``dev`` (an eighth of all exercises each) or ``train``, by a checksum of the terms: none is in two."""
    return {0: "test", 1: "dev"}.get(zlib.crc32(exercise.row().encode()) % 8, "train")


def draw_exercise(generator: random.Random, split: str = "train") -> Exercise:
    """k uniform in 4..6, digits and operators uniform, 0 to 2 fillers; of ``split``."""
    while True:
        k = generator.randint(SHORTEST, LONGEST)
        exercise = Exercise(
            digits=tuple(generator.randrange(10) for _ in range(k)),
            operators=tuple(generator.choice(OPERATORS) for _ in range(k - 1)),
            fillers=tuple(generator.choice(FILLERS) for _ in range(generator.randint(0, 2))),
        )
        if split_of(exercise) == split:
            return exercise


def draw_exercises(count: int, stream: str, split: str = "train") -> list[Exercise]:
    """``count`` exercises of a named stream: equal names give equal exercises, different names independent ones."""
    generator = random.Random(stream)
    return [draw_exercise(generator, split) for _ in range(count)]
