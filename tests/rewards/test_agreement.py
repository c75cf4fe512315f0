"""Exact match, math-verify and a hand-set truth, on the forms in which models write answers."""

import pytest

from tests.rewards import agreement_page
from tests.rewards.agreement_cases import CASES, MISSED, WHY


@pytest.fixture(scope="module")
def verdicts():
    return agreement_page.judge()


def test_there_are_enough_cases_of_both_kinds_and_of_both_datasets():
    assert len(set(CASES)) == len(CASES) >= 150
    assert sum(not right for *_, right in CASES) >= 40
    for dataset in ("orz", "geo3k"):
        assert sum(form.startswith(dataset) for form, *_ in CASES) >= 20


def test_neither_verifier_rewards_a_wrong_answer(verdicts):
    for name, found in verdicts.items():
        rewarded = [case for case, verdict in zip(CASES, found, strict=True) if verdict.reward and not case[3]]
        assert rewarded == [], name


def test_math_verify_misses_only_the_forms_that_are_listed(verdicts):
    missed = {case[1:3] for case, v in zip(CASES, verdicts["math"], strict=True) if case[3] and not v.reward}
    assert missed == set(MISSED)


def test_exact_match_rewards_the_letter_and_nothing_else(verdicts):
    for (_, answer, truth, _), verdict in zip(CASES, verdicts["boxed"], strict=True):
        assert verdict.reward == float(answer == truth and answer != "")


def test_the_page_shows_these_verdicts(verdicts):
    """Write it anew with: python -m tests.rewards.agreement_page"""
    page = agreement_page.PAGE.read_text()
    assert page.partition(agreement_page.BEGIN)[2].partition(agreement_page.END)[0].strip() == agreement_page.tables(verdicts)
    assert set(WHY) <= {form for form, *_ in CASES}
