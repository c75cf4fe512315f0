"""What the student answered: one structure from the engine to the objective, and its log on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.data.prompts import Prompt


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


def write_rollouts(folder: str | Path, step: int, rollouts: Iterable[Rollout], prompts: Sequence[Prompt]) -> Path:
    """Write ``step_<step>.jsonl``, one rollout a line, whole or not at all.  recipes/verify.py reads it."""
    path = Path(folder) / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".jsonl.{os.getpid()}")
    with aside.open("w", encoding="ascii") as file:  # ASCII escapes: sampled text may hold lone surrogates
        for rollout in rollouts:
            prompt = prompts[rollout.prompt_index]
            record = {
                "id": prompt.id,
                "sample": rollout.sample,
                "reward": rollout.reward,
                "extracted": rollout.extracted,
                "reason": rollout.reason,
                "finish": rollout.finish_reason,
                "truth": prompt.answer,
                "verifier": prompt.verifier,
                "text": rollout.text,
                "response_ids": rollout.response_ids,
                "logprobs": [round(value, 6) for value in rollout.logprobs],
            }
            file.write(json.dumps(record) + "\n")
    aside.replace(path)
    return path
