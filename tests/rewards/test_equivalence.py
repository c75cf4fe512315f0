"""What is decided without SymPy, or read faster, is what math-verify itself would have said."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from tests.rewards.agreement_cases import CASES
from vold_nemo.rewards.equivalence import compare, screen
from vold_nemo.rewards.verdict import Verdict

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

digits = st.integers(0, 120).map(str)
decimals = st.builds(lambda whole, part: f"{whole}.{part}", digits, st.integers(0, 10**7).map(str))
fractions = st.builds(
    lambda form, top, bottom: form.format(top, bottom),
    st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}", r"\tfrac{{{}}}{{{}}}"]),
    digits, st.integers(1, 40).map(str),
)  # fmt: skip
numbers = st.builds(lambda sign, number: sign + number, st.sampled_from(["", "", "-", "+"]), digits | decimals | fractions)


@st.composite
def pairs(draw):
    """Two numbers; half of the time the second is the first in another form, or nearly."""
    first, second = draw(numbers), draw(numbers)
    if draw(st.booleans()) and "." in first:
        second = first + draw(st.sampled_from(["0", "1", "00001"]))
    elif draw(st.booleans()) and "frac" not in first and "/" not in first:
        second = draw(st.sampled_from([rf"\frac{{{first}}}{{1}}", f"{first}.0", f"0{first}".replace("0-", "-0")]))
    return first, second


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pairs())
def test_plain_numbers_are_judged_as_math_verify_judges_them(pair):
    answer, truth = pair
    verdict = screen(f"\\boxed{{{answer}}}", truth)
    if isinstance(verdict, Verdict) and verdict.reason != "equal":
        read = [parse(f"${text}$", parsing_timeout=None) for text in (truth, answer)]
        assert verdict.reward == float(verify(*read, timeout_seconds=None)), (answer, truth)


def test_most_pairs_of_plain_numbers_need_no_sympy():
    for answer, truth in [("7", "8"), ("1/2", r"\frac{1}{2}"), ("0.5", r"-\tfrac{1}{2}"), ("2.50", "5/2"), (".5", "1")]:
        assert isinstance(screen(f"\\boxed{{{answer}}}", truth), Verdict), (answer, truth)
    for answer, truth in [("0.333333", "1/3"), ("1/0", "5"), ("50\\%", "50"), ("1,000", "1000"), ("²", "2"), ("x", "1")]:
        assert not isinstance(screen(f"\\boxed{{{answer}}}", truth), Verdict), (answer, truth)


EXPRESSIONS = [
    ("16\\sqrt{3}", "16\\sqrt{2}"), ("\\sqrt{2}", "1.414"), ("3.14", "\\pi"), ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
    ("2\\pi", "6.283185"), ("10^{-7}", "2 \\cdot 10^{-7}"), ("e^{10}", "22026.4658"), ("50\\%", "0.5"), ("3-4i", "3+4i"),
    ("\\log_2 9", "3"), ("\\frac{1}{0}", "5"), ("2^{1009}", "2^{1008}"), ("\\infty", "-\\infty"), ("(1,2)", "3"),
    ("10^{200}(1+i)", "10^{307}(9+9i)"), ("n = 4", "\\frac{1"), ("n = 4", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("n = 4", "n = 5"), ("n = 4", "m = 4"), ("n = 4", "5"), ("n = 4", "4"), ("2n = 8", "n = 4"), ("2n = 8", "4"),
    ("a=b=3", "3"),
    ("f(x) = 2x+3", "f(x) = 3+2x"), ("f(x) = 2x+3", "f(x) = 2x+4"), ("f(x) = x^2", "x^2"), ("f(x) = f(x)+1", "f(x)"),
    ("x = 2x", "x = 3x"), ("y=2x+1", "2x+1"), ("y=2x+1", "2x-y+1=0"), ("x^2+y^2=4", "2"), ("EQ = FR", "FR = EQ"),
    ("x^2-1", "x^2+1"), ("(x+1)^2", "x^2+2x+1"), ("\\sqrt{x^2}", "|x|"), ("\\sqrt{x^2}", "x"),
    ("\\frac{x^2-1}{x-1}", "x+1"), ("\\tan x", "\\frac{\\sin x}{\\cos x}"),
    ("2^{n+474}-107", "2^{n+474}-655"), ("0.333333x", "\\frac{x}{3}"), ("(-1)^{2n}", "1"),
    ("\\sum_{k=1}^{n} k", "\\frac{n(n+1)}{2}"), ("\\int_0^1 x dx", "\\frac{1}{2}"), ("x!", "x"), ("\\ln(x-5)", "\\ln(5-x)"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "truth"), [*EXPRESSIONS, *[(truth, answer) for answer, truth in EXPRESSIONS]])
def test_values_that_lie_apart_are_those_of_expressions_that_math_verify_finds_different(answer, truth):
    read = [parse(f"${text}$", parsing_timeout=None) for text in (truth, answer)]
    assert compare(answer, truth).reward == float(verify(*read, timeout_seconds=None, allow_set_relation_comp=True))


def test_a_value_decides_before_sympy_looks_for_a_proof(monkeypatch):
    monkeypatch.setattr("math_verify.verify", lambda *args, **options: pytest.fail("math-verify was asked"))
    for answer, truth in [("x^2-17", "x^2+17"), ("k = 41", "k = 43"), ("g(x) = 7x", "g(x) = 11x"), ("13\\pi", "n = 19")]:
        assert compare(answer, truth).reason == "differs"


def test_the_grammar_read_in_two_stages_finds_the_same_trees(monkeypatch):
    """Against ANTLR's full-context prediction alone, on every answer and key of the hand-judged set."""
    import latex2sympy2_extended.latex2sympy2 as converter
    from latex2sympy2_extended.antlr_parser import PSParser

    from vold_nemo.rewards.grammar import read_in_two_stages

    def tree(text):
        parser = converter._Latex2Sympy(is_real=True).create_parser(text)
        try:
            return type(parser), parser.math().toStringTree(recog=parser)
        except Exception as error:
            return type(parser), str(error)

    read_in_two_stages()
    texts = [text for _, answer, truth, _ in CASES for text in (answer, truth) if text]
    found = [tree(text) for text in texts]
    assert {kind.__name__ for kind, _ in found} == {"TwoStageParser"}
    monkeypatch.setattr(converter, "PSParser", PSParser)
    assert [said for _, said in found] == [tree(text)[1] for text in texts]
