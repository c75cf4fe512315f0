"""From answers to ``results.json``: accuracies with intervals, and paired differences between arms.

    accuracy.<arm>.<set>   {value, low, high, n, correct, no_answer, truncated, tokens_mean, sampled, ...}
    differences.<set>      [{first, second, value, low, high, n, only_first, only_second, p, sampled}, ...]

A set is ``text``, ``image`` or a benchmark.  ``value`` is greedy; ``sampled`` is avg@k, the mean over k samples a question,
with ``pass`` {"2": ..., k: ...} beside it; null unless asked for.  A benchmark has also ``by`` (accuracies by subject, type
and skill), ``own`` (its published scores over groups of questions) and, where a judge was asked, ``judged`` (its verdicts,
counted).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from vold_nemo.evaluation.benchmarks.scores import own_scores
from vold_nemo.evaluation.statistics import mean_interval, paired_difference, pass_at, wilson

FACETS = ("subject", "type", "skill")


def rewards_by_question(rows: Sequence[dict], kind: str, mode: str) -> dict[str, float]:
    """Question id -> reward, averaged over the samples of a question; in the order of ``rows``."""
    collected: dict[str, list[float]] = {}
    for row in rows:
        if row["set"] == kind and row["mode"] == mode:
            collected.setdefault(row["id"], []).append(row["reward"])
    return {name: sum(values) / len(values) for name, values in collected.items()}


def summarise(rows: Sequence[dict], kind: str) -> dict | None:
    """One entry of ``accuracy``; None if the arm answered no question of this kind."""
    greedy = [row for row in rows if row["set"] == kind and row["mode"] == "greedy"]
    if not greedy:
        return None
    rewards = [row["reward"] for row in greedy]
    correct = sum(reward == 1 for reward in rewards)
    graded = any(reward not in (0, 1) for reward in rewards)  # a verifier with partial credit
    estimate = mean_interval(rewards) if graded else wilson(correct, len(rewards))
    own = own_scores(kind, greedy)
    groups = {name: _by(greedy, name) for name in FACETS if any(name in row for row in greedy)}
    judged = Counter(row["judge"] for row in greedy if "judge" in row)
    return {
        **estimate.as_dict(),
        "correct": correct,
        "no_answer": sum(row["extracted"] is None for row in greedy),
        "truncated": sum(row["finish"] == "length" for row in greedy),
        "tokens_mean": sum(row["tokens"] for row in greedy) / len(greedy),
        "sampled": _sampled(rows, kind),
        **({"by": groups} if groups else {}),
        **({"own": own} if own else {}),
        **({"judged": dict(judged)} if judged else {}),
    }


def _sampled(rows: Sequence[dict], kind: str) -> dict | None:
    """avg@k and pass@k over the samples of each question."""
    rewards: dict[str, list[float]] = {}
    for row in rows:
        if row["set"] == kind and row["mode"] == "sampled":
            rewards.setdefault(row["id"], []).append(row["reward"])
    if not rewards:
        return None
    samples = len(next(iter(rewards.values())))
    average = mean_interval([sum(values) / len(values) for values in rewards.values()])
    right = [sum(value == 1 for value in values) for values in rewards.values()]
    sizes = [k for k in (2, 4, 8, 16, 32, 64) if k < samples] + [samples] * (samples > 1)
    passed = {str(k): mean_interval([pass_at(k, samples, c) for c in right]).as_dict() for k in sizes}
    return {**average.as_dict(), "samples": samples, **({"pass": passed} if passed else {})}


def _by(rows: Sequence[dict], facet: str) -> dict[str, dict]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.get(facet, "not said"), []).append(row["reward"])
    return {
        name: wilson(sum(reward == 1 for reward in rewards), len(rewards)).as_dict() for name, rewards in sorted(found.items())
    }


def differences(answers: dict[str, Sequence[dict]], kind: str) -> list[dict]:
    """Every later arm minus every earlier one, on the questions of ``kind`` that both answered."""
    found = []
    for second, first in combinations(answers, 2):
        entry: dict = {"first": first, "second": second}
        for mode in ("greedy", "sampled"):
            a, b = (rewards_by_question(answers[arm], kind, mode) for arm in (first, second))
            shared = [name for name in a if name in b]
            paired = paired_difference([a[n] for n in shared], [b[n] for n in shared]).as_dict() if shared else None
            if mode == "sampled":
                entry["sampled"] = paired
            elif paired is not None:
                entry |= paired
        if "value" in entry:
            found.append(entry)
    return found


def build_results(answers: dict[str, Sequence[dict]], manifests: dict[str, dict], settings: dict) -> dict:
    """The whole of ``results.json``; arms keep their order."""
    kinds = list(dict.fromkeys(row["set"] for rows in answers.values() for row in rows))
    return {
        "accuracy": {
            arm: {kind: entry for kind in kinds if (entry := summarise(rows, kind)) is not None}
            for arm, rows in answers.items()
        },
        "differences": {kind: differences(answers, kind) for kind in kinds},
        "models": {arm: {"path": m["path"], "weights": m["weights"]} for arm, m in manifests.items()},
        "settings": settings,
    }
