"""From answers to ``results.json``: accuracies with intervals, and paired differences between arms.

    accuracy.<arm>.<set>   {value, low, high, n, correct, no_answer, truncated, tokens_mean, sampled, ...}
    differences.<set>      [{first, second, value, low, high, n, only_first, only_second, p, sampled}, ...]

A set is ``text``, ``image`` or a benchmark.  ``value`` is greedy; ``sampled`` is avg@k, the mean over k samples a question,
with ``pass`` {"2": ..., k: ...} beside it; null unless asked for.  A benchmark has also ``by`` (accuracies by subject, type
and skill), ``own`` (its published scores over groups of questions) and, where a judge was asked, ``judged`` (its verdicts,
counted).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Self

from vold_nemo.config.writing import replace_text
from vold_nemo.evaluation.answer_row import AnswerRow
from vold_nemo.evaluation.benchmarks.scores import own_scores
from vold_nemo.evaluation.records import Record, read_json
from vold_nemo.evaluation.statistics import Difference, Estimate, mean_interval, paired_difference, pass_at, wilson

FACETS = ("subject", "type", "skill")


@dataclass
class Sampled(Estimate):
    """avg@k, and pass@k by k."""

    samples: int
    passed: dict[str, Estimate] = field(default_factory=dict, metadata={"key": "pass"})


@dataclass
class Accuracy(Estimate):
    """One arm on one set."""

    correct: int
    no_answer: int
    truncated: int
    tokens_mean: float
    sampled: Sampled | None
    by: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)


@dataclass
class Arms(Record):
    """Whose difference: ``first`` minus ``second``."""

    first: str
    second: str


@dataclass
class ArmDifference(Difference, Arms):
    """Two arms on the questions of a set that both answered."""

    sampled: Difference | None

    def turned(self) -> ArmDifference:
        """``second`` minus ``first``; the samples' difference is not turned."""
        return replace(
            self, first=self.second, second=self.first, value=-self.value, low=-self.high, high=-self.low,
            only_first=self.only_second, only_second=self.only_first, sampled=None,
        )  # fmt: skip


@dataclass
class Weights(Record):
    """A checkpoint and the fingerprint of its bytes."""

    path: str
    weights: str


@dataclass
class Results(Record):
    """The whole of ``results.json``; arms and sets in their order."""

    accuracy: dict[str, dict[str, Accuracy]]
    differences: dict[str, list[ArmDifference]]
    models: dict[str, Weights]
    settings: dict[str, Any]

    @classmethod
    def of_file(cls, file: Path) -> Self:
        """Raises ConfigError, which names file and key, where something is missing or foreign."""
        return cls.from_json(read_json(file.read_bytes(), str(file)), str(file))

    def write(self, file: Path) -> None:
        replace_text(file, json.dumps(self.to_json(), indent=1) + "\n")

    def difference(self, kind: str, first: str, second: str) -> ArmDifference | None:
        """``first`` minus ``second`` on ``kind``; turned around if the file has it the other way."""
        for entry in self.differences.get(kind, []):
            if (entry.first, entry.second) == (first, second):
                return entry
            if (entry.first, entry.second) == (second, first):
                return entry.turned()
        return None


def rewards_by_question(rows: Sequence[AnswerRow], kind: str, mode: str) -> dict[str, list[float]]:
    """Question id -> the rewards of its samples, in the order of ``rows``."""
    collected: dict[str, list[float]] = {}
    for row in rows:
        if row.set == kind and row.mode == mode:
            collected.setdefault(row.id, []).append(row.reward)
    return collected


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def estimate(rewards: Sequence[float]) -> Estimate:
    """The accuracy with Wilson's interval; with a verifier that gives partial credit, the mean with its own."""
    graded = any(reward not in (0, 1) for reward in rewards)
    return mean_interval(rewards) if graded else wilson(sum(reward == 1 for reward in rewards), len(rewards))


def summarise(rows: Sequence[AnswerRow], kind: str) -> Accuracy | None:
    """One entry of ``accuracy``; None if the arm answered no question of this kind."""
    greedy = [row for row in rows if row.set == kind and row.mode == "greedy"]
    if not greedy:
        return None
    found = estimate([row.reward for row in greedy])
    return Accuracy(
        **vars(found),
        correct=sum(row.right for row in greedy),
        no_answer=sum(row.extracted is None for row in greedy),
        truncated=sum(row.finish == "length" for row in greedy),
        tokens_mean=mean([row.tokens for row in greedy]),
        sampled=_sampled(rows, kind),
        by={name: _by(greedy, name) for name in FACETS if any(getattr(row, name) is not None for row in greedy)},
        own=own_scores(kind, greedy),
        judged=dict(Counter(row.judge for row in greedy if row.judge is not None)),
    )


def _sampled(rows: Sequence[AnswerRow], kind: str) -> Sampled | None:
    """avg@k and pass@k over the samples of each question."""
    rewards = rewards_by_question(rows, kind, "sampled")
    if not rewards:
        return None
    samples = len(next(iter(rewards.values())))
    average = mean_interval([mean(values) for values in rewards.values()])
    right = [sum(value == 1 for value in values) for values in rewards.values()]
    sizes = [k for k in (2, 4, 8, 16, 32, 64) if k < samples] + [samples] * (samples > 1)
    passed = {str(k): mean_interval([pass_at(k, samples, c) for c in right]) for k in sizes}
    return Sampled(**vars(average), samples=samples, passed=passed)


def _by(rows: Sequence[AnswerRow], facet: str) -> dict[str, Estimate]:
    found: dict[str, list[float]] = {}
    for row in rows:
        name = getattr(row, facet)
        found.setdefault("not said" if name is None else name, []).append(row.reward)
    return {name: wilson(sum(reward == 1 for reward in rewards), len(rewards)) for name, rewards in sorted(found.items())}


def differences(answers: Mapping[str, Sequence[AnswerRow]], kind: str) -> list[ArmDifference]:
    """Every later arm minus every earlier one, on the questions of ``kind`` that both answered."""
    found = []
    for second, first in combinations(answers, 2):
        greedy, sampled = (_paired(answers[first], answers[second], kind, mode) for mode in ("greedy", "sampled"))
        if greedy is not None:
            found.append(ArmDifference(first, second, **vars(greedy), sampled=sampled))
    return found


def _paired(first: Sequence[AnswerRow], second: Sequence[AnswerRow], kind: str, mode: str) -> Difference | None:
    a, b = (rewards_by_question(rows, kind, mode) for rows in (first, second))
    shared = [name for name in a if name in b]
    return paired_difference([mean(a[n]) for n in shared], [mean(b[n]) for n in shared]) if shared else None


def build_results(answers: Mapping[str, Sequence[AnswerRow]], models: dict[str, Weights], settings: dict[str, Any]) -> Results:
    kinds = list(dict.fromkeys(row.set for rows in answers.values() for row in rows))
    return Results(
        {arm: {k: entry for k in kinds if (entry := summarise(rows, k)) is not None} for arm, rows in answers.items()},
        {kind: differences(answers, kind) for kind in kinds},
        models,
        settings,
    )
