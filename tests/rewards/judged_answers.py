r"""Answers of models' kinds beside a key, a good half of them wrong on purpose, judged by hand before a verifier saw
them.

A line of judged_answers.jsonl: kind, content of the box (``answer``; or the whole ``response``), ``key``, ``right``.
Right is what says the same as the key to whoever reads the box alone: where nobody could say, it is wrong.
``verifier`` marks what is judged by the rules of that verifier (a tolerance, a letter announced); all other lines are
judged for ``boxed`` and ``math``.
"""

from pathlib import Path
from typing import NamedTuple

from tests.tables import rows


class Judged(NamedTuple):
    kind: str
    answer: str
    response: str
    key: str
    right: bool
    verifier: str | None


def _judged(row: dict) -> Judged:
    response = row.get("response") or f"so \\boxed{{{row['answer']}}}."
    return Judged(
        row["kind"], row.get("answer") or row["response"], response, row["key"], row["right"], row.get("verifier")
    )


JUDGED = [_judged(row) for row in rows(Path(__file__).with_suffix(".jsonl"))]
# Right answers that a verifier takes for wrong, and why; and wrong ones that it pays: none.
MISSED = {
    ("C(10,5)=252", "252"): "`C(10,5)` may be a point",
    ("rr", "r^2"): "letters that stand together are a word",
    ("|x-2|<4", "-2 < x < 6"): "an absolute value is not resolved",
    ("|k|>1", r"k < -1 \text{ or } k > 1"): "an absolute value is not resolved",
}
PAID: dict[tuple[str, str], str] = {}
