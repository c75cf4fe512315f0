"""Answers to benchmark a verifier with: forms in the shares that a dataset has, numbers drawn at random.

``orz``        keys in the shares counted in 1,785 rows of orz-57k (docs/verifiers.md)
``orz_hard``   the same without keys that are plain numbers: what is left for SymPy
``forms``      the hand-judged answers, with other digits from the second pass on, so that no answer comes twice

The datasets' mixes are groups of five answers to a key, as GRPO asks them.  Supposed, not counted: half of the answers are
right, one right answer in seven is written in another form than its key, wrong ones fall on three values of the key's form, and
three answers in a hundred have no box.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from tests.rewards.agreement_cases import CASES

GROUP = 5
RIGHT, OTHER_FORM, NO_BOX = 0.5, 1 / 7, 0.03
NUMBERS = {"{a}": 65.8, "\\frac{{a}}{{b}}": 6.8, "{a}.{b}": 0.4}  # form of a key -> per cent of the keys
OTHERS = {
    "n = {a}": 5.0, "f(x) = {a}x + {b}": 1.4,
    "{a}n^2 - {b}n + {c}": 1.9, "\\frac{n(n+{a})}{{b}}": 1.9, "2^{n+{a}} - {b}": 1.9,
    "{a}\\sqrt{{b}}": 2.4, "\\frac{{a}\\sqrt{{b}}}{{c}}": 1.2, "{a}\\pi - {b}\\sqrt{3}": 1.2,
    "{n}": 1.8, "\\text{No}": 0.6, "({a}, {b})": 1.2, "({a}, {b}, {c})": 1.2, "{a}^\\circ": 2.2, "({A})": 0.8,
    "x \\geq {a}": 0.7, "{a}, {b}, {c}": 0.7, "{a} \\text{ cm}": 0.6, "{a}:{b}": 0.4, "{a},000": 0.1,
}  # fmt: skip
TEXT = "Let $x_{1}$ be the side. Then \\frac{x_{1}}{2} = \\sqrt{3}, so we look at the other one. " * 24  # 2,000 characters


def answers(mix: str, seed: int) -> Iterator[tuple[str, str]]:
    """(response, truth), without end."""
    chance = random.Random(f"{mix} {seed}")
    if mix == "forms":
        yield from _forms(chance, seed)
    forms = OTHERS if mix == "orz_hard" else NUMBERS | OTHERS
    while True:
        (form,) = chance.choices(list(forms), list(forms.values()))
        truth = _filled(form, chance)
        wrong = [_filled(form, chance) for _ in range(3)]
        for _ in range(GROUP):
            answer = chance.choice(wrong) if chance.random() > RIGHT else truth
            if answer is truth and chance.random() < OTHER_FORM:
                answer = _other_form(truth)
            yield TEXT + (answer if chance.random() < NO_BOX else f"\\boxed{{{answer}}}"), truth


def _filled(form: str, chance: random.Random) -> str:
    drawn = {"A": lambda: chance.choice("ABCDE"), "n": lambda: chance.choice("nkmp")}
    return re.sub(r"\{([abcAn])\}", lambda found: drawn.get(found[1], lambda: str(chance.randint(2, 999)))(), form)


def _other_form(key: str) -> str:
    """As a model might write what the key says."""
    if " = " in key:
        return key.partition(" = ")[2]
    for old, new in (("^\\circ", ""), ("\\frac", "\\dfrac"), (" \\text{ cm}", ""), (", ", ","), (",000", "000"), (" ", "")):
        if old in key:
            return key.replace(old, new)
    return f"x = {key}"


def _forms(chance: random.Random, seed: int) -> Iterator[tuple[str, str]]:
    """Passes over the hand-judged answers; each pass but the first of seed 0 exchanges the digits above 1."""
    digits, first = "23456789", seed == 0
    while True:
        table = str.maketrans(digits, digits if first else "".join(chance.sample(digits, len(digits))))
        first = False
        for _, answer, truth, _ in CASES:
            yield f"{TEXT}\\boxed{{{answer.translate(table)}}}", truth.translate(table)
