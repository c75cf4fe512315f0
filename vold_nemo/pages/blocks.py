"""What a page is made of, as plain values: ``templates/page.html`` draws each kind of block."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vold_nemo.data.prompts import Prompt
from vold_nemo.evaluation.pairs import SetAccuracy
from vold_nemo.evaluation.results import Accuracy, Arms
from vold_nemo.evaluation.statistics import Difference, Estimate
from vold_nemo.pages.report.verdict import evidence, label, tone_of

LONGEST = 1500  # characters of an answer: long ones keep their end, where the box stands
WORDS = {"good": "better", "bad": "worse", "open": "not shown"}


@dataclass(frozen=True)
class Cell:
    """``small`` lines stand below ``text``, a dot of ``colour`` before it; ``look`` are its classes in the style sheet."""

    text: str
    small: tuple[str, ...] = ()
    colour: str = ""
    look: str = ""


@dataclass(frozen=True)
class Table:
    """``numeric`` columns are set to the right; an empty ``head`` is left out."""

    kind: ClassVar = "table"
    head: Sequence[Cell | str]
    inside: Sequence[Sequence[Cell | str]]
    numeric: Container[int] = ()


@dataclass(frozen=True)
class Items:
    """A list; with a ``title`` in a panel of its own."""

    kind: ClassVar = "items"
    inside: Sequence[str]
    title: str = ""
    look: str = "plain"


@dataclass(frozen=True)
class Grid:
    """Charts, or blocks, side by side; without a look one below the other."""

    kind: ClassVar = "grid"
    inside: Sequence[Any]
    look: str = "grid2"


@dataclass(frozen=True)
class Details:
    """Blocks, or a text as it stands, that a reader opens."""

    kind: ClassVar = "details"
    summary: str
    inside: Sequence[Any] | str
    opened: bool = False


@dataclass(frozen=True)
class ShownAnswer:
    """``mark`` says in a word what became of it."""

    name: str
    colour: str
    right: bool
    mark: str
    text: str

    @property
    def pieces(self) -> list[str]:
        """The text in turns without and with a box."""
        text = self.text if len(self.text) <= LONGEST else "… " + self.text[-LONGEST:]
        return re.split(r"(\\boxed\{[^{}]*\})", text)


@dataclass(frozen=True)
class Card:
    """A question with its ``pictures`` (data URIs), beside every model's answer."""

    kind: ClassVar = "card"
    title: str
    question: str
    truth: str
    pictures: Sequence[str]
    inside: Sequence[ShownAnswer]


@dataclass(frozen=True)
class Texts:
    """Two texts side by side; ``pieces`` of each are (text, whether it is marked)."""

    kind: ClassVar = "texts"
    titles: tuple[str, str]
    inside: tuple[Sequence[tuple[str, bool]], Sequence[tuple[str, bool]]]
    note: str = ""


def marked(text: str, spans: Sequence[Sequence[int]]) -> list[tuple[str, bool]]:
    """``text`` in pieces, those in ``spans`` (first character, the one behind the last) marked."""
    found, at = [], 0
    for start, end in spans:
        found += [(text[at:start], False), (text[start:end], True)]
        at = end
    return [piece for piece in (*found, (text[at:], False)) if piece[0]]


@dataclass(frozen=True)
class Section:
    """Left out where it was given blocks and all are empty.  A text among the blocks is small print."""

    title: str
    lead: str
    blocks: Sequence[Any] = ()


def share(estimate: Estimate | None, *small: str) -> Cell:
    """An accuracy with its interval."""
    if estimate is None:
        return Cell("–")
    return Cell(f"{estimate.value:.1%}", (f"{estimate.low:.1%} to {estimate.high:.1%}", *small))


def minus(entry: Arms) -> str:
    return f"{label(entry.first)} − {label(entry.second)}"


def shown(entry: Difference) -> Cell:
    """A difference with its evidence, which stays readable on a phone."""
    return Cell(evidence(entry), look="evidence")


def decided(entry: Difference) -> Cell:
    return Cell(WORDS[tone_of(entry)], look=f"tone {tone_of(entry)}")


def own_scores(
    models: Sequence[Mapping[str, Accuracy] | Mapping[str, SetAccuracy]], kinds: Sequence[str], title: Callable[[str], str]
) -> list[list[str]]:
    """What benchmarks score over groups of questions (We-Math, DynaMath, MME, MMStar): a row a score, a column a model."""
    rows = []
    for kind in kinds:
        scores = [sets[kind].own if kind in sets else {} for sets in models]
        for name in next(filter(None, scores), {}):
            values = (own.get(name) for own in scores)
            cells = ("–" if v is None else f"{v:.1%}" if 0 <= v <= 1 else f"{v:.4g}" for v in values)
            rows.append([f"{title(kind)}: {name.replace('_', ' ')}", *cells])
    return rows


def without_marks(question: str) -> str:
    """The question's text without the signs that stand for its images."""
    return re.sub(r"▢[▢ ]*", "", question).strip()


def embed_images(prompt: Prompt, longest: int = 640) -> list[str]:
    """The images as data URIs, at most ``longest`` pixels wide or high."""
    found = []
    for image in prompt.open_images():
        image.thumbnail((longest, longest))
        buffer = io.BytesIO()
        kind = "PNG" if image.width * image.height < 65_536 else "JPEG"
        image.save(buffer, format=kind)
        found.append(f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return found
