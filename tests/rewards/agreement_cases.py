r"""Answers in the forms that models write, beside a truth, and whether they are right: judged by hand.

A line of agreement_cases.jsonl: form, content of the box, truth (``key``), right.  "Right" is what a mathematics teacher would
accept as the same answer to a question whose key is the truth; a decimal that only comes near an exact key is wrong.  ``orz``
and ``geo3k`` lines have the forms of these datasets' keys.  ``missed`` says why math-verify 0.9.0 takes a right answer for
wrong; agreement_forms.jsonl, why exact match does not see that an answer of this form is right.  The tables of
docs/verifiers.md are made of both (agreement_page.py).
"""

from pathlib import Path

from tests.tables import rows, table

_FILE = Path(__file__).with_suffix(".jsonl")
CASES = table(_FILE, "form", "answer", "key", "right")
MISSED = {(row["answer"], row["key"]): row["missed"] for row in rows(_FILE) if "missed" in row}
WHY = dict(table(_FILE.with_name("agreement_forms.jsonl"), "form", "why"))
