"""A chain put into the queue: decisions from records, marks and the queue; then jobs, and records of them.

    outputs/<name>/slurm/sft.sbatch      the script, chain.tsv the list of them
                         sft.done        written by the job when it has succeeded: digest of what it read
                         sft.json        as it was last submitted: its job, the keys it read, its lines for Slurm
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from vold_nemo.config import ConfigError
from vold_nemo.config.writing import replace_text, writing
from vold_nemo.planning import queue
from vold_nemo.planning.chain import Decision, Record, Wish, decide


def decisions(wished: Sequence[Wish], selected: Sequence[str], folder: Path) -> list[Decision]:
    """Read the records and the queue; nothing is written."""
    records = {wish.stage.name: record for wish in wished if (record := read_record(folder, wish.stage.name)) is not None}
    done = [w.stage.name for w in wished if _is_done(folder, w, records.get(w.stage.name))]
    marked = [w.stage.name for w in wished if any(folder.glob(f"{w.stage.name}*.done"))]
    chosen = selected or [wish.stage.name for wish in wished]
    return list(decide(wished, chosen, records, queue.states(), done, marked))


def read_record(folder: Path, name: str) -> Record | None:
    """None, too, for one that cannot be read: its stage is then taken for one that was never submitted."""
    try:
        return Record(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_done(folder: Path, wish: Wish, record: Record | None) -> bool:
    """Every job of the stage has left the mark of what it would read now; as many jobs as there were when it was submitted."""
    for count in {wish.stage.array, record.array if record is not None else 0}:
        names = [f"{wish.stage.name}.{index}" for index in range(count)] if count else [wish.stage.name]
        if all(_text(folder / f"{name}.done") == wish.digest for name in names):
            return True
    return False


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def refusals(decided: Sequence[Decision]) -> Iterator[ConfigError]:
    """What Slurm says against the scripts that would be submitted; the same words once."""
    said: dict[str, list[str]] = {}
    for decision in decided:
        if decision.action == "submit" and (reason := queue.refusal(decision.wish.script)) is not None:
            said.setdefault(reason, []).append(decision.wish.stage.name)
    for reason, names in said.items():
        mend = "correct cluster.launch (account, partition, qos, constraint, gres, time), or cluster.gpus and gpus_per_node"
        yield ConfigError(f"sbatch --test-only of {', '.join(names)}", reason, "scripts that Slurm takes", mend)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One submission of a chain at a time."""
    with writing("outputs", folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "chain.lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError("outputs", str(folder), "a chain that nobody else submits just now", "call again") from None
        except OSError:
            pass  # a file system without locks
        yield


def submit(decided: Sequence[Decision], folder: Path) -> Iterator[str]:
    """Cancel and submit the scripts in ``folder``; a line for each stage as it is done."""
    jobs: dict[str, str] = {}
    for decision in decided:
        wish, name = decision.wish, decision.wish.stage.name
        if decision.action != "submit":
            jobs |= {name: decision.job} if decision.job else {}
            yield describe(decision)
            continue
        if decision.cancels:
            queue.cancel(decision.cancels)
        for mark in (folder / f"{name}.done", *folder.glob(f"{name}.[0-9]*.done")):
            mark.unlink(missing_ok=True)
        before = jobs.get(decision.after_stage or "") or _job(folder, decision.after_stage)
        number = queue.submit(str(folder / f"{name}.sbatch"), before, decision.after_end)
        record = Record(
            number, wish.stage.array, wish.reads, wish.how, wish.launch, wish.run, list(decision.after_end)
        )  # fmt: skip
        with writing("outputs", folder):
            replace_text(folder / f"{name}.json", json.dumps(dataclasses.asdict(record), indent=1) + "\n")
        jobs[name] = number
        tail = f" after {before}" if before else ""
        tail += f" once {', '.join(decision.after_end)} has ended" if decision.after_end else ""
        yield f"{name:<12} {number}{tail} ({decision.why})"


def _job(folder: Path, name: str | None) -> str | None:
    record = read_record(folder, name) if name is not None else None
    return record.job if record is not None else None


def describe(decision: Decision) -> str:
    """A decision in a line, as ``--diff`` has it."""
    name = f"{decision.wish.stage.name:<12} "
    if decision.action == "done":
        return f"{name}done"
    if decision.action == "kept":
        return f"{name}{decision.job} ({decision.why})"
    cancelled = f"would cancel {decision.cancels} and submit it again" if decision.cancels else "would be submitted"
    others = [job for job in decision.after_end if job != decision.cancels]
    waits = f", after {', '.join(others)} has ended" if others else ""
    return f"{name}{cancelled}{waits}: {decision.why}"
