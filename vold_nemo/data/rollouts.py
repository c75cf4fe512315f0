"""What the student answered: one structure from the engine to the objective, and its log on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vold_nemo.data.prompts import Prompt, question_text


@dataclass
class Rollout:
    """One sampled answer.  The K answers to one prompt are a group and share ``prompt_index``."""

    prompt_index: int  # index into the dataset's prompts
    sample: int  # 0 .. K-1
    prompt_ids: list[int]
    response_ids: list[int]  # with the end-of-sequence id, if the answer ended
    logprobs: list[float]  # of the sampled tokens, as the engine saw them
    text: str  # the response without special tokens
    finish_reason: str  # stop | length
    teacher: int = 0  # whose the prompt is (data/prompts.teacher_number)
    reward: float = 0.0
    reason: str = ""  # the verifier's
    extracted: str | None = None  # what the verifier took for the answer

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.response_ids


@dataclass
class TokenRecord:
    """What the step found out about one trained rollout, token by token of its response."""

    gaps: list[float]  # the trainer's log-prob minus the engine's, under the weights that sampled
    kl: list[float | None] | None  # the KL estimator's value, None where a token carries none; no list: not scored
    advantage: float = 0.0  # as the loss read it


@dataclass
class Fate:
    """What became of one rollout."""

    scored: bool
    trained: bool
    tokens: TokenRecord | None = None  # None: not trained on


def write_rollouts(
    folder: str | Path, step: int, rollouts: Sequence[Rollout], prompts: Sequence[Prompt],
    fates: Sequence[Fate] | None = None, *, by_token: bool = True,
) -> Path:  # fmt: skip
    """Write ``step_<step>.jsonl``, one rollout a line, whole or not at all.  recipes/show_rollouts.py and verify.py read it.

    ``by_token``: also the ids, their log-probs, gaps and KL values, some 30 bytes a token.
    """
    path = Path(folder) / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".jsonl.{os.getpid()}")
    with aside.open("w", encoding="ascii") as file:  # ASCII escapes: sampled text may hold lone surrogates
        for row, rollout in enumerate(rollouts):
            prompt = prompts[rollout.prompt_index]
            record = {
                "id": prompt.id,
                "sample": rollout.sample,
                "prompt": question_text(prompt),
                "reward": rollout.reward,
                "extracted": rollout.extracted,
                "reason": rollout.reason,
                "finish": rollout.finish_reason,
                "truth": prompt.answer,
                "verifier": prompt.verifier,
                "text": rollout.text,
                "response_tokens": len(rollout.response_ids),
                **(_fate(fates[row]) if fates is not None else {}),
            }
            if by_token:
                record["response_ids"] = rollout.response_ids
                record["logprobs"] = _rounded(rollout.logprobs)
                tokens = fates[row].tokens if fates is not None else None
                if tokens is not None:
                    record["gaps"], record["kl"] = _rounded(tokens.gaps), _rounded(tokens.kl)
            file.write(json.dumps(record) + "\n")
    aside.replace(path)
    return path


def _fate(fate: Fate) -> dict[str, Any]:
    """Sums and extremes; null where the step has no such number: a rollout is scored or not, trained on or not."""
    tokens = fate.tokens
    advantage = 0.0 if tokens is None else round(tokens.advantage, 6)
    found: dict[str, Any] = {"scored": fate.scored, "trained": fate.trained, "advantage": advantage}
    sizes = [abs(gap) for gap in tokens.gaps] if tokens is not None else []
    found["gap_mean"] = round(sum(sizes) / len(sizes), 9) if sizes else None
    found["gap_max"] = round(max(sizes), 9) if sizes else None
    kl = [value for value in tokens.kl if value is not None] if tokens is not None and tokens.kl is not None else []
    found["kl_sum"] = round(sum(kl), 6) if fate.scored and tokens is not None else None
    found["kl_tokens"] = len(kl)
    return found


def _rounded(values: Sequence[float | None] | None) -> list[float | None] | None:
    return None if values is None else [None if value is None else round(value, 6) for value in values]
