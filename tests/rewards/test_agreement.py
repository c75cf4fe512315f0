"""The verifiers beside judgements by hand: on answers judged before a verifier saw them, and on every form that
models write.
"""

import pytest

from tests.rewards import agreement_page
from tests.rewards.agreement_cases import CASES, WHY
from tests.rewards.judged_answers import JUDGED, MISSED, PAID


@pytest.fixture(scope="module")
def verdicts():
    return agreement_page.judge()


def test_the_judged_answers_are_many_of_many_kinds_and_a_third_of_them_are_wrong():
    assert len({(one.response, one.key, one.verifier) for one in JUDGED}) == len(JUDGED) >= 1_000
    assert 3 * sum(not one.right for one in JUDGED) >= len(JUDGED)
    assert len({one.kind for one in JUDGED}) >= 30 and len({one.key for one in JUDGED}) >= 150
    assert len(set(CASES)) == len(CASES) >= 270


@pytest.mark.parametrize("verifier", ["boxed", "math", "choice", "numeric"])
def test_no_wrong_answer_is_paid_but_those_listed_by_name(verdicts, verifier):
    found = {(one.answer, one.key) for one, verdict in verdicts[0][verifier] if verdict.reward and not one.right}
    assert found == (set(PAID) if verifier == "math" else set())


@pytest.mark.parametrize("verifier", ["math", "choice", "numeric"])
def test_right_answers_are_paid_but_those_listed_by_name(verdicts, verifier):
    found = {(one.answer, one.key) for one, verdict in verdicts[0][verifier] if one.right and not verdict.reward}
    assert found == (set(MISSED) if verifier == "math" else set())


def test_every_known_form_of_a_right_answer_is_paid_and_no_wrong_one(verdicts):
    for case, verdict in zip(CASES, verdicts[1]["math"], strict=True):
        assert verdict.reward == float(case[3]), case


def test_exact_match_rewards_the_letter_and_nothing_else(verdicts):
    pairs = [(one.answer, one.key, verdict) for one, verdict in verdicts[0]["boxed"]]
    pairs += [(answer, key, verdict) for (_, answer, key, _), verdict in zip(CASES, verdicts[1]["boxed"], strict=True)]
    # a box inside the box is its content, and a brace too many ends it early
    for answer, key, verdict in pairs:
        assert verdict.reward == float(answer == key and answer != "") or verdict.extracted == key, (answer, key)


def test_the_page_shows_these_verdicts(verdicts):
    """Write it anew with: python -m tests.rewards.agreement_page"""
    page = agreement_page.PAGE.read_text()
    assert page.partition(agreement_page.BEGIN)[2].partition(agreement_page.END)[0].strip() == agreement_page.tables(
        *verdicts
    )
    assert set(WHY) <= {form for form, *_ in CASES}
