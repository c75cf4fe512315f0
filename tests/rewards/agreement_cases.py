r"""Answers in the forms that models write, beside a truth, and whether they are right: judged by hand.

A line of agreement_cases.jsonl: form, content of the box, truth (``key``), right.  "Right" is what a mathematics teacher would
accept as the same answer to a question whose key is the truth; a decimal that only comes near an exact key is wrong.  ``orz``
and ``geo3k`` lines have the forms of these datasets' keys.  agreement_forms.jsonl says why exact match does not see that an
answer of a form is right.  The second table of docs/verifiers.md is made of both (agreement_page.py).
"""

from pathlib import Path

from tests.tables import table

_FILE = Path(__file__).with_suffix(".jsonl")
CASES = table(_FILE, "form", "answer", "key", "right")
WHY = dict(table(_FILE.with_name("agreement_forms.jsonl"), "form", "why"))
