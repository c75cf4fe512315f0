"""Our scorers and other tools' rule-based ones on the same hand-made answers, written into docs/benchmarks.md.

    python -m tests.evaluation.agreement_page PYTHON LMMS_EVAL_SOURCE VLMEVALKIT_SOURCE

``PYTHON`` belongs to an environment with numpy, tqdm and latex2sympy2 (see tests/evaluation/their_verdicts.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.evaluation import cases
from vold_nemo.config import RewardConfig
from vold_nemo.evaluation.benchmarks.question import Question
from vold_nemo.evaluation.scorers import read, score

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- python -m tests.evaluation.agreement_page writes from here -->", "<!-- to here -->"


def said(value: object) -> str:
    if isinstance(value, bool):
        return "right" if value else "wrong"
    return "nothing" if value is None else str(value)


def short(text: str) -> str:
    text = text.replace("\n", "⏎").replace("|", "\\|").replace("`", "'")
    return f"`{text}`" if len(text) <= 70 else f"`{text[:30]} … {text[-36:]}`"


def yes_or_no(theirs: list[dict]) -> list[str]:
    """The section on yes and no: how often each reads what a careful reader does, and where it does not."""
    tools, rows = list(theirs[0]), []
    agree: Counter[str] = Counter()
    for (response, truth, right), found in zip(cases.YES_NO, theirs, strict=True):
        other = {"Yes": "no", "No": "yes"}[truth]
        hand = None if right is None else truth.casefold() if right else other
        agree["here"] += read(response, Question("q", [], truth, scorer="yes_no")).extracted == hand
        agree.update(tool for tool in tools if found[tool] == hand)
        if any(found[tool] != hand for tool in tools):
            rows.append(f"| {short(response)} | {said(hand)} | " + " | ".join(said(found[tool]) for tool in tools) + " |")
    count = len(theirs)
    lines = ["", "### Yes or no", "", f"{count} answers as to MME's questions:", "", "| rules | as by hand |", "|---|---|"]
    lines += [f"| {tool} | {agree[tool]} of {count} |" for tool in ("here", *tools)]
    return [*lines, "", f"| answer | by hand | {' | '.join(tools)} |", "|---|---|" + "---|" * len(tools), *rows]


def main() -> None:
    python, lmms, kit = sys.argv[1:4]
    choices = [(r, cases.LENGTHS, letter) for r, letter in cases.CHOICE] + [
        (r, cases.COLOURS, letter) for r, letter in cases.OPTION_TEXTS
    ]
    asked = {"choice": [(r, options) for r, options, _ in choices], "math": [(r, t) for r, t, _ in cases.MATH],
             "yes_no": [r for r, _, _ in cases.YES_NO]}  # fmt: skip
    done = subprocess.run([python, str(Path(__file__).with_name("their_verdicts.py")), lmms, kit], input=json.dumps(asked),
                          capture_output=True, text=True, check=True)  # fmt: skip
    theirs = json.loads(done.stdout)
    lines = ["", "### One letter", "", f"{len(choices)} answers to questions of four options, read by hand:", ""]
    questions = [Question("q", [], "B", options=options) for _, options, _ in choices]
    ours = [read(r, q).extracted for (r, _, _), q in zip(choices, questions, strict=True)]
    tools = list(theirs["choice"][0])
    agree: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    rows = []
    for (response, _, letter), mine, found in zip(choices, ours, theirs["choice"], strict=True):
        agree["here"] += mine == letter
        for tool in tools:
            agree[tool] += found[tool] == letter
            guessed[tool] += letter is None and found[tool] is not None
        guessed["here"] += letter is None and mine is not None
        if any(found[tool] != letter for tool in tools):
            rows.append(
                f"| {short(response)} | {said(letter)} | " + " | ".join(said(found[tool]) for tool in tools) + " |"
            )
    lines += ["| rules | as by hand | reads an answer where there is none |", "|---|---|---|"]
    lines += [f"| {tool} | {agree[tool]} of {len(choices)} | {guessed[tool]} |" for tool in ("here", *tools)]
    lines += [
        "",
        "Where they differ from the reading by hand, which is also ours (`random`: drawn anew in each run):",
        "",
    ]
    lines += [f"| answer | by hand | {' | '.join(tools)} |", "|---|---|" + "---|" * len(tools), *rows]
    mine = score(
        [r for r, _, _ in cases.MATH],
        [Question("q", [], t, scorer="math") for _, t, _ in cases.MATH],
        RewardConfig(workers=1),
    )
    right = sum((v.reward == 1) == (hand is True) for v, (_, _, hand) in zip(mine, cases.MATH, strict=True))
    name = "lmms-eval MathVision"
    others = [found[name] for found in theirs["math"]]
    equal = sum((other is True) == (hand is True) for other, (_, _, hand) in zip(others, cases.MATH, strict=True))
    lines += ["", "### Free mathematical answers", "", f"{len(cases.MATH)} answers with their keys:", ""]
    lines += [
        "| rules | as by hand |",
        "|---|---|",
        f"| here | {right} of {len(mine)} |",
        f"| {name} | {equal} of {len(mine)} |",
        "",
    ]
    lines += ["| answer | key | by hand | " + name + " |", "|---|---|---|---|"]
    for (response, truth, hand), other in zip(cases.MATH, others, strict=True):
        if (other is True) != (hand is True):
            lines.append(f"| {short(response)} | {short(truth)} | {said(hand is True)} | {said(other)} |")
    lines += yes_or_no(theirs["yes_no"])
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n\n{END}" + rest.partition(END)[2])


if __name__ == "__main__":
    main()
