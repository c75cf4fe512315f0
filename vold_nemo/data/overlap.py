"""When two questions are the same question: exactly, or by the words that they share.

    exact            equal after NFKC, case folding, and without what only sets type: dollar signs, ``\\left``, thin spaces,
                     blanks around signs.  Signs stay: x + 1 and x - 1 are two questions.  Images belong to the question.
    n-gram           a prompt shares runs of n words (``data/words.py``) with an evaluation question that cover ``share`` of its
                     words; runs that stand in many evaluation questions or in many training prompts are phrases ("where m and
                     n are relatively prime positive integers") and do not count.  n = 8 and half of the words is Tulu 3's
                     rule (arXiv 2411.15124, section 3.2); leaving out the phrases is ours.
    other numbers    the same words around other numbers, in a long question

A question that stands in a prompt whole is found however often it does, and so is a prompt that stands in a question.  Every
prompt is looked up in a table of the evaluation questions, so the work grows with the sum of both, not the product.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vold_nemo.data.messages import IMAGE_MARK
from vold_nemo.data.prompts import Prompt
from vold_nemo.data.words import NUMBER, numbered, placed, words

_TYPESETTING = re.compile(r"\$|\\(?:left|right|displaystyle|limits)(?![a-z])|\\[,;:!()\[\]]|\\ ")
_FRACTION = re.compile(r"\\[dt]frac(?![a-z])")
_SIGNS = re.compile(r"\s*([^\w\s])\s*")
_BLANKS = re.compile(r"\s+")
WHOLE = 0.9  # of a question's words, or of a prompt's: it stands there, be its parts phrases or not
ALIKE = 0.8  # of the words of a question that has other numbers
LOOKED_AT = 8  # evaluation questions that a prompt is compared with, those that share most
OTHER_NUMBERS = "other numbers"


def question_text(prompt: Prompt) -> str:
    """What the user says; system turns and earlier answers are no part of the question."""
    return said_by_user(prompt.messages)


def said_by_user(messages: Iterable[dict[str, Any]]) -> str:
    texts = []
    for message in messages:
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
    """Why a prompt is left out: ``set`` and ``id`` name the evaluation question, ``share`` of whose words are in the prompt.

    ``in_prompt`` and ``in_question``: (first, behind the last) character of each shared run of words.
    """

    kind: str  # exact, <n>-gram, other numbers
    set: str
    id: str
    share: float = 1.0
    question: str = ""
    in_prompt: tuple[tuple[int, int], ...] = ()
    in_question: tuple[tuple[int, int], ...] = ()

    @property
    def words(self) -> str:
        """The longest run, as the question has it."""
        start, end = max(self.in_question, key=lambda span: span[1] - span[0], default=(0, 0))
        return " ".join(self.question[start:end].split())


@dataclass
class EvaluationTable:
    """The questions of all evaluation sets.  Call :meth:`add` for each set, :meth:`close`, for each training set
    :meth:`learn_phrases`, and then :meth:`match`.

    Args:
        ngram: words in a row that are compared.
        common: a run in more evaluation questions, or in more of a training set's prompts, is a phrase.
        share: of an evaluation question's words, from which on a prompt gives it away.
        numbers: ``any``: a question with other numbers is the same question; ``same``: it is another.

    A run is looked up by a 64-bit hash of its words' numbers: with 10^8 runs against 10^7, a false match has a probability of
    10^-4, and the words are compared afterwards.
    """

    ngram: int
    common: int
    share: float = 0.5
    numbers: str = "any"
    sets: dict[str, EvaluationSet] = field(default_factory=dict)
    phrases: int = 0  # runs in more than `common` questions
    _names: list[tuple[str, str]] = field(default_factory=list)  # set and id of each question
    _texts: list[str] = field(default_factory=list)
    _own: list[list[str]] = field(default_factory=list)  # its words
    _exact: dict[bytes, int] = field(default_factory=dict)
    _words: dict[str, int] = field(default_factory=dict)
    _runs: dict[int, list[int]] = field(default_factory=dict)  # hash of a run -> its questions
    _worn: set[int] = field(default_factory=set)  # phrases of the training set

    def add(self, name: str, prompts: Iterable[Prompt]) -> None:
        found = self.sets.setdefault(name, EvaluationSet())
        for prompt in prompts:
            number, text = len(self._names), question_text(prompt)
            self._names.append((name, prompt.id))
            self._texts.append(text)
            self._exact.setdefault(question_key(prompt, text), number)
            self._own.append(words(text))
            numbers = [self._words.setdefault(word, len(self._words)) for word in self._own[-1]]
            found.questions += 1
            found.short += len(numbers) < self.ngram
            for run in {run for _, run in self._hashes(numbers)}:
                self._runs.setdefault(run, []).append(number)

    def close(self) -> None:
        """Forget the phrases of the evaluation sets."""
        common = [run for run, questions in self._runs.items() if len(questions) > self.common]
        for run in common:
            del self._runs[run]
        self.phrases = len(common)

    def learn_phrases(self, texts: Iterable[str]) -> int:
        """Runs in more than ``common`` of the training prompts ``texts`` (each distinct one counts once): their number.

        A prompt in which a whole evaluation question stands is a copy and no user of a phrase.
        """
        used: Counter[int] = Counter()
        seen: set[int] = set()
        for text in texts:
            same = hash(text)
            runs = set() if same in seen else {run for _, run in self._known_runs(words(text))}
            seen.add(same)
            if runs and not any(self._covered(number, runs) >= WHOLE for number in self._nearest(runs)):
                used.update(runs)
        self._worn = {run for run, prompts in used.items() if prompts > self.common}
        return len(self._worn)

    @property
    def runs(self) -> int:
        return len(self._runs)

    def match(self, text: str, key: bytes) -> Match | None:
        """The evaluation question that a prompt with this :func:`question_text` and :func:`question_key` gives away most."""
        if (number := self._exact.get(key)) is not None:
            question = self._texts[number]
            return Match("exact", *self._names[number], 1.0, question, ((0, len(text)),), ((0, len(question)),))
        if not self._runs:
            return None
        own = words(text)
        runs = {run for _, run in self._known_runs(own)}
        best: Match | None = None
        for number in self._nearest(runs):
            kind, share = self._verdict(number, text, own, runs)
            if kind and (best is None or share > best.share):
                question = self._texts[number]
                shared = runs & {run for _, run in self._known_runs(self._own[number])}
                spans = (tuple(self._spans(one, shared)) for one in (text, question))
                best = Match(kind, *self._names[number], share, question, *spans)
        return best

    def _verdict(self, number: int, text: str, own: Sequence[str], runs: set[int]) -> tuple[str, float]:
        """(kind of the match or "", share of the question's words that the prompt has)."""
        fresh, question = runs - self._worn, self._texts[number]
        whole, rare = self._covered(number, runs), self._covered(number, fresh)
        theirs = {run for _, run in self._known_runs(self._own[number])}
        inside = _share(own, self._places(own, fresh & theirs)) if len(own) >= 2 * self.ngram else 0.0
        if max(rare, 0.0 if whole < WHOLE else whole) < self.share and inside < WHOLE:
            return "", 0.0
        share = whole if whole >= WHOLE else rare
        plain = self._with_numbers(text, question, inside >= WHOLE)
        if plain >= WHOLE * (inside if inside >= WHOLE else share):
            return f"{self.ngram}-gram", share
        long = len(self._own[number]) >= 2 * self.ngram and share >= ALIKE
        return (OTHER_NUMBERS, share) if self.numbers == "any" and (long or plain >= self.share) else ("", 0.0)

    def _with_numbers(self, text: str, question: str, inside: bool) -> float:
        """The share of the question when numbers count, too; with ``inside`` of the prompt, which stands in the question."""
        one, other = (numbered(text), numbered(question)) if inside else (numbered(question), numbered(text))
        there = {tuple(other[i : i + self.ngram]) for i in range(len(other) - self.ngram + 1)}
        covered = [False] * len(one)
        for i in range(len(one) - self.ngram + 1):
            if tuple(one[i : i + self.ngram]) in there:
                covered[i : i + self.ngram] = [True] * self.ngram
        return sum(covered) / max(1, len(one))

    def _covered(self, number: int, runs: Collection[int]) -> float:
        own = self._own[number]
        return _share(own, self._places(own, runs))

    def _places(self, own: Sequence[str], runs: Collection[int]) -> list[bool]:
        """Which of the words ``own`` stand in one of ``runs``."""
        covered = [False] * len(own)
        for at, run in self._known_runs(own):
            if run in runs:
                covered[at : at + self.ngram] = [True] * self.ngram
        return covered

    def _spans(self, text: str, runs: Collection[int]) -> Iterator[tuple[int, int]]:
        """Characters of the words of ``text`` that stand in one of ``runs``; neighbours are one span."""
        where = placed(text)
        start = end = -1
        for (_, first, behind), covered in zip(where, self._places([word for word, *_ in where], runs), strict=True):
            if covered:
                start, end = (first if start < 0 else start), behind
            elif start >= 0:
                yield start, end
                start = -1
        if start >= 0:
            yield start, end

    def _nearest(self, runs: Iterable[int]) -> list[int]:
        """Questions that share most of ``runs``."""
        sharing: Counter[int] = Counter()
        for run in runs:
            sharing.update(self._runs[run])
        return [number for number, _ in sharing.most_common(LOOKED_AT)]

    def _known_runs(self, own: Sequence[str]) -> Iterator[tuple[int, int]]:
        """(start, hash) of every run that an evaluation question has, too, and that is no phrase of theirs."""
        get = self._words.get
        return ((at, run) for at, run in self._hashes([get(word, -1) for word in own]) if run in self._runs)

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


def _share(own: Sequence[str], covered: Sequence[bool]) -> float:
    """Of the words that are no numbers, which a question of figures alone would be made of."""
    counted = [here for word, here in zip(own, covered, strict=True) if word != NUMBER]
    return sum(counted) / len(counted) if counted else 0.0
