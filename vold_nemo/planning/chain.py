"""What a chain has left to do, decided before anything is touched: which stages are done, queued, or out of date, and why.

A stage is done again only if a key that it reads has changed, or if one before it is done again.  What it reads is what its
recipe declares (``config/reads.py``), less what says only how and where it runs (:data:`HOW`), and of some sections less than
all (:data:`NARROW`).  Nothing here talks to Slurm (``queue.py``) or writes a file (``submission.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vold_nemo.config import Config
from vold_nemo.config.reads import reads_of
from vold_nemo.config.tree import values
from vold_nemo.planning.queue import ALIVE, ENDING

if TYPE_CHECKING:  # launch.py makes wishes
    from vold_nemo.planning.launch import Stage

# Where, how long and how often: a finished stage would come to the same.
HOW = (
    "cluster", "limits", "logging", "profile", "checkpoint", "traces.shard", "traces.shards", "traces.memory_share",
    "evaluate.shard", "evaluate.shards", "data.cache",
)  # fmt: skip
# Of a section that stages share, what this recipe reads; a test holds it to what its code reaches.
NARROW: dict[tuple[str, str], tuple[str, ...]] = {
    ("sft", "traces"): ("traces.path",),
    ("sft", "data"): ("data.trace_mixture", "data.without", "data.max_rejected_share"),
    ("sft", "objective"): ("objective.kl.enabled", "objective.chunk_tokens"),
    ("report", "evaluate"): ("evaluate.image",),
    ("report", "data"): ("data.system_prompt", "data.instruction"),
    ("evaluate", "data"): ("data.system_prompt", "data.instruction", "data.max_rejected_share"),
    ("evaluate", "rollout"): ("rollout.vllm",),
    ("export_hf", "parallel"): (),  # any layout reads what any layout wrote; a chain's exports are one process
}
_SHOWN = 4  # changed keys that a line names


@dataclass(frozen=True)
class Wish:
    """A stage as the configuration has it now: ``script`` is its text, ``launch`` the lines for Slurm and the site in it."""

    stage: Stage
    reads: Mapping[str, Any]
    how: Mapping[str, Any]
    launch: Sequence[str]
    script: str
    run: str = ""  # folder of the run that it trains

    @property
    def digest(self) -> str:
        """Of what it reads: the mark that it leaves when it has succeeded."""
        return digest(self.reads)


@dataclass(frozen=True)
class Record:
    """A stage as it was last submitted.  ``after``: jobs of the same folder that had not ended by then."""

    job: str
    array: int
    reads: Mapping[str, Any]
    how: Mapping[str, Any]
    launch: Sequence[str]
    run: str = ""
    after: Sequence[str] = ()


@dataclass(frozen=True)
class Decision:
    """``action``: done | kept (it is queued or runs) | submit.  ``after_end``: jobs of its folder that it waits for."""

    wish: Wish
    action: str
    why: str
    job: str | None = None  # kept
    cancels: str | None = None
    after_stage: str | None = None  # whose job must succeed first
    after_end: tuple[str, ...] = field(default=())


def digest(reads: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(reads, sort_keys=True).encode()).hexdigest()[:32]


def keys(config: Config, recipe: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what ``recipe`` makes something else of, what only says how) of its keys, with their values."""
    declared = reads_of(recipe)
    wanted = [key for section in declared for key in NARROW.get((recipe, section), (section,))]
    reads, how = {}, {}
    for key, _, value in values(config):
        if _inside(key, HOW):
            if _inside(key, declared):
                how[key] = value
        elif _inside(key, wanted):
            reads[key] = value
    if recipe == "generate_traces":
        drop = ["data.mixture", "data.trace_mixture"]
        drop += [] if config.traces.verify else ["reward"]  # nothing is judged
        drop += ["data.prompts"] if config.data.trace_prompts is not None else []
        reads = {key: value for key, value in reads.items() if not _inside(key, drop)}
    return reads, how


def _inside(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``sft.steps 4 -> 8`` of each key that differs; one that only the other side has is ``(none)``."""
    missing = object()

    def said(value: Any) -> str:
        return "(none)" if value is missing else json.dumps(value)

    return [
        f"{key} {said(before.get(key, missing))} -> {said(now.get(key, missing))}"
        for key in sorted({*before, *now})
        if before.get(key, missing) != now.get(key, missing)
    ]


def decide(
    wishes: Sequence[Wish], selected: Collection[str], records: Mapping[str, Record], states: Mapping[str, str],
    done: Collection[str], marked: Collection[str] = (),
) -> Iterator[Decision]:  # fmt: skip
    """What becomes of each of the ``selected`` stages, in the chain's order.

    Args:
        states: of :func:`vold_nemo.planning.queue.states`.
        done: stages that have succeeded with what they would read now; ``marked``: with whatever they read then.
    """
    before: str | None = None  # the nearest stage above that is queued, whose job must succeed
    anew: str | None = None  # the nearest stage above that is submitted
    for wish in wishes:
        name, record = wish.stage.name, records.get(wish.stage.name)
        state = states.get(record.job) if record is not None else None
        alive = record if state in ALIVE else None
        if name not in selected:
            before = name if alive is not None else before
            continue
        changed = changes(record.reads, wish.reads) if record is not None else []
        late = [*changes(record.how, wish.how), *_lines(record.launch, wish.launch)] if record is not None else []
        if anew is None and name in done:
            yield Decision(wish, "done", "")
            continue
        if alive is not None and anew is None and not changed and not (late and state == "PENDING"):
            hint = f"; runs on without {_named(late)}" if late else ""
            yield Decision(wish, "kept", f"{state}, submitted before{hint}", job=alive.job)
            before = name
            continue
        if changed:
            why = _named(changed)
        elif anew is not None:
            why = f"{anew} is done before it"
        elif alive is not None:
            why = f"it has not begun, and runs otherwise: {_named(late)}"
        elif record is not None:
            why = f"job {record.job} {'is ending' if state == ENDING else 'ended'} without success"
        else:
            why = "done with other settings" if name in marked else "not done yet"
        waits = [job for job in (record.job, *record.after) if job in states] if record is not None else []
        yield Decision(
            wish, "submit", why, cancels=alive.job if alive else None, after_stage=before, after_end=tuple(waits)
        )
        before = anew = name


def _lines(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Lines for Slurm and exports that are new, or gone."""
    return [f"+ {line}" for line in now if line not in before] + [f"- {line}" for line in before if line not in now]


def _named(changed: Sequence[str]) -> str:
    more = f", and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return ", ".join(changed[:_SHOWN]) + more
