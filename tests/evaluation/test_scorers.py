"""Every scorer family against answers in the forms that models write, each judged by hand."""

from __future__ import annotations

import pytest

from tests.evaluation import cases
from vold_nemo.config import RewardConfig
from vold_nemo.evaluation.benchmarks.question import Question
from vold_nemo.evaluation.scorers import SCORERS, read, score
from vold_nemo.rewards.verdict import Verdict


def question(scorer: str, truth: str, **facts) -> Question:
    return Question("q", [{"role": "user", "content": "?"}], truth, scorer=scorer, **facts)


def right_or_wrong(verdict: Verdict) -> bool | None:
    return None if verdict.extracted is None else verdict.reward == 1


@pytest.mark.parametrize(("response", "letter"), cases.CHOICE)
def test_a_choice_is_read_as_a_careful_reader_reads_it(response, letter):
    verdict = read(response, question("choice", "B", options=cases.LENGTHS))
    assert verdict.extracted == letter, verdict
    assert verdict.reward == (letter == "B")


@pytest.mark.parametrize(("response", "letter"), cases.OPTION_TEXTS)
def test_an_option_s_text_stands_for_its_letter_if_only_one_option_has_it(response, letter):
    verdict = read(response, question("choice", "C", options=cases.COLOURS))
    assert verdict.extracted == letter, verdict


@pytest.mark.parametrize(("response", "letters"), cases.LETTERS)
def test_a_set_of_letters_counts_whole_and_in_any_order(response, letters):
    verdict = read(response, question("letters", "BD", letters="ABCDE"))
    assert verdict.extracted == letters, verdict
    assert verdict.reward == (letters == "BD")


@pytest.mark.parametrize(("response", "truth", "precision", "tolerance", "right"), cases.NUMBERS)
def test_a_number_is_read_and_rounded_as_the_benchmark_says(response, truth, precision, tolerance, right):
    verdict = read(response, question("number", truth, precision=precision, tolerance=tolerance))
    assert right_or_wrong(verdict) is right, verdict


@pytest.mark.parametrize(
    ("scorer", "response", "truth", "right"),
    [
        (scorer, *case)
        for scorer, answers in (("text", cases.TEXTS), ("list", cases.LISTS), ("yes_no", cases.YES_NO))
        for case in answers
    ],
)
def test_words_lists_and_coordinates_are_compared_by_what_they_say(scorer, response, truth, right):
    verdict = read(response, question(scorer, truth))
    assert right_or_wrong(verdict) is right, verdict


def test_mathematics_is_judged_by_the_verifier_math():
    questions = [question("math", truth) for _, truth, _ in cases.MATH]
    verdicts = score([response for response, _, _ in cases.MATH], questions, RewardConfig(workers=1))
    found = [(response, truth, right_or_wrong(v)) for (response, truth, _), v in zip(cases.MATH, verdicts, strict=True)]
    assert found == cases.MATH


def test_each_family_has_its_answers():
    families = (cases.CHOICE, cases.LETTERS, cases.NUMBERS, cases.TEXTS, cases.LISTS, cases.MATH, cases.YES_NO)
    assert all(len({case[0] for case in family}) >= 40 for family in families)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize(
    "hostile",
    [
        "(" * 50_000,
        "\\boxed{" * 20_000,
        "the answer is " * 10_000,
        "A, " * 20_000,
        "\x00\ud800",
        "1" * 50_000,
        "9^9^9^9^9",
        "\\sqrt{" * 5000,
        "$" * 50_001,
        "*" * 50_000 + "B",
    ],
)
@pytest.mark.timeout(20)
def test_no_answer_hangs_or_breaks_a_scorer(scorer, hostile):
    read(hostile, question(scorer, "B" if scorer in ("choice", "letters") else "14", options=("a", "b", "c")))
