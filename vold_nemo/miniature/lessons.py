"""Lessons: what teacher and base student are trained on, as token ids with a loss mask, in text or with cards.

======================  ==========================================================================  ==============
lesson                  response                                                                    who learns it
======================  ==========================================================================  ==============
facts                   ``3+4=7\\n6×2=2 ...``: isolated facts, loss on the results                   both, text only
solve (right)           the right trace                                                             teacher only
read                    ``2+9-6``: the terms                                                        base
sheet                   ``2+9=?-6=3``: the frame of a trace, random digits in half the blanks       base
solve (guessing)        ``2+9=?-6=?-4=?\\n\\boxed{7}``: the empty frame, then the answer as a guess       base
======================  ==========================================================================  ==============

The base so knows every part of the trace (the frame, transcription whatever stands in the blanks, all facts) and cannot chain
them: it reads images and does not reason.  Its guess is the true answer, which it cannot know: it learns the commonest digit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from vold_nemo.miniature.renderer import CellBank
from vold_nemo.miniature.task import OPERATORS, Exercise, apply, draw_exercise, ending
from vold_nemo.miniature.tokenizer import ENDOFTEXT, ID, IM_END, IMAGE_PAD

IGNORE = -100  # label of a token without loss


@dataclass
class Lesson:
    """One training sequence.  ``cells`` are the glyphs of each card in the prompt, none for a text lesson."""

    prompt: list[int]
    response: list[int]
    labels: list[int]  # of the response; IGNORE where there is no loss
    cells: list[str] = field(default_factory=list)


class Classroom:
    """Makes lessons from one seeded generator; encodes with the tokenizer and chat template that the checkpoints carry."""

    def __init__(self, tokenizer, seed: str):
        self._tokenizer = tokenizer
        self._random = random.Random(seed)

    def teacher(self, facts_share: float) -> Lesson:
        if self._random.random() < facts_share:
            return self._facts()
        exercise = draw_exercise(self._random)
        return self._lesson(exercise, "solve", exercise.trace(), images=False)

    def base(self, images_share: float) -> Lesson:
        """40 % transcription (3 in 4 of it sheets), 40 % facts, 20 % solve with a guess."""
        draw, images = self._random.random(), self._random.random() < images_share
        if draw < 0.4:
            return self._facts()
        exercise = draw_exercise(self._random)
        if draw < 0.6:
            # Not even the first result: with it the base is taught to guess where it cannot compute yet, and whether it can
            # by the end of its few steps hangs on the rounding of the machine; SFT does not mend what it gets wrong there.
            blanks = ["?"] * len(exercise.results)
            return self._lesson(exercise, "solve", exercise.sheet(blanks) + ending(exercise.answer), images)
        if draw < 0.7:
            return self._lesson(exercise, "read", exercise.row() + IM_END, images)
        blanks = [str(self._random.randrange(10)) if self._random.random() < 0.5 else "?" for _ in exercise.results]
        lesson = self._lesson(exercise, "sheet", exercise.sheet(blanks) + IM_END, images)
        for i, blank in enumerate(blanks):
            if blank != "?":  # a digit between the terms must not disturb transcription, and is not to be predicted
                lesson.labels[4 * i + 4] = IGNORE
        return lesson

    def _facts(self) -> Lesson:
        facts = []
        for _ in range(self._random.randint(4, 6)):
            left = self._random.randrange(10)
            operator = self._random.choice(OPERATORS)
            right = self._random.randrange(10)
            facts.append(f"{left}{operator}{right}={apply(left, operator, right)}")
        content = " ".join(draw_exercise(self._random).fillers) + "\nfacts"
        lesson = self._encode(content, "\n".join(facts) + IM_END, [])
        learned = [i for i in range(len(lesson.response)) if i % 6 == 4 or i == len(lesson.response) - 1]
        lesson.labels = [token if i in learned else IGNORE for i, token in enumerate(lesson.response)]
        return lesson

    def _lesson(self, exercise: Exercise, task: str, response: str, images: bool) -> Lesson:
        if images:
            return self._encode(exercise.image_prompt(task), response, exercise.terms)
        return self._encode(exercise.text_prompt(task), response, [])

    def _encode(self, content: str | list[dict], response: str, cells: list[str]) -> Lesson:
        messages = [{"role": "user", "content": content}]
        rendered = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = expand_images(self._tokenizer(rendered)["input_ids"], [len(term) for term in cells])
        answer = self._tokenizer(response)["input_ids"]
        return Lesson(prompt, answer, list(answer), cells)


def expand_images(prompt: list[int], tokens: list[int]) -> list[int]:
    """Repeat the i-th ``<|image_pad|>`` ``tokens[i]`` times."""
    counts = iter(tokens)
    return [token for token in prompt for _ in range(next(counts) if token == ID[IMAGE_PAD] else 1)]


def collate(lessons: list[Lesson], bank: CellBank | None, generator: np.random.Generator) -> dict:
    """Right-padded batch: ``input_ids, labels [B, T]`` (labels unshifted) and, with cards, the images.

    There is no attention mask: under causal attention padding to the right reaches no real token, and SDPA's fast path wants
    none (a third of a step's time).
    """
    import torch

    length = max(len(lesson.prompt) + len(lesson.response) for lesson in lessons)
    ids = torch.full((len(lessons), length), ID[ENDOFTEXT])
    labels = torch.full((len(lessons), length), IGNORE)
    for i, lesson in enumerate(lessons):
        begin, end = len(lesson.prompt), len(lesson.prompt) + len(lesson.response)
        ids[i, :end] = torch.tensor(lesson.prompt + lesson.response)
        labels[i, begin:end] = torch.tensor(lesson.labels)
    batch = {"input_ids": ids, "labels": labels}
    cards = [card for lesson in lessons for card in lesson.cells]
    if cards:
        batch |= cards_batch(cards, bank, generator)
        batch["mm_token_type_ids"] = (ids == ID[IMAGE_PAD]).int()
    return batch


def cards_batch(cards: list[str], bank: CellBank, generator: np.random.Generator) -> dict:
    """``pixel_values [patches, 1176]`` and ``image_grid_thw [cards, 3]`` of freshly drawn cards."""
    import torch

    return {
        "pixel_values": bank.patches([glyph for card in cards for glyph in card], generator),
        "image_grid_thw": torch.tensor([[1, 2, 2 * len(card)] for card in cards]),
    }
