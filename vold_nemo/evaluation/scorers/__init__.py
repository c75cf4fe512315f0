"""Rule-based scorers of benchmark answers: deterministic, without an API.

    choice     one letter                          score_choice
    letters    a set of letters                    score_letters
    number     a number, rounded or in tolerance   score_number
    list       a list of numbers                   score_list
    text       a short text, coordinates, a time   score_text
    open       MMMU's open questions               score_open
    math       a mathematical object               read_math, judged by the verifier `math` in a killable process
    yes_no     yes or no                           score_yes_no

``unparsed`` is a verdict without an extracted answer: it is wrong, and counted.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from vold_nemo.config import RewardConfig
from vold_nemo.evaluation.benchmarks.question import Question
from vold_nemo.evaluation.scorers.choice import score_choice, score_letters
from vold_nemo.evaluation.scorers.numbers import score_number
from vold_nemo.evaluation.scorers.texts import read_math, score_list, score_open, score_text, score_yes_no
from vold_nemo.rewards.verdict import Item, Verdict

RULES = 3  # raise it with every change of a rule: answers that were scored by other rules are scored again when they are read
SCORERS = ("choice", "letters", "number", "list", "text", "open", "math", "yes_no")


def read(response: str, question: Question) -> Verdict | Item:
    """The verdict, or what only the verifier `math` can decide."""
    truth = question.answer or ""
    match question.scorer:
        case "choice":
            return score_choice(response, truth, question.options, question.allowed())
        case "letters":
            return score_letters(response, truth, question.options, question.allowed())
        case "number":
            return score_number(response, truth, question.precision, question.tolerance)
        case "list":
            return score_list(response, truth)
        case "text":
            return score_text(response, truth)
        case "open":
            return score_open(response, truths_of(truth))
        case "math":
            return read_math(response, truth)
        case "yes_no":
            return score_yes_no(response, truth)
    raise ValueError(f"no scorer is called {question.scorer!r}")


def truths_of(truth: str) -> tuple[str, ...]:
    """MMMU writes several right answers as a Python list in a string."""
    if truth.startswith("["):
        try:
            found = ast.literal_eval(truth)
        except (ValueError, SyntaxError):
            return (truth,)
        return tuple(str(one) for one in found) or (truth,)
    return (truth,)


def score(responses: Sequence[str], questions: Sequence[Question], config: RewardConfig) -> list[Verdict]:
    """Verdicts in order; the mathematical ones are asked together, in worker processes with ``reward.seconds`` each."""
    from vold_nemo.rewards.scoring import score_answers

    found = [read(response, question) for response, question in zip(responses, questions, strict=True)]
    asked = [item for item in found if isinstance(item, Item)]
    answers = iter(score_answers(asked, config) if asked else ())
    return [next(answers) if isinstance(item, Item) else item for item in found]
