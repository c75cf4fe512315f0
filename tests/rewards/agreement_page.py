"""Where the verifiers and judgements by hand differ: writes the tables of docs/verifiers.md.

    python -m tests.rewards.agreement_page

Rows come from judged_answers.jsonl and agreement_cases.jsonl; a test keeps the page equal to what this writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.rewards.agreement_cases import CASES, WHY
from tests.rewards.judged_answers import JUDGED, MISSED, PAID, Judged
from vold_nemo.config import RewardConfig
from vold_nemo.rewards import Scorer, Verdict

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verifiers.md"
BEGIN, END = "<!-- python -m tests.rewards.agreement_page writes from here -->", "<!-- to here -->"
Row = tuple[Judged, Verdict]


def judge() -> tuple[dict[str, list[Row]], dict[str, list[Verdict]]]:
    """Verdicts through the real pool: for each verifier on the judged answers that are its own, and on every known form."""
    scorer = Scorer(RewardConfig(workers=2, seconds=20.0))
    judged, forms = {}, {}
    for name in ("boxed", "math", "choice", "numeric"):
        own = [one for one in JUDGED if one.verifier == (name if name in ("choice", "numeric") else None)]
        judged[name] = list(zip(own, scorer.score([(one.response, one.key, name) for one in own]), strict=True))
    for name in ("boxed", "math"):
        forms[name] = scorer.score([(f"so \\boxed{{{answer}}}.", key, name) for _, answer, key, _ in CASES])
    scorer.close()
    return judged, forms


def paid(rows: Sequence[Row], right: bool) -> str:
    own = [verdict.reward for one, verdict in rows if one.right is right]
    return f"{sum(reward == 1 for reward in own):,} of {len(own):,}"


def code(text: str) -> str:
    r"""As code in a table cell: a bar would end the cell, and a box may be empty."""
    return f"`{text.replace('|', '&#124;')}`" if text else "(empty)"


def tables(judged: dict[str, list[Row]], forms: dict[str, list[Verdict]]) -> str:
    wrong = sum(not one.right for one in JUDGED)
    kinds = list(dict.fromkeys(one.kind for one, _ in judged["math"]))
    lines = [
        f"{len(JUDGED):,} answers to {len({one.key for one in JUDGED})} keys, {wrong:,} of them wrong by hand:", "",
        "| verifier | right answers that it pays | wrong answers that it pays |", "|---|---|---|",
        *(f"| {name} | {paid(rows, True)} | {paid(rows, False)} |" for name, rows in judged.items()), "",
        "Of these, by kind:", "",
        "| kind | right: boxed pays | right: math pays | wrong: math pays | wrong, for example |", "|---|---|---|---|---|",
        *(_kind(kind, judged) for kind in kinds), "",
        "### Right answers that `math` misses", "", "| answer | key | why |", "|---|---|---|",
        *(f"| {code(answer)} | {code(key)} | {why} |" for (answer, key), why in MISSED.items()), "",
    ]  # fmt: skip
    if PAID:
        lines += ["### Wrong answers that are paid", "", "| answer | key | why |", "|---|---|---|"]
        lines += [*(f"| {code(answer)} | {code(key)} | {why} |" for (answer, key), why in PAID.items()), ""]
    lines += [
        "### Forms that `math` knows and exact match does not", "",
        "| form | why exact match does not | answer for key |", "|---|---|---|", *_only_math(forms),
    ]  # fmt: skip
    return "\n".join(lines)


def _kind(kind: str, judged: dict[str, list[Row]]) -> str:
    exact, math = ([row for row in judged[name] if row[0].kind == kind] for name in ("boxed", "math"))
    wrong = [one for one, _ in math if not one.right]
    shown = wrong[:: max(1, len(wrong) // 3)][:3]
    examples = "; ".join(f"{code(one.answer)} for {code(one.key)}" for one in shown)
    return f"| {kind} | {paid(exact, True)} | {paid(math, True)} | {paid(math, False)} | {examples} |"


def _only_math(forms: dict[str, list[Verdict]]) -> list[str]:
    by_form: dict[str, list[str]] = {}
    for (form, answer, key, right), exact, math in zip(CASES, forms["boxed"], forms["math"], strict=True):
        if right and math.reward and not exact.reward:
            by_form.setdefault(form, []).append(f"{code(answer)} for {code(key)}")
    return [f"| {form} | {WHY[form]} | {'; '.join(pairs)} |" for form, pairs in by_form.items()]


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(*judge())}\n\n{END}{after}")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
