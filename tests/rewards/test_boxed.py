r"""The paper's reward: the last complete ``\boxed{}`` outside the thinking, letter by letter, in linear time."""

import time

import pytest

from vold_nemo.rewards.boxed import exact_match, extract
from vold_nemo.rewards.registry import resolve

RIGHT = {
    "plain": (r"so \boxed{42}", "42"),
    "outer blanks": ("\\boxed{ 42\n}", " 42 "),
    "a blank before the brace": (r"\boxed {42}", "42"),
    "nested braces": (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
    "escaped braces": (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    "an escaped brace alone": (r"\boxed{\{1,2}", r"\{1,2"),
    "a line break before a brace": (r"\boxed{a\\{b}}", r"a\\{b}"),
    "the last of several": (r"\boxed{1} no, \boxed{2}", "2"),
    "a complete one before an unclosed one": (r"\boxed{1} and \boxed{2", "1"),
    "inside an unclosed one": (r"\boxed{ \boxed{3}", "3"),
    "the outer of two": (r"\boxed{x=\boxed{3}}", r"x=\boxed{3}"),
    "in mathematics": (r"$$\boxed{5}$$", "5"),
    "doubled backslashes": (r"\\boxed{5} then \\boxed{6}", "6"),
    "a box after a line break": (r"x \\ \boxed{7}\\\boxed{8}", "8"),
    "stray closing braces": (r"}}} \boxed{5} }}}", "5"),
    "an open brace before": (r"let { be \boxed{5}", "5"),
    "after the thinking": (r"<think>\boxed{1}</think> \boxed{2}", "2"),
    "after thinking that the prompt opened": (r"\boxed{1} hm</think>\boxed{2}", "2"),
    "before an unfinished second thought": (r"<think>a</think>\boxed{2} <think>\boxed{3}", "2"),
    "other scripts": ("\\boxed{π ≈ 三}", "π ≈ 三"),
}
WRONG = {
    "no box": ("the answer is 42", "no box"),
    "empty": ("", "no box"),
    "unclosed": (r"\boxed{42", "the box never closes"),
    "closed by an escaped brace only": (r"\boxed{42\}", "the box never closes"),
    "no braces": (r"\boxed 42", "the box never closes"),
    "an empty box": (r"\boxed{}", "the box is empty"),
    "another number": (r"\boxed{43}", "differs"),
    "another form of the number": (r"\boxed{42.0}", "differs"),
    "a changed mind": (r"\boxed{42} or \boxed{43}", "differs"),
    "thinking only": (r"<think>\boxed{42}</think> done", "a box in the thinking part only"),
    "unfinished thinking": (r"<think> so \boxed{42}", "a box in the thinking part only"),
    "two thoughts": (r"<think>a</think><think>\boxed{42}</think>", "a box in the thinking part only"),
    "another command": (r"\boxedx{42}", "the box never closes"),
    "NUL": ("\\boxed{42\x00}", "differs"),
    "a lone surrogate": ("\\boxed{42\ud800}", "differs"),
    "a right-to-left mark": ("\\boxed{\u200f42}", "differs"),
    "full-width digits": ("\\boxed{４２}", "differs"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_right(case):
    response, truth = RIGHT[case]
    verdict = exact_match(response, truth)
    assert (verdict.reward, verdict.extracted, verdict.reason) == (1.0, truth.strip(), "equal")


@pytest.mark.parametrize("case", WRONG)
def test_wrong_with_a_reason(case):
    response, reason = WRONG[case]
    verdict = exact_match(response, "42")
    assert (verdict.reward, verdict.reason) == (0.0, reason)


def test_an_unboxed_truth_is_never_met_by_nothing():
    assert exact_match("\\boxed{}", "x").reward == 0.0
    assert extract("\\boxed{}").answer == ""


HOSTILE = {
    "opening braces": "\\boxed{" + "{" * 1_000_000,
    "closing braces": "\\boxed{1" + "}" * 1_000_000,
    "balanced braces": "\\boxed{" + "{" * 500_000 + "}" * 500_000 + "}",
    "boxes": "\\boxed{" * 150_000,
    "closed boxes": "\\boxed{" * 120_000 + "}" * 120_000,
    "boxes and blanks": ("\\boxed" + " " * 50) * 20_000,
    "backslashes": "\\boxed{" + "\\" * 1_000_000,
    "thoughts": "<think>" * 150_000,
    "ends of thoughts": "</think>" * 125_000 + "\\boxed{",
    "NULs": "\x00" * 1_000_000 + "\\boxed{\x00",
    "lone surrogates": "\ud800" * 1_000_000,
    "right-to-left marks in a box": "\\boxed{" + "\u200f" * 1_000_000 + "}",
    "commands in a box": "\\boxed{" + "\\text{" * 70_000 + "}" * 70_000 + "}",
    "announcements": "the answer is " * 70_000,
}


@pytest.mark.parametrize(("verifier", "truth"), [("boxed", "42"), ("math", "42"), ("numeric", "42"), ("choice", "B")])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_million_hostile_characters_are_wrong_within_a_second_and_leave_a_short_verdict(case, verifier, truth):
    began = time.process_time()
    verdict = resolve(verifier).read(HOSTILE[case], truth)
    assert time.process_time() - began < 1.0
    assert verdict.reward == 0.0 and verdict.reason
    assert verdict.extracted is None or len(verdict.extracted) < 300
