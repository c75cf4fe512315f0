"""When two questions are the same question: exactly, or by a run of words.

    exact     equal after NFKC, case folding, and without what only sets type: dollar signs, ``\\left``, thin spaces, blanks
              around signs.  Signs stay: x + 1 and x - 1 are two questions.  Images belong to the question.
    n-gram    n words in a row, words being runs of letters and digits; the usual test for contamination, with n = 13

Every prompt is looked up in a table of the evaluation questions, so the work grows with the sum of both, not the product.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vold_nemo.data.messages import IMAGE_MARK
from vold_nemo.data.prompts import Prompt

_TYPESETTING = re.compile(r"\$|\\(?:left|right|displaystyle|limits)(?![a-z])|\\[,;:!()\[\]]|\\ ")
_FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
_SIGNS = re.compile(r"\s*([^\w\s])\s*")
_BLANKS = re.compile(r"\s+")
_WORDS = re.compile(r"\w+")


def question_text(prompt: Prompt) -> str:
    """What the user says; system turns and earlier answers are no part of the question."""
    texts = []
    for message in prompt.messages:
        if message["role"] == "user":
            content = message["content"]
            texts += [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return "\n".join(texts).replace(IMAGE_MARK, " ")


def folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def normalised(text: str) -> str:
    """``text`` as the exact comparison sees it."""
    plain = _FRACTION.sub(r"\\frac", _TYPESETTING.sub("", folded(text)))
    return _BLANKS.sub(" ", _SIGNS.sub(r"\1", plain)).strip(" .?!")


def question_key(prompt: Prompt, text: str | None = None) -> bytes:
    """128 bits of the normalised question and its images; ``text``: :func:`question_text`, if it is known already."""
    plain = normalised(question_text(prompt) if text is None else text)
    digest = hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=16)
    for image in prompt.images:
        digest.update(b"\0image\0" + (image if isinstance(image, bytes) else _content(image)))
    return digest.digest()


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


@dataclass
class EvaluationSet:
    """What the table knows of one evaluation set."""

    questions: int = 0
    short: int = 0  # with fewer than n words: only the exact comparison sees them


@dataclass(frozen=True)
class Match:
    """Why a prompt is left out: ``kind`` is exact or <n>-gram, ``set`` and ``id`` name the evaluation question."""

    kind: str
    set: str
    id: str
    words: str = ""


@dataclass
class EvaluationTable:
    """The questions of all evaluation sets.  Call :meth:`add` for each set, then :meth:`close`, then :meth:`match`.

    Words that no evaluation question has end a run, and a run is looked up by a 64-bit hash of its words' numbers: with 10^8
    runs against 10^7, a false match has a probability of 10^-4.
    """

    ngram: int
    common: int
    sets: dict[str, EvaluationSet] = field(default_factory=dict)
    phrases: int = 0  # runs that stand in more than `common` questions
    _names: list[tuple[str, str]] = field(default_factory=list)  # set and id of each question
    _exact: dict[bytes, int] = field(default_factory=dict)
    _words: dict[str, int] = field(default_factory=dict)
    _runs: dict[int, int] = field(default_factory=dict)  # hash of a run -> its first question
    _again: dict[int, int] = field(default_factory=dict)  # further questions with that run

    def add(self, name: str, prompts: Iterable[Prompt]) -> None:
        found = self.sets.setdefault(name, EvaluationSet())
        for prompt in prompts:
            number, text = len(self._names), question_text(prompt)
            self._names.append((name, prompt.id))
            self._exact.setdefault(question_key(prompt, text), number)
            numbers = [self._words.setdefault(word, len(self._words)) for word in _WORDS.findall(folded(text))]
            found.questions += 1
            found.short += len(numbers) < self.ngram
            for run in {run for _, run in self._hashes(numbers)}:
                if self._runs.setdefault(run, number) != number:
                    self._again[run] = self._again.get(run, 0) + 1

    def close(self) -> None:
        """Forget the phrases."""
        for run, further in self._again.items():
            if further >= self.common:
                del self._runs[run]
                self.phrases += 1
        self._again = {}

    @property
    def runs(self) -> int:
        return len(self._runs)

    def match(self, text: str, key: bytes) -> Match | None:
        """The first evaluation question that a prompt with this :func:`question_text` and :func:`question_key` gives away."""
        if (number := self._exact.get(key)) is not None:
            return Match("exact", *self._names[number])
        if not self._runs:
            return None
        words = _WORDS.findall(folded(text))
        get = self._words.get
        for at, run in self._hashes([get(word, -1) for word in words]):
            if (number := self._runs.get(run)) is not None:
                return Match(f"{self.ngram}-gram", *self._names[number], " ".join(words[at : at + self.ngram]))
        return None

    def _hashes(self, numbers: list[int]) -> Iterator[tuple[int, int]]:
        """(start, hash) of every run of n known words."""
        n, start = self.ngram, 0
        while start + n <= len(numbers):
            run = numbers[start : start + n]
            if -1 in run:
                start += n - run[::-1].index(-1)  # behind the last unknown word
                continue
            yield start, hash(tuple(run))
            start += 1
