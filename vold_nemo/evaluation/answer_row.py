"""One answer: a line of ``answers/<arm>.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vold_nemo.config import ConfigError
from vold_nemo.evaluation.records import Record, read_json


@dataclass
class AnswerRow(Record):
    """``sample`` counts the sampled answers to a question.

    A benchmark's question brings its facts (``benchmarks/question.py``) and the number of the ``rules`` that scored it.  Where
    a judge was asked, ``judge`` is its verdict or "failed" and ``rule_reward`` the reward that it found.  ``pixels`` names what
    the model was shown (``data/pictures.py: pixels_digest``), an image each: decoders of two machines may differ.
    """

    set: str  # text, image or a benchmark
    id: str
    mode: Literal["greedy", "sampled"]
    sample: int
    question: str
    truth: str | None
    text: str
    extracted: str | None  # None: no answer could be read
    reward: float
    reason: str
    finish: str  # length: cut off at the limit
    tokens: int
    subject: str | None = None
    type: str | None = None
    skill: str | None = None
    group: str | None = None
    member: str | None = None
    rules: int | None = None
    rule_reward: float | None = None
    judge: str | None = None
    pixels: list[str] | None = None

    @property
    def right(self) -> bool:
        return self.reward == 1


def read_answers(file: Path, *, torn: bool = False) -> list[AnswerRow]:
    """The rows of a file, [] if there is none.  With ``torn`` it may end in a line that was being written when a run stopped.

    Raises:
        ConfigError: a line that is no answer; it names file, line and key.
    """
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines() if file.is_file() else [], start=1):
        if not line.strip():
            continue
        try:
            data = read_json(line, f"{file}, line {number}")
        except ConfigError:
            if torn:
                break
            raise
        rows.append(AnswerRow.from_json(data, f"{file}, line {number}"))
    return rows


def as_lines(rows: Iterable[AnswerRow]) -> str:
    """The file's text: ASCII, since an answer may hold a lone surrogate."""
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)
