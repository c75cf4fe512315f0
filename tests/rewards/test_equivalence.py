r"""What a box says is decided before SymPy sees it, in bounded time; and what SymPy finds equal has equal values."""

import logging
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from vold_nemo.rewards.equivalence import compare, screen
from vold_nemo.rewards.verdict import Verdict

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

digits = st.integers(0, 120).map(str)
decimals = st.builds(lambda whole, part: f"{whole}.{part}", digits, st.integers(0, 10**7).map(str))
fractions = st.builds(
    lambda form, top, bottom: (form.format(top, bottom), Fraction(int(top), int(bottom))),
    st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}", r"\tfrac{{{}}}{{{}}}"]),
    digits, st.integers(1, 40).map(str),
)  # fmt: skip
plain = (digits | decimals).map(lambda text: (text, Fraction(text)))
numbers = st.builds(
    lambda sign, number: (sign + number[0], -number[1] if sign == "-" else number[1]),
    st.sampled_from(["", "", "-", "+"]), plain | fractions,
)  # fmt: skip


@st.composite
def pairs(draw):
    """Two numbers with their values; half of the time the second is the first in another form, or nearly."""
    first, second = draw(numbers), draw(numbers)
    text, value = first
    if draw(st.booleans()) and "." in text:
        more = draw(st.sampled_from(["0", "1", "00001"]))
        return first, (text + more, Fraction(text + more))
    if draw(st.booleans()) and "frac" not in text and "/" not in text and "." not in text:
        return first, draw(st.sampled_from([(rf"\frac{{{text}}}{{1}}", value), (f"{text}.0", value)]))
    return first, second


def judged(answer: str, key: str) -> Verdict:
    said = screen(f"\\boxed{{{answer}}}", key)
    return said if isinstance(said, Verdict) else compare(said.text, said.truth)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pairs())
def test_plain_numbers_are_equal_as_fractions_and_need_no_sympy(pair):
    (answer, value), (key, wanted) = pair
    said = screen(f"\\boxed{{{answer}}}", key)
    assert isinstance(said, Verdict), (answer, key)
    rounded = "." in key and "." not in answer  # a fraction may be what a long decimal key rounds
    assert said.reward == float(value == wanted) or (rounded and abs(value - wanted) < Fraction(1, 10**5)), (
        answer,
        key,
    )


# Expressions, and whether they are the same; both ways round.
EXPRESSIONS = [
    (r"16\sqrt{3}", r"16\sqrt{2}", 0), (r"\sqrt{2}", "1.414", 0), ("3.14", r"\pi", 0), (r"\frac{\sqrt{2}}{2}",
    r"\frac{1}{\sqrt{2}}", 1),
    ("10^{-7}", r"2 \cdot 10^{-7}", 0), ("3-4i", "3+4i", 0), (r"\log_2 9", "3", 0), (r"\frac{1}{0}", "5", 0),
    ("2^{1009}", "2^{1008}", 0), (r"\infty", r"-\infty", 0), ("(1,2)", "3", 0), ("10^{200}(1+i)", "10^{307}(9+9i)", 0),
    ("n = 4", r"\frac{1", 0), ("n = 4", "n = 5", 0), ("n = 4", "m = 4", 0), ("n = 4", "5", 0), ("n = 4", "4", 1),
    ("f(x) = 2x+3", "f(x) = 3+2x", 1), ("f(x) = 2x+3", "f(x) = 2x+4", 0), ("f(x) = x^2", "x^2", 1), ("x = 2x", "x = 3x", 0),
    ("y=2x+1", "2x+1", 1), ("y=2x+1", "2x-y+1=0", 1), ("x^2+y^2=4", "2", 0), ("EQ = FR", "FR = EQ", 1), ("x^2-1", "x^2+1", 0),
    ("(x+1)^2", "x^2+2x+1", 1), (r"\sqrt{x^2}", "|x|", 1), (r"\sqrt{x^2}", "x", 0), (r"\frac{x^2-1}{x-1}", "x+1", 1),
    (r"\tan x", r"\frac{\sin x}{\cos x}", 1), ("2^{n+474}-107", "2^{n+474}-655", 0), ("2^{n+474}-107", "-107+4^{n/2+237}", 1),
    ("0.333333x", r"\frac{x}{3}", 0), ("x!", "x", 0), (r"\ln(x-5)", r"\ln(5-x)", 0), (r"\cos^2 x", r"\frac{1+\cos 2x}{2}", 1),
    (r"\sin^2 x", r"(\sin x)^2", 1), (r"\arctan 1", r"\frac{\pi}{4}", 1), (r"e^{i\pi}", "-1", 1), ("a_1b_2",
    "b_2a_1", 1), ("xY", "Xy", 0),
    (r"2\frac{1}{2}x", r"\frac{5x}{2}", 1), ("f'(x)+1", "1+f'(x)", 1), ("f'(x)+1", "f(x)+1", 0), (r"\bar{x}+1", "1+x", 0),
    (r"\frac{10!}{7!}x", "720x", 1), (r"1-\frac{1}{10^{40}}", "1", 0), (r"\sqrt[3]{-8}", "2", 0), ("3x+2y=6", "6x+4y=12", 1),
    ("3x+2y=6", "3x+2y=12", 0), ("x+y>3", "3<y+x", 1), ("x+y>3", "-x-y>-3", 0), (r"\lfloor x\rfloor", "x", 0),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "key", "same"), EXPRESSIONS)
def test_expressions_are_the_same_where_their_values_are(answer, key, same):
    assert (judged(answer, key).reward, judged(key, answer).reward) == (same, same)


# Not read by math-verify as written: sides exchanged, a prime, e to an imaginary power, a mixed number before a letter.
UNREAD_BY_IT = {"EQ = FR", "f'(x)+1", r"e^{i\pi}", r"2\frac{1}{2}x"}


@pytest.mark.parametrize(
    ("answer", "key"), [case[:2] for case in EXPRESSIONS if case[2] and case[0] not in UNREAD_BY_IT]
)
def test_what_is_paid_of_expressions_math_verify_pays_too(answer, key):
    """A second reader and another proof; what it does not prove (powers of two bases, the half angle), SymPy's values must."""
    read = [parse(f"${text}$", parsing_timeout=None) for text in (key, answer)]
    if not verify(*read, timeout_seconds=None, allow_set_relation_comp=True):
        import sympy

        left, right = (sides[0] for sides in read)
        point = {
            letter: sympy.Rational(37, 23) + i
            for i, letter in enumerate(sorted(left.free_symbols | right.free_symbols, key=str))
        }
        assert abs((left - right).evalf(30, subs=point)) < 1e-20, (answer, key)


OPAQUE = [
    r"3\text{ is wrong}", r"4\to 3", r"3 \approx 17", r"3\text{ million}", r"3_{4}", r"\text{not }3",
    r"3\text{ or maybe }4", "4=3",
    "3'", "a=b=3", r"3\pmod 4", r"3,\ldots", r"3\text{ or more}", "3 dozen", "3?", r"3 \cdot 1", "2+1", r"\int_0^3 dx",
    "{3", "3)", r"3\ 3", "3..4",
    r"\text{three or }3", r"3 \mid 9", r"\max(3,1)", r"3^{\text{rd}}", "03:00", "3 % 2", "#3", r"3\\4", "3 != 4", "3k",
    "x3", r"\overline{3}",
    r"3\text{ pairs}", r"3\text{ more}", "3, 3", r"\{3\}", "[3]", r"\pm 3", "-3", "x > 3", "x \\ne 3", "x+1=3", "3=4",
    "3x", r"|3|+0",
]  # fmt: skip


@pytest.mark.parametrize("answer", OPAQUE)
def test_a_box_that_does_not_say_three_is_decided_without_sympy_or_not_paid(answer):
    assert judged(answer, "3").reward == 0.0


KEPT = [
    ("f(x)=c", "f(x) = c"), (r"(1, 1, \ldots, 1)", r"(1,1,\ldots,1)"), (r"4:30 \text{ p.m.}", r"\text{4:30 p.m.}"),
    ("5.", "5"), ("5", "5."),
    (r"\text{Yes.}", "Yes"), (r"\\frac{1}{2}", r"\frac{1}{2}"), (r"x=\\sqrt{2}", r"x = \sqrt{2}"), (r"a \,+\, b",
    "a+b"), (r"\text{ 12 }", "12"),
    (r"\left( 1 , 2 \right) .", "(1,2)"), (r"1, 2, \dots, n", r"1,2,\ldots,n"), (r"\mathrm{~cm}\,", r"\text{cm}"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "key"), KEPT)
def test_blanks_full_stops_text_and_doubled_backslashes_say_nothing(answer, key):
    said = screen(f"\\boxed{{{answer}}}", key)
    assert isinstance(said, Verdict) and said.reward == 1.0, said


def test_most_answers_need_no_worker():
    for answer, key in [("7", "8"), ("1/2", r"\frac{1}{2}"), ("2.50", "5/2"), ("x=4", "4"), ("(1,2)", "(2,1)"),
    (r"3\text{ cm}", "3"),
                        ("50\\%", "50"), ("1,000", "1000"), ("yes", "No"), ("0.333333", "1/3"), ("3:30", "1:10"),
                        ("n=4", "m=4")]:  # fmt: skip
        assert isinstance(screen(f"\\boxed{{{answer}}}", key), Verdict), (answer, key)
    for answer, key in [("2\\pi", "6"), ("x+1", "1+x"), (r"\sqrt{8}", r"2\sqrt{2}")]:
        assert not isinstance(screen(f"\\boxed{{{answer}}}", key), Verdict), (answer, key)


def test_values_decide_before_sympy_looks_for_a_proof(monkeypatch):
    monkeypatch.setattr("sympy.simplify", lambda *args, **options: pytest.fail("simplify was asked"))
    for answer, key in [
        ("x^2-17", "x^2+17"),
        ("k = 41\\pi", "k = 43\\pi"),
        ("g(x) = 7x", "g(x) = 11x"),
        ("13\\pi", "n = 19"),
    ]:
        assert compare(answer, key).reason == "differs"
    assert compare(r"x^2+3x+2", "(x+1)(x+2)").reward == 1


HOSTILE = {
    "brackets": "(" * 400 + "1" + ")" * 400, "open brackets": "(" * 900, "braces": "{" * 450 + "}" * 450,
    "commas": "1," * 450 + "1",
    "equals": "x=" * 400 + "1", "fractions": r"\frac" * 190, "bars": "|" * 900, "signs": "-" * 900,
    "roots": r"\sqrt" * 190 + "2",
    "subscripts": "a_" * 400 + "1", "colons": "1:" * 400 + "1", "relations": "x<" * 400 + "1",
    "both signs": r"\pm1," * 150 + "1",
    "powers": "2^" * 400 + "2", "overlines": r"\overline{" * 80 + "1" + "}" * 80, "texts": r"\text{a}" * 120,
    "or": r"1\text{ or }" * 80 + "2",
    "a wide matrix": r"\begin{pmatrix}" + "1&" * 400 + r"1\end{pmatrix}", "factorials": "9" + "!" * 900,
    "functions": r"\sin" * 190 + "x",
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_reading_a_hostile_box_takes_bounded_time(case):
    for key in ("3", "x=2", "(1,2)", "1,2", r"\frac{1}{2}", r"[1,\infty)", r"50\%", "3:30", "yes", "x=1,y=2", "y=2x+1"):
        began = time.process_time()
        said = screen(f"\\boxed{{{HOSTILE[case]}}}", key)
        assert time.process_time() - began < 0.5
        assert not isinstance(said, Verdict) or said.reward == 0.0
