"""What a rehearsal shows that must not be, and how far the planner is from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from vold_nemo.megatron.fp8 import TOLERANCE
from vold_nemo.planning import host, memory
from vold_nemo.planning.allocation import Placement
from vold_nemo.planning.memory import GIB, Met, Models, Phase
from vold_nemo.rehearsal.ledger import WORKSPACE
from vold_nemo.rehearsal.run import Rehearsal

# Of a training step: what is made in a phase has gone when another begins (columns of the table stay: they are small).
GONE_BY = {
    "probe": "student weights", "generate": "teacher", "logprobs": "sync", "teacher": "sync", "train": "sync",
    "sync": "validate", "validate": "agree", "agree": "checkpoint", "checkpoint": "export", "export": "done",
}  # fmt: skip
GONE_BY_IN_SFT = {"train": "agree", "agree": "checkpoint", "checkpoint": "export", "export": "done"}
# Libraries keep these for good: Transformer Engine one empty gradient a shape of weight, since autograd wants one although
# the products went into main_grad (`module/base.py: get_dummy_wgrad`).
KEPT = (WORKSPACE, "transformer_engine/pytorch/module/base.py")
WORKSPACES = 256 << 20  # bytes of matrix units and attention kernels, which the planner's reserve covers
LARGEST = 6  # places named of one finding


@dataclass(frozen=True)
class Violation:
    """One of them.  ``place``: a phase, or file and line."""

    kind: str
    what: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} ({self.place})"


@dataclass(frozen=True)
class Compared:
    """Peak of one phase, rehearsed and planned, in bytes and without the planner's reserve; ``parts``: the plan's."""

    phase: str
    rehearsed: int
    planned: int
    parts: dict[str, int]

    @property
    def deviation(self) -> float:
        return self.rehearsed / self.planned - 1


def _data_rank(layout) -> int:
    """Among the ranks that hold the same weights: context ranks are some of them."""
    return layout.data_rank * layout.context + layout.context_rank


def _planned(done: Rehearsal, models: Models) -> Iterator[Phase]:
    """The planner's phases on the pipeline stage that was rehearsed, for the micro-batches that were run."""
    met = Met(done.scored_tokens, done.micro_batches_run, _data_rank(done.layout))
    for phase in memory.phases(done.config, models, done.stage, done.world, met):
        if phase.at.stage == done.layout.pipeline_rank and phase.name != "export":
            yield phase


def compared(done: Rehearsal, models: Models) -> list[Compared]:
    """Each phase that the planner knows."""
    peaks, found = done.ledger.device.peaks, []
    for phase in _planned(done, models):
        if phase.name in peaks:
            parts = {name: size for name, size in phase.parts.items() if name != "reserve" and size}
            found.append(Compared(phase.name, peaks[phase.name].size, sum(parts.values()), parts))
    return found


def compared_on_host(done: Rehearsal, models: Models) -> list[Compared]:
    """The host memory of a checkpoint, which is where it is most; empty if none was reached."""
    config, layout, peaks = done.config, done.layout, done.ledger.host.peaks
    if layout is None or "checkpoint" not in peaks:
        return []
    at = Placement(
        layout.tensor, layout.pipeline, done.world // (layout.tensor * layout.pipeline), layout.pipeline_rank,
        _data_rank(layout), config.parallel.expert, config.parallel.virtual,
    )  # fmt: skip
    parts = host.parts(config, models, done.stage, at)
    return [Compared("checkpoint", peaks["checkpoint"].size, sum(parts.values()), parts)] if parts else []


def _stayed(done: Rehearsal, models: Models) -> Iterator[Violation]:
    """What the keys send away in a phase, and is there all the same."""
    for phase in _planned(done, models) if done.layout is not None else ():
        for name in ("gradients", "optimizer"):
            size = done.held_by_phase.get(phase.name, {}).get(name, 0)
            if size and name not in phase.parts:
                yield Violation("did not leave", f"{size / GIB:.2f} GiB of {name}", phase.name)


def violations(done: Rehearsal, models: Models, rows: list[Compared]) -> Iterator[Violation]:
    """Everything but what ended the rehearsal."""
    config, ledger, stage = done.config, done.ledger, done.stage
    planned: dict[str, int] = {}
    for phase in _planned(done, models) if done.layout is not None else ():
        planned = phase.parts | planned  # what each holder takes in the first phase that it stands in
    for name, size in done.held.items():
        # What is trained must be right to the byte; scales of FP8 weights may be padded.
        allowed = TOLERANCE * planned.get(name, 0) if name == "teacher" else 0
        if name in planned and abs(size - planned[name]) > allowed:
            what = f"{name} take {size:,} bytes, {planned[name]:,} were planned"
            yield Violation("other bytes than planned", what, "held all the time")
    for problem in ledger.problems.values():
        yield Violation(problem.kind, problem.what, problem.place)
    limit = config.rehearse.outlives_mib * 2**20
    for made, gone in (GONE_BY if stage == "vold" else GONE_BY_IN_SFT).items():
        left = ledger.survivors.get(gone, Counter()).get(made, Counter())
        left = Counter({place: size for place, size in left.items() if not any(kept in place for kept in KEPT)})
        if sum(left.values()) > limit:
            said = ", ".join(f"{size / GIB:.2f} GiB from {place}" for place, size in left.most_common(LARGEST))
            what = f"{sum(left.values()) / GIB:.2f} GiB: {said}"
            yield Violation("outlives its phase", what, f"made in {made}, there in {gone}")
    yield from _stayed(done, models)
    reserve, room = memory.reserve(config).get("reserve", 0), memory.capacity(config)
    for phase, peak in ledger.device.peaks.items():
        if room is not None and peak.size + reserve > room:
            what = f"{peak.size / GIB:.1f} GiB and a reserve of {reserve / GIB:.1f} (plan.reserve_gib) of {room / GIB:.1f}"
            yield Violation("does not fit", what, phase)
    for row, where in [*((row, "") for row in rows), *((row, " of host memory") for row in compared_on_host(done, models))]:
        if abs(row.deviation) > config.rehearse.deviation and abs(row.rehearsed - row.planned) > WORKSPACES:
            what = f"{row.rehearsed / GIB:.2f} GiB{where}, planned {row.planned / GIB:.2f} ({row.deviation:+.1%})"
            yield Violation("not as planned", what, row.phase)
