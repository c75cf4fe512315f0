"""A language model judges the answers that the rules of an evaluation cannot read, where ``evaluate.judge.url`` is set.

The endpoint and its cache, ``judge.jsonl``, are those of ``rewards/judge.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vold_nemo.config import JudgeConfig
from vold_nemo.data.prompts import Prompt, question_text
from vold_nemo.evaluation.answer_row import AnswerRow
from vold_nemo.rewards.judge import Judge


def judge_rows(rows: Sequence[AnswerRow], questions: dict[str, list[Prompt]], config: JudgeConfig, cache: Path) -> None:
    """Ask about the rows that ``config.reads`` names; write ``judge`` (the verdict or "failed") and ``reward`` into them.

    The rules' own reward stays in ``rule_reward``.  An answer on which the judge failed keeps it.
    """
    prompts = {(kind, p.id): p for kind, members in questions.items() for p in members}
    asked = [row for row in rows if config.reads == "all" or row.extracted is None]
    judge = Judge(config, cache, "evaluate.judge")

    def ask(row: AnswerRow) -> str | None:
        if not row.text.strip():
            return "none"
        return judge.ask(question_text(prompts[row.set, row.id]), str(row.truth), row.text)

    with ThreadPoolExecutor(config.parallel) as pool:
        for row, verdict in zip(asked, pool.map(ask, asked), strict=True):
            row.rule_reward = row.reward
            row.judge = verdict or "failed"
            if verdict is not None:
                row.reward = float(verdict == "right")
