"""Scores that a benchmark defines over groups of questions, beside the plain accuracy.

DynaMath   worst_case: share of seed questions of which every variant is answered right; reasoning robustness is
           worst_case / average (arXiv 2411.00836, section 3)
We-Math    each composite problem with its steps is one of four cases (arXiv 2407.01284, section 3):

                               composite right        composite wrong
             all steps right   complete mastery CM    inadequate generalization IG
             else              rote memorization RM   insufficient knowledge IK

           score = CM + IG / 2, as shares.  Loose: one right step suffices for CM.
MME        for each category, accuracy plus the share of images of which both questions are right, in percent; summed
           over perception and over cognition (arXiv 2306.13394, section 3)
MMStar     the mean of the six categories' accuracies
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from vold_nemo.evaluation.answer_row import AnswerRow


def dynamath(rows: Sequence[AnswerRow]) -> dict[str, float]:
    seeds: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        seeds[row.group].append(row.right)
    most = max(len(right) for right in seeds.values())
    whole = [right for right in seeds.values() if len(right) == most]
    average = sum(sum(right) for right in whole) / (most * len(whole))
    worst = sum(all(right) for right in whole) / len(whole)
    found = {"average": average, "worst_case": worst, "variants": float(most)}
    return found | ({"robustness": worst / average} if average else {})


def we_math(rows: Sequence[AnswerRow]) -> dict[str, float]:
    problems: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in rows:
        problems[row.group][row.member] = row.right
    counts = defaultdict(int)
    for name, right in problems.items():
        steps = 2 if name.startswith("2steps") else 3
        if set(right) != {str(i) for i in range(1, steps + 1)} | {"multi"}:
            continue  # a step is missing: the case cannot be told
        single = [right[str(i)] for i in range(1, steps + 1)]
        counts["all"] += 1
        if right["multi"]:
            counts["mastery_strict"] += all(single)
            counts["mastery_loose"] += any(single)
        else:
            counts["generalization"] += all(single)
            counts["knowledge"] += not all(single)
    n = counts["all"]
    if not n:
        return {}
    found = {
        "insufficient_knowledge": counts["knowledge"] / n,
        "inadequate_generalization": counts["generalization"] / n,
    }
    right = n - counts["knowledge"] - counts["generalization"]
    for rule in ("strict", "loose"):
        mastery = counts[f"mastery_{rule}"]
        found[f"score_{rule}"] = (mastery + counts["generalization"] / 2) / n
        found[f"complete_mastery_{rule}"] = mastery / n
        if right:
            found[f"rote_memorization_{rule}"] = 1 - mastery / right
    return found


def mme(rows: Sequence[AnswerRow]) -> dict[str, float]:
    categories: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        categories[row.skill, row.subject][row.group].append(row.right)
    total = {"perception": 0.0, "cognition": 0.0}
    for (skill, _), images in categories.items():
        answers = [right for pair in images.values() for right in pair]
        both = sum(all(pair) for pair in images.values()) / len(images)
        total["perception" if skill == "perception" else "cognition"] += 100 * (sum(answers) / len(answers) + both)
    return {**total, "sum": sum(total.values())}


def mmstar(rows: Sequence[AnswerRow]) -> dict[str, float]:
    categories: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        categories[row.subject].append(row.reward)
    return {"mean_of_categories": sum(sum(r) / len(r) for r in categories.values()) / len(categories)}


SCORERS = {  # and what a row must say of its question
    "dynamath": (dynamath, ("group",)), "wemath": (we_math, ("group", "member")),
    "mme": (mme, ("skill", "subject", "group")), "mmstar": (mmstar, ("subject",)),
}  # fmt: skip


def own_scores(name: str, rows: Sequence[AnswerRow]) -> dict[str, float]:
    """The benchmark's own scores of one answer a question; {} if it has none, no group is complete, or a row names no group."""
    scorer, facts = SCORERS.get(name, (None, ()))
    if scorer is None or not rows or any(getattr(row, fact) is None for row in rows for fact in facts):
        return {}
    return scorer(rows)
