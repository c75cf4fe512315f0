"""What benchmarks report beside accuracy, and pass@k: against counting by hand."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.evaluation.rows import answer as row
from vold_nemo.evaluation.benchmarks.scores import own_scores
from vold_nemo.evaluation.results import summarise


def test_dynamath_s_worst_case_is_the_share_of_seeds_with_every_variant_right():
    right = {
        "a": [True] * 10,
        "b": [True] * 9 + [False],
        "c": [False] * 10,
        "d": [True] * 3,
    }  # d: seven variants are missing
    rows = [row(r, group=g, member=str(i)) for g, rs in right.items() for i, r in enumerate(rs)]
    scores = own_scores("dynamath", rows)
    assert scores["worst_case"] == pytest.approx(1 / 3) and scores["average"] == pytest.approx(19 / 30)
    assert scores["robustness"] == pytest.approx(10 / 19)


def test_we_math_s_four_cases_strict_and_loose():
    """Counted by hand: the published formula (525 - 0.5 IG - RM - IK) / 525 with 5 in place of 525."""
    problems = {"2steps_1": (True, True, True), "2steps_2": (True, False, True), "2steps_3": (False, False, True),
                "2steps_4": (True, True, False), "3steps_1": (True, False, True, False), "3steps_2": (True, True)}  # fmt: skip
    rows = []
    for name, rights in problems.items():
        members = [str(i) for i in range(1, len(rights))] + ["multi"]
        rows += [row(right, group=name, member=member) for member, right in zip(members, rights, strict=True)]
    scores = own_scores("wemath", rows)  # 3steps_2 lacks steps: not counted
    strict, loose = {"CM": 1, "RM": 2, "IG": 1, "IK": 1}, {"CM": 2, "RM": 1, "IG": 1, "IK": 1}
    for rule, counts in (("strict", strict), ("loose", loose)):
        assert scores[f"score_{rule}"] == pytest.approx((5 - 0.5 * counts["IG"] - counts["RM"] - counts["IK"]) / 5)
        assert scores[f"rote_memorization_{rule}"] == pytest.approx(counts["RM"] / (counts["CM"] + counts["RM"]))
    assert scores["insufficient_knowledge"] == scores["inadequate_generalization"] == 0.2


def test_mme_adds_accuracy_and_both_questions_right():
    rows = [
        row(True, group="e/1", subject="existence", skill="perception"),
        row(True, group="e/1", subject="existence", skill="perception"),
        row(True, group="e/2", subject="existence", skill="perception"),
        row(False, group="e/2", subject="existence", skill="perception"),
        row(False, group="c/1", subject="code_reasoning", skill="reasoning"),
        row(True, group="c/1", subject="code_reasoning", skill="reasoning"),
    ]
    assert own_scores("mme", rows) == {"perception": 125.0, "cognition": 50.0, "sum": 175.0}


def test_pass_at_k_and_avg_at_k_are_what_enumeration_gives():
    rewards = {"a": [1.0, 0.0, 0.0, 1.0], "b": [0.0] * 4, "c": [1.0, 1.0, 1.0, 0.0]}
    rows = [
        row(r, set="x", id=q, mode="sampled", sample=i) for q, rs in rewards.items() for i, r in enumerate(rs)
    ]
    rows += [row(rs[0], set="x", id=q, subject=q) for q, rs in rewards.items()]
    entry = summarise(rows, "x")
    pairs = [max(pair) for rs in rewards.values() for pair in combinations(rs, 2)]
    assert entry.sampled.passed["2"].value == pytest.approx(sum(pairs) / len(pairs))
    assert entry.sampled.passed["4"].value == pytest.approx(2 / 3)
    assert entry.sampled.value == pytest.approx(5 / 12)
    assert entry.by["subject"]["b"].value == 0


def test_a_benchmark_whose_rows_name_no_groups_has_no_score_over_groups():
    assert own_scores("mme", [row(True, skill="perception", subject="existence")]) == {}
    assert own_scores("mmstar", [row(True), row(True, subject="a")]) == {} == own_scores("mathvista", [row(True)])
