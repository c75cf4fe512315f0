r"""Keys as they stand in data: what wraps them comes off where that is certain, and a report says what a verifier can meet."""

from decimal import Decimal

import pytest

from vold_nemo.rewards.key_forms import form_of, report_keys
from vold_nemo.rewards.key_text import number_text, unwrapped

PLAIN = {
    r"\boxed{5}": "5", r"$\boxed{\frac{1}{2}}$": r"\frac{1}{2}", r"\boxed{$x$}": "x", "$5$": "5", "$$ x^2 $$": "x^2",
    r"\(3\)": "3", r"\[4\]": "4", "He had 10 pens.\n#### 10": "10", "#### -1,000": "-1,000",
    "So it is $\\boxed{7}$.\nDone.": "7",
    "x = \\boxed{(1, 2]}": "(1, 2]", "<answer> B </answer>": "B",
    '["\\\\pi"]': r"\pi", r"\boxed{\text{a \{ b}}": r"\text{a \{ b}",
}  # fmt: skip
LEFT = ["$5", r"\$5", "$3$ and $4$", r"\boxed{1} or \boxed{2}", '["1", "2"]', "[1, 2]", "(3)", "#### 1\n#### 2",
        "a #### b", "$", r"\boxed{}", r"\boxed{5", "$$", "", r"5\text{ cm}", "<answer></answer>", "{5}",
        "$1 to $2"]  # fmt: skip


@pytest.mark.parametrize("key", PLAIN)
def test_what_wraps_a_key_whole_comes_off(key):
    assert unwrapped(key) == PLAIN[key]


@pytest.mark.parametrize("key", LEFT)
def test_what_may_mean_something_else_stays(key):
    assert unwrapped(key) == key


def test_numbers_are_written_as_people_write_them():
    numbers = (5.0, -0.0, 0.1, 1e20, 1e22, 7, Decimal("2.50"), Decimal("100"), float("nan"), float("-inf"))
    written = [number_text(number) for number in numbers]
    assert written == ["5", "0", "0.1", "1" + "0" * 20, "1e+22", "7", "2.5", "100", None, None]


FORMS = {
    "integer": ["431", "-7", "007"], "fraction, decimal": [r"\frac{300}{7}", "73.5", "1/2", r"\frac12", r"1.2 \times 10^{3}"],
    "equation": ["n = 4", "f(x) = x^2"], "expression with letters": ["2^{n+1} - 2(n+1)", r"\frac{n+1}{4n-2}"],
    "constant": [r"48\pi - 36\sqrt{3}", "8!", r"2 \sqrt { 221 }"], "word, symbol": ["n", r"\text{No}", "Tuesday"],
    "point, interval": ["(28, -48), (2, 56)", r"[-1, \infty)"], "degrees": [r"60^\circ", "45°"], "letter": ["B"],
    "choice": ["(C)", "B.", r"(D) \ 1"], "relation": [r"c \geq 2"], "list": ["0, 3, 4", r"1 \text{ and } 27"], "ratio": ["4:1"],
    "unit": [r"995\text{ dollars}", r"15 \, \text{cm}^2"], "thousands": ["500,000", "1{,}000"], "money": ["$5", r"\$1,234.50"],
    "percentage": [r"50\%"], "several lines": ["a\nb"], "wrapped": ["$3$ and $4$", "a #### b", '["1","2"]'],
    "sentence": ["He had ten pens at the end of the day."], "stands for nothing": ["nan", "None", "N/A", ""],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_known(form):
    assert [form_of(key) for key in FORMS[form]] == [form] * len(FORMS[form])


def test_the_report_says_what_the_verifier_can_reward_and_which_one_fits_better():
    keys = ["7"] * 60 + ["n = 4"] * 30 + ["a\nb"] * 10
    (report,) = report_keys(((str(i), key, None) for i, key in enumerate(keys)), "boxed")
    forms, rewarded = report.describe()
    assert forms == "keys: integer 60.0%, equation 30.0%, several lines 10.0%"
    assert rewarded == "boxed could ever reward 90 of 100, 30 of them only as the key is written, letter by letter"
    hopeless, better = report.warnings()
    assert hopeless.startswith("10 keys: several lines (first: 90)")
    assert "math fits these keys better than boxed: 30 of 100" in better
    for verifier, keys, fits in (
        ("boxed", ["7"] * 9, None), ("math", ["n = 4"] * 9, None), ("math", ["(A)"] * 9, "choice"),
        ("numeric", ["n"] * 9, "boxed"),
        ("choice", ["7"] * 9, "boxed"), ("my.module:judge", ["n = 4"] * 9, None),
    ):  # fmt: skip
        (report,) = report_keys((("0", key, None) for key in keys), verifier)
        assert report.better() == fits, (verifier, keys)


def test_rows_that_name_their_verifier_are_reported_apart():
    rows = [("a", "7", None), ("b", "B", "choice"), ("c", "x", "choice"), ("d", None, None)]
    assert [(one.verifier, one.keys) for one in report_keys(rows, "boxed")] == [("choice", 2), ("boxed", 1)]
