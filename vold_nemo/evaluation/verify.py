"""Judge the answers in a file.

    <verify.path>/verdicts.jsonl    every row as it was read, with reward, extracted, reason and verifier
                  rejected.jsonl    rows without a response, a truth or a verifier that exists
                  diagnosis.json    the counts of the table that is printed
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vold_nemo.config import AnswerFieldsConfig, Config, ConfigError, DatasetConfig
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.data.rejected import Rejected
from vold_nemo.data.rows import Absent, count_rows, dataset_files, pick, read_rows
from vold_nemo.rewards import Scorer, Verdict
from vold_nemo.rewards.key_text import scalar_text, unwrapped
from vold_nemo.rewards.names import FOREIGN

TOGETHER = 2048  # answers that are judged, written and shown at a time
REASONS_SHOWN = 12


@dataclass
class Tally:
    """One verifier's answers.  ``right`` are those with reward 1."""

    answers: int = 0
    right: int = 0
    reward: float = 0.0
    parsed: int = 0
    timeouts: int = 0
    errors: int = 0

    def add(self, verdict: Verdict) -> None:
        self.answers += 1
        self.right += verdict.reward == 1
        self.reward += verdict.reward
        self.parsed += verdict.extracted is not None
        self.timeouts += verdict.trouble == "time-out"
        self.errors += verdict.trouble == "error"


@dataclass
class Diagnosis:
    """What a file of answers looks like to its verifiers."""

    verifiers: dict[str, Tally] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)  # reason -> answers
    first: dict[str, str] = field(default_factory=dict)  # reason -> id of the first row with it
    raised: int = 0  # rows that had a lower reward before
    lowered: int = 0
    unchanged: int = 0
    rejected: int = 0
    seconds: float = 0.0

    def add(self, name: str, verifier: str, verdict: Verdict, before: Any) -> None:
        self.verifiers.setdefault(verifier, Tally()).add(verdict)
        self.reasons[verdict.reason] = self.reasons.get(verdict.reason, 0) + 1
        self.first.setdefault(verdict.reason, name)
        if isinstance(before, int | float):
            self.raised += verdict.reward > before
            self.lowered += verdict.reward < before
            self.unchanged += verdict.reward == before

    def table(self) -> str:
        """For a terminal: a line for each verifier, then for each of the most frequent reasons."""
        lines = [f"{'verifier':<28}{'answers':>9}{'right':>9}{'mean reward':>13}{'parsed':>9}{'time-outs':>11}{'errors':>8}"]
        for name, tally in sorted(self.verifiers.items()):
            share, mean, parsed = (x / tally.answers for x in (tally.right, tally.reward, tally.parsed))
            lines.append(
                f"{name:<28}{tally.answers:>9,}{share:>9.1%}{mean:>13.4f}{parsed:>9.1%}{tally.timeouts:>11,}{tally.errors:>8,}"
            )
        lines += ["", f"{'reason':<60}{'answers':>9}  first in"]
        by_count = sorted(self.reasons.items(), key=lambda pair: -pair[1])
        for reason, count in by_count[:REASONS_SHOWN]:
            short = reason if len(reason) < 60 else reason[:56] + "..."
            lines.append(f"{short:<60}{count:>9,}  {self.first[reason]}")
        if hidden := by_count[REASONS_SHOWN:]:
            lines.append(f"{f'{len(hidden)} other reasons':<60}{sum(count for _, count in hidden):>9,}")
        before = self.raised + self.lowered + self.unchanged
        if before:
            lines += ["", f"{before:,} rows had a reward: {self.raised:,} are raised, {self.lowered:,} lowered"]
        return "\n".join(lines)


def dataset_of(config: Config) -> DatasetConfig:
    """The file of answers, read as any data set is.

    Raises:
        ConfigError: none is named.
    """
    options = config.verify
    if options.answers is None:
        raise ConfigError("verify.answers", None, "a file of answers", "give verify.answers=rollouts/step_000010.jsonl")
    return DatasetConfig(path=options.answers, split=options.split, limit=options.limit)


def first_answers(config: Config, rejected: Rejected, count: int) -> int:
    """How many of the first answers, ``count`` at most, could be judged; nothing is judged, and no process started.

    Raises:
        ConfigError: a column that they do not have, a verifier that does not exist, a file that cannot be read.
    """
    scorer = Scorer(config.reward)
    scorer.check([None])
    dataset = dataset_of(config)
    usable = sum(1 for _ in islice(_answers(dataset, config.verify.fields, scorer, rejected), count))
    if usable < count:  # these were all
        _check(usable + rejected.count(), rejected, dataset)
    return usable


def _check(total: int, rejected: Rejected, dataset: DatasetConfig) -> None:
    if total == 0:
        raise ConfigError("verify.answers", dataset.path, "at least one row", "an empty file: correct the path")
    rejected.check(total, dataset.path, fields="verify.fields")


def verify(config: Config) -> Diagnosis:
    """Read, judge, write; shows one progress bar.

    Raises:
        ConfigError: no answers, or more bad rows than ``data.max_rejected_share``.
    """
    from tqdm import tqdm

    options, started, dataset = config.verify, time.monotonic(), dataset_of(config)
    folder = Path(options.path)
    with _own_keys():
        dataset_files(dataset)  # before processes are started
    rejected = Rejected(folder / "rejected.jsonl", config.data.max_rejected_share, key="verify.path")
    scorer = Scorer(config.reward)
    scorer.start(scorer.check([None]))
    target, found = folder / "verdicts.jsonl", Diagnosis()
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"verdicts.jsonl.{os.getpid()}"
    rows = _answers(dataset, options.fields, scorer, rejected)
    try:
        # ASCII escapes: answers may hold lone surrogates
        with aside.open("w", encoding="ascii") as file, tqdm(total=count_rows(dataset), unit=" answers") as bar:
            while part := list(islice(rows, TOGETHER)):
                verdicts = scorer.score([item for _, _, item in part])
                for (name, row, (_, _, verifier)), verdict in zip(part, verdicts, strict=True):
                    found.add(name, verifier, verdict, row.get("reward"))
                    said = {"reward": verdict.reward, "extracted": verdict.extracted, "reason": verdict.reason}
                    file.write(json.dumps({**row, **said, "verifier": verifier}, default=str) + "\n")
                bar.update(len(part))
        os.replace(aside, target)
    finally:
        scorer.close()
        aside.unlink(missing_ok=True)
    found.rejected, found.seconds = rejected.count(), time.monotonic() - started
    with writing("verify.path", folder):
        replace_text(folder / "diagnosis.json", json.dumps(asdict(found), indent=1) + "\n")
    _check(found.rejected + sum(found.reasons.values()), rejected, dataset)
    return found


def _answers(
    dataset: DatasetConfig, fields: AnswerFieldsConfig, scorer: Scorer, rejected: Rejected
) -> Iterator[tuple[str, dict, tuple[str, str, str]]]:
    """(id, row, (response, truth, verifier)) of the usable rows."""
    known: dict[str, str | None] = {}  # verifier -> what is wrong with it
    must = {"response": fields.response, "truth": fields.truth}
    absent = Absent("verify.fields", str(dataset.path), must, {})
    for number, row in _rows(dataset, rejected):
        absent.see(row)
        response, truth = pick(row, fields.response), pick(row, fields.truth)
        name = pick(row, fields.id) if fields.id else None
        verifier = (pick(row, fields.verifier) if fields.verifier else None) or scorer.config.verifier
        reason = None
        if response is None or truth is None:
            reason = "response: missing" if response is None else "truth: missing"
        elif not isinstance(response, str):
            reason = f"response: {type(response).__name__} instead of a string"
        elif (key := _key(truth)) is None or not key:
            reason = "truth: missing" if key is None else "truth: empty"
            if isinstance(truth, bool | list | dict):
                reason = f"truth: {type(truth).__name__} instead of a string or number"
        else:
            if str(verifier) not in known:
                known[str(verifier)] = _wrong_with(str(verifier), scorer)
            reason = known[str(verifier)]
        if reason is not None:
            rejected.add(number, reason, row, str(dataset.path), name=str(name) if name is not None else None)
            continue
        content = row if isinstance(row, dict) else {"content": row}
        key = key if scorer.names.is_own(str(verifier)) else unwrapped(key)
        yield str(number if name is None else name), content, (response, key, str(verifier))
    absent.missed(must)


def _rows(dataset: DatasetConfig, rejected: Rejected) -> Iterator[tuple[int, Any]]:
    with _own_keys():
        yield from ((number, row) for number, row, _ in read_rows(dataset, rejected))


@contextlib.contextmanager
def _own_keys() -> Iterator[None]:
    """Errors of the file under this verb's keys."""
    try:
        yield
    except ConfigError as error:
        name = {"data path": "verify.answers", "data split": "verify.split"}.get(error.key, error.key)
        raise ConfigError(name, error.value, error.allowed, error.mend) from error


def _key(truth: Any) -> str | None:
    """The truth as training would read it; None for a gap and for what is no key."""
    try:
        return scalar_text(truth)
    except TypeError:
        return None


def _wrong_with(verifier: str, scorer: Scorer) -> str | None:
    try:
        scorer.check([verifier])
    except ConfigError as error:
        if error.key == FOREIGN:
            return f"verifier: {str(error.value)[:60]!r} is code that the configuration does not name (reward.verifiers)"
        return f"verifier: {str(error.value)[:60]!r} does not exist"
    return None
