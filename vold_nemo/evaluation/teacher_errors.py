"""How often the teacher is wrong: its traces judged like a student's answers, source by source.

The paper trains on traces that nobody verified.  ``traces.verify`` judges them as they are written, drops none, and says what
share of them is wrong; a prompt without a true answer is counted and judged by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vold_nemo.config import RewardConfig
from vold_nemo.config.writing import replace_text
from vold_nemo.data.prompts import Prompt
from vold_nemo.data.traces import shard_path


@dataclass
class Tally:
    """Answers of one source.  ``right`` have reward 1; ``truncated`` reached the limit and are not judged."""

    answers: int = 0
    truncated: int = 0
    tokens: int = 0
    judged: int = 0
    right: int = 0

    def add(self, other: Tally) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class TraceReport:
    """What one shard's file holds, or all of them together."""

    prompts: int = 0
    sources: dict[str, Tally] = field(default_factory=dict)

    def note(self, row: dict[str, Any]) -> None:
        """Count a trace row, whether this run wrote it or an earlier one."""
        judged = row.get("reward") is not None
        tally = Tally(1, row["finish"] != "stop", row.get("response_tokens") or 0, judged, judged and row["reward"] == 1)
        self.sources.setdefault(row.get("source") or "", Tally()).add(tally)

    @property
    def total(self) -> Tally:
        total = Tally()
        for tally in self.sources.values():
            total.add(tally)
        return total

    def describe(self) -> list[str]:
        """The teacher's error rate in words, if anything was judged."""
        from vold_nemo.evaluation.statistics import wilson

        if not self.total.judged:
            return []
        lines = []
        shown = sorted(self.sources.items()) if len(self.sources) > 1 else []
        for name, tally in [("all", self.total), *shown]:
            if not tally.judged:
                lines.append(f"  {name}: no answers to judge by")
                continue
            wrong = wilson(tally.judged - tally.right, tally.judged)
            ended = tally.judged + tally.truncated
            lines.append(
                f"  {name}: {wrong.value:.1%} of {tally.judged:,} judged traces are wrong "
                f"({wrong.low:.1%} to {wrong.high:.1%}); "
                f"{(ended - tally.right) / ended:.1%} with the {tally.truncated:,} that reached the limit"
            )
        return ["teacher's error rate:", *lines]

    def as_dict(self) -> dict[str, Any]:
        total = self.total
        rate = 1 - total.right / total.judged if total.judged else None
        sources = {name: asdict(tally) for name, tally in sorted(self.sources.items())}
        return {"prompts": self.prompts, **asdict(total), "error_rate": rate, "sources": sources}

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> TraceReport:
        return cls(said["prompts"], {name: Tally(**tally) for name, tally in said["sources"].items()})


class TraceJudge:
    """Adds ``reward`` and ``reason`` to trace rows of ``prompts``; close it when done."""

    def __init__(self, config: RewardConfig, prompts: Sequence[Prompt]):
        from vold_nemo.rewards import Scorer

        self._scorer = Scorer(config)
        self._keys = {prompt.id: (prompt.answer, prompt.verifier) for prompt in prompts if prompt.answer is not None}
        self._scorer.start(self._scorer.check({verifier for _, verifier in self._keys.values()}))

    def __call__(self, rows: Sequence[dict[str, Any]]) -> None:
        asked = [row for row in rows if row["finish"] == "stop" and row["id"] in self._keys]
        verdicts = self._scorer.score([(row["response"], *self._keys[row["id"]]) for row in asked])
        for row, verdict in zip(asked, verdicts, strict=True):
            row["reward"], row["reason"] = verdict.reward, verdict.reason

    def close(self) -> None:
        self._scorer.close()


def write_report(report: TraceReport, traces: str | Path, shard: int, shards: int) -> TraceReport | None:
    """``traces.<shard>-of-<shards>.report.json`` beside the shard, and ``traces.report.json`` once every shard has one.

    Returns the report on all shards, None while some are missing.
    """
    folder, stem = Path(traces).parent, Path(traces).stem
    whole = folder / f"{stem}.report.json"
    names = [shard_path(folder / f"{stem}.json", number, shards).with_suffix(".report.json") for number in range(shards)]
    _write(names[shard], report)
    if shards == 1:
        return report
    if not all(name.is_file() for name in names):
        return None
    together = TraceReport()
    for name in names:
        part = TraceReport.from_dict(json.loads(name.read_text()))
        together.prompts += part.prompts
        for source, tally in part.sources.items():
            together.sources.setdefault(source, Tally()).add(tally)
    _write(whole, together)
    return together


def _write(path: Path, report: TraceReport) -> None:
    replace_text(path, json.dumps(report.as_dict(), indent=1) + "\n")
