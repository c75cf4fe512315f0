"""Where exact match, math-verify and a judgement by hand differ: writes the tables of docs/verifiers.md.

    python -m tests.rewards.agreement_page

Rows come from agreement_cases.jsonl; a test keeps the page equal to what this writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.rewards.agreement_cases import CASES, MISSED, WHY
from vold_nemo.config import RewardConfig
from vold_nemo.rewards import Scorer, Verdict

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verifiers.md"
BEGIN, END = "<!-- python -m tests.rewards.agreement_page writes from here -->", "<!-- to here -->"


def judge() -> dict[str, list[Verdict]]:
    """Verdicts of both verifiers on every case, through the real pool."""
    scorer = Scorer(RewardConfig(workers=2, seconds=20.0))
    items = [(f"so \\boxed{{{answer}}}.", truth) for _, answer, truth, _ in CASES]
    found = {name: scorer.score([(*item, name) for item in items]) for name in ("boxed", "math")}
    scorer.close()
    return found


def code(text: str) -> str:
    r"""As code in a table cell: a bar would end the cell, and a box may be empty."""
    return f"`{text.replace('|', '&#124;')}`" if text else "(empty)"


def tables(verdicts: dict[str, list[Verdict]]) -> str:
    judged = list(zip(CASES, verdicts["boxed"], verdicts["math"], strict=True))
    right, wrong = ([row for row in judged if row[0][3] is truth] for truth in (True, False))
    lines = [
        f"{len(CASES)} answers, {len(right)} right and {len(wrong)} wrong by hand:", "",
        "| verifier | right answers that it rewards | wrong answers that it rewards |", "|---|---|---|",
        *(_count(name, place, right, wrong) for name, place in (("boxed (exact match)", 1), ("math (math-verify)", 2))), "",
        "### Right answers that only math-verify sees", "",
        "| form | why exact match does not | answer for key |", "|---|---|---|", *_only_math(right), "",
        "### Right answers that neither sees", "", "| form | answer | key | why math-verify does not |", "|---|---|---|---|",
    ]  # fmt: skip
    missed = [case for case, _, math in right if not math.reward]
    lines += [f"| {form} | {code(answer)} | {code(key)} | {MISSED[answer, key]} |" for form, answer, key, _ in missed]
    return "\n".join(lines)


def _count(name: str, place: int, right: Sequence, wrong: Sequence) -> str:
    found = [sum(row[place].reward == 1 for row in rows) for rows in (right, wrong)]
    return f"| {name} | {found[0]} of {len(right)} | {found[1]} of {len(wrong)} |"


def _only_math(right: Sequence) -> list[str]:
    by_form: dict[str, list[str]] = {}
    for (form, answer, key, _), exact, math in right:
        if math.reward and not exact.reward:
            by_form.setdefault(form, []).append(f"{code(answer)} for {code(key)}")
    return [f"| {form} | {WHY[form]} | {'; '.join(pairs)} |" for form, pairs in by_form.items()]


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(judge())}\n\n{END}{after}")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
