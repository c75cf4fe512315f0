"""A step on disk: ``rollouts/step_<number>.jsonl``, one rollout a line.  recipes/show_rollouts.py and verify.py read it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vold_nemo.step.metrics import gaps
from vold_nemo.step.table import Step

LABELS = ("id", "prompt", "truth", "verifier", "text", "extracted", "reason")  # of what was asked, and of the verdict


def write(step: Step, file: Path, *, by_token: bool = True) -> Path:
    """Write ``file``, whole or not at all, from a step whose columns are whole.

    ``by_token``: also the ids, their log-probs, gaps and KL values, some 30 bytes a token.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f"{file.suffix}.{os.getpid()}")
    try:
        _write(step, aside, by_token)
        aside.replace(file)
    except OSError:
        aside.unlink(missing_ok=True)  # on a full disk it takes room that others need
        raise
    return file


def _write(step: Step, aside: Path, by_token: bool) -> None:
    step = step.to("cpu")
    gap, kl = gaps(step), step.column("kl")
    values = {name: step.column(name).tolist() for name in ("sample", "reward", "truncated", "scored", "trained", "advantage")}
    with aside.open("w", encoding="ascii") as lines:  # ASCII escapes: sampled text may hold lone surrogates
        for row in range(len(step)):
            span = slice(int(step.responses.offsets[row]), int(step.responses.offsets[row + 1]))
            mine = {name: column[row] for name, column in values.items()}
            record: dict[str, Any] = {name: step.labels[name][row] for name in LABELS if name in step.labels}
            record |= {
                "sample": mine["sample"], "reward": mine["reward"], "finish": "length" if mine["truncated"] else "stop",
                "response_tokens": span.stop - span.start, **_fate(mine, gap[span], kl[span]),
            }  # fmt: skip
            if by_token:
                record["response_ids"] = step.responses[row].tolist()
                record["logprobs"] = _rounded(step["engine"][span])
                if mine["trained"]:
                    record["gaps"] = _rounded(gap[span])
                    record["kl"] = _rounded(kl[span]) if mine["scored"] else None
                if "version" in step:
                    versions = set(step["version"][span].tolist())
                    record["version"] = versions.pop() if len(versions) == 1 else step["version"][span].tolist()
                if mine["sample"] == 0:  # the group's
                    record["prompt_ids"] = step.prompts[row // step.samples].tolist()
            lines.write(json.dumps(record) + "\n")


def _fate(mine: dict[str, Any], gap: Tensor, kl: Tensor) -> dict[str, Any]:
    """Sums and extremes; null where the step has no such number: a rollout is scored or not, trained on or not."""
    sizes = gap.abs() if mine["trained"] else gap[:0]
    formed = kl[~kl.isnan()].double() if mine["trained"] and mine["scored"] else kl[:0]
    return {
        "scored": mine["scored"],
        "trained": mine["trained"],
        "advantage": round(mine["advantage"], 6) if mine["trained"] else 0.0,
        "gap_mean": _number(sizes.mean(), 9) if len(sizes) else None,
        "gap_max": _number(sizes.max(), 9) if len(sizes) else None,
        "kl_sum": round(formed.sum().item(), 6) if mine["trained"] and mine["scored"] else None,
        "kl_tokens": len(formed),
    }


def _number(value: float | Tensor, digits: int = 6) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else round(float(value), digits)


def _rounded(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _known(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def read(file: Path) -> Step:
    """The step that was written with ``by_token``: ids, the engine's log-probs, gaps as ``trainer``, KL, rewards, labels.

    Raises:
        ValueError: with the file: no line, a line that is no rollout with its tokens, or groups of different sizes.
    """
    try:
        return _read([json.loads(line) for line in file.read_text(encoding="ascii").splitlines()])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no step with its tokens: {type(error).__name__} {error}") from None


def _read(records: list[dict[str, Any]]) -> Step:
    samples = max(record["sample"] for record in records) + 1
    prompts = [record["prompt_ids"] for record in records if record["sample"] == 0]
    step = Step.of(
        prompts, [record["response_ids"] for record in records], samples,
        {name: [record.get(name) for record in records] for name in LABELS},
        engine=[_known(record["logprobs"]) for record in records],
        **{name: [record[name] for record in records] for name in ("sample", "reward", "scored", "trained", "advantage")},
        truncated=[record["finish"] == "length" for record in records],
    )  # fmt: skip
    nothing = [[math.nan] * record["response_tokens"] for record in records]
    gap = [record.get("gaps") or empty for record, empty in zip(records, nothing, strict=True)]
    kl = [record.get("kl") or empty for record, empty in zip(records, nothing, strict=True)]
    step["trainer"] = step["engine"] + torch.tensor([value for row in gap for value in _known(row)])
    step["version"] = [
        version for record in records
        for version in _each(record.get("version", 0), record["response_tokens"])
    ]  # fmt: skip
    step["kl"] = [value for row in kl for value in _known(row)]
    return step


def _each(version: int | list[int], count: int) -> list[int]:
    return [version] * count if isinstance(version, int) else version
