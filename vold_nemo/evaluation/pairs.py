"""Answers of several evaluations, paired question by question.

    compare.json    {"models": {name: {sets}}, "pairs": {set: [{first, second, value, low, high, n, only_first, only_second, p,
                    wins: [ids], losses: [ids]}]}, "skills": {name: {perception, reasoning}}, "skill_pairs": [...]}

Only questions that both answered are compared, and the number that was left out is said.  An id stands for the same question
in two evaluations only if the text and the truth are the same, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from vold_nemo.config import ConfigError
from vold_nemo.evaluation.answer_row import AnswerRow, read_answers
from vold_nemo.evaluation.benchmarks.scores import own_scores
from vold_nemo.evaluation.records import Record
from vold_nemo.evaluation.results import Arms, Results, estimate
from vold_nemo.evaluation.statistics import Difference, Estimate, mean_interval, paired_difference

SKILLS = ("perception", "reasoning")


@dataclass
class Model:
    """One arm's greedy answers: set -> question id -> row."""

    name: str
    source: str
    answers: dict[str, dict[str, AnswerRow]] = field(default_factory=dict)

    def rows(self) -> Iterable[AnswerRow]:
        return (row for rows in self.answers.values() for row in rows.values())


@dataclass
class SetAccuracy(Estimate):
    """A model on a set: ``unparsed`` answers could not be read, ``own`` are the benchmark's own scores."""

    unparsed: int
    own: dict[str, float]


@dataclass
class Pair(Difference, Arms):
    """The ids of the questions that ``first`` won from and lost to ``second``."""

    wins: list[str]
    losses: list[str]


@dataclass
class Skill(Record):
    skill: str


@dataclass
class SkillPair(Pair, Skill):
    """A :class:`Pair` on the questions that ask for one skill."""


@dataclass
class Comparison(Record):
    """The whole of ``compare.json``."""

    models: dict[str, dict[str, SetAccuracy]]
    sources: dict[str, str]
    pairs: dict[str, list[Pair]]
    left_out: dict[str, int]  # "set: first, second" -> questions that only one of them answered
    skills: dict[str, dict[str, Estimate]]
    skill_pairs: list[SkillPair]
    other_pixels: dict[str, int] = field(default_factory=dict)  # -> shared questions with other pixels


def read_models(results: dict[str, str]) -> list[Model]:
    """The arms of each evaluation, named ``evaluation/arm``; an evaluation with one arm gives it its own name.

    Args:
        results: name -> folder with ``answers/``, or its ``results.json``.

    Raises:
        ConfigError: nothing there, or fewer than two arms in all.
    """
    models: list[Model] = []
    for name, where in results.items():
        folder = Path(where).parent if Path(where).suffix == ".json" else Path(where)
        files = [file for file in sorted((folder / "answers").glob("*.jsonl")) if ".part-" not in file.name]
        if not files:
            raise ConfigError(
                f"compare.results.{name}",
                where,
                "a folder with answers/<arm>.jsonl",
                "run recipes/evaluate.py with this path",
            )
        order = _order(folder)
        for file in sorted(files, key=lambda f: (order.get(f.stem, len(order)), f.stem)):
            model = Model(name if len(files) == 1 else f"{name}/{file.stem}", str(file))
            for row in read_answers(file):
                if row.mode == "greedy":
                    model.answers.setdefault(row.set, {})[row.id] = row
            models.append(model)
    if len(models) == len(results) == 1 or not models:
        raise ConfigError(
            "compare.results", results, "two or more sets of answers", "add compare.results.<name>=FOLDER"
        )
    if len(results) == 1:  # the arms of one evaluation need no name before them
        for model in models:
            model.name = model.name.rpartition("/")[2]
    return models


def _order(folder: Path) -> dict[str, int]:
    file = folder / "results.json"
    arms = Results.of_file(file).accuracy if file.is_file() else {}
    return {arm: i for i, arm in enumerate(arms)}


def same_question(a: AnswerRow, b: AnswerRow) -> bool:
    return a.truth == b.truth and (a.question == b.question or "" in (a.question, b.question))


def shared(first: Model, second: Model, kind: str) -> list[tuple[AnswerRow, AnswerRow]]:
    """The answers of both to the same questions of a set, in the first's order."""
    a, b = first.answers.get(kind, {}), second.answers.get(kind, {})
    return [(row, b[name]) for name, row in a.items() if name in b and same_question(row, b[name])]


def compare_pair(first: Model, second: Model, rows: list[tuple[AnswerRow, AnswerRow]]) -> Pair:
    """``second`` minus ``first``: the later arm is the one that is asked about."""
    difference = paired_difference([b.reward for _, b in rows], [a.reward for a, _ in rows])
    return Pair(
        second.name, first.name, **vars(difference),
        wins=[b.id for a, b in rows if b.reward > a.reward], losses=[b.id for a, b in rows if b.reward < a.reward],
    )  # fmt: skip


def compare(models: list[Model]) -> Comparison:
    kinds = list(dict.fromkeys(kind for model in models for kind in model.answers))
    pairs, left_out, other_pixels = {}, {}, {}
    for kind in kinds:
        found = []
        for first, second in combinations(models, 2):
            rows = shared(first, second, kind)
            lost = max(len(first.answers.get(kind, {})), len(second.answers.get(kind, {}))) - len(rows)
            if rows:
                found.append(compare_pair(first, second, rows))
                if lost:
                    left_out[f"{kind}: {second.name}, {first.name}"] = lost
            if other := sum(None not in (a.pixels, b.pixels) and a.pixels != b.pixels for a, b in rows):
                other_pixels[f"{kind}: {second.name}, {first.name}"] = other
        if found:
            pairs[kind] = found
    return Comparison(
        models={m.name: {kind: accuracy(kind, list(rows.values())) for kind, rows in m.answers.items()} for m in models},
        sources={model.name: model.source for model in models},
        pairs=pairs,
        left_out=left_out,
        skills={model.name: _skills(model.rows()) for model in models},
        skill_pairs=_skill_pairs(models),
        other_pixels=other_pixels,
    )


def accuracy(kind: str, rows: list[AnswerRow]) -> SetAccuracy:
    unparsed = sum(row.extracted is None for row in rows)
    own = own_scores(kind, rows) if rows[0].rules is not None else {}
    return SetAccuracy(**vars(estimate([row.reward for row in rows])), unparsed=unparsed, own=own)


def _skills(rows: Iterable[AnswerRow]) -> dict[str, Estimate]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.skill in SKILLS:
            found.setdefault(row.skill, []).append(row.reward)
    return {skill: mean_interval(found[skill]) for skill in SKILLS if skill in found}


def _skill_pairs(models: list[Model]) -> list[SkillPair]:
    """Where a benchmark says which skill a question asks for: the paired difference on each skill (the paper's table 6)."""
    found = []
    for first, second in combinations(models, 2):
        for skill in SKILLS:
            rows = [pair for kind in first.answers for pair in shared(first, second, kind) if pair[0].skill == skill]
            if rows:
                found.append(SkillPair(skill=skill, **vars(compare_pair(first, second, rows))))
    return found
