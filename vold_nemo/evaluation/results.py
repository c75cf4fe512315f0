"""From answers to ``results.json``: accuracies with intervals, and paired differences between arms.

    accuracy.<arm>.<text|image>   {value, low, high, n, correct, no_answer, truncated, tokens_mean, sampled}
    differences.<text|image>      [{first, second, value, low, high, n, only_first, only_second, p, sampled}, ...]

``value`` is greedy; ``sampled`` is temperature 1 averaged over samples, null unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from vold_nemo.evaluation.statistics import mean_interval, paired_difference, wilson


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
    sampled = rewards_by_question(rows, kind, "sampled")
    samples = sum(row["set"] == kind and row["mode"] == "sampled" for row in rows)
    return {
        **estimate.as_dict(),
        "correct": correct,
        "no_answer": sum(row["extracted"] is None for row in greedy),
        "truncated": sum(row["finish"] == "length" for row in greedy),
        "tokens_mean": sum(row["tokens"] for row in greedy) / len(greedy),
        "sampled": {**mean_interval(list(sampled.values())).as_dict(), "samples": samples // len(sampled)}
        if sampled
        else None,
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
