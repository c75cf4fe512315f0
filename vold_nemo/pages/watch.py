"""A run seen through its files alone: what it last did, how fast, how long still, and which rank is behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from vold_nemo.config.printable import harmless, harmless_in
from vold_nemo.planning import queue
from vold_nemo.rewards.alarms import alarms

_RECENT = 20  # steps that a rate is taken over
_SILENT = 60.0  # seconds without a heartbeat after which a rank is called silent; it beats every 10
_CLOCKS = 5.0  # seconds by which clocks of nodes may differ
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL", "PREEMPTED")
_ENDED = {"done": "done", "stopped": "stopped with a checkpoint: start it again to go on", "failed": "FAILED"}  # last beats
_BEHIND = 1.25  # times the median rank's seconds in a phase before a collective, above which a rank is named


@dataclass
class Sight:
    """One look at a run folder."""

    folder: Path
    steps: list[dict[str, Any]]  # of metrics.jsonl, in order
    ranks: list[dict[str, Any]]  # heartbeats
    total: int | None  # steps of the whole run
    checkpoint: str | None
    stacks: list[str]  # dumped by ranks that were stuck
    started: float | None  # newest attempt
    now: float
    number: str | None = None  # of its newest job, where the chain or a rank has said it
    job: queue.Job | None = None  # what Slurm says of it

    @property
    def beating(self) -> list[dict[str, Any]]:
        """Heartbeats of the attempt that runs now; all of them where Slurm says nothing."""
        if self.job is None or self.job.state in _OVER:
            return self.ranks
        if self.job.state == "PENDING":
            return []
        return [beat for beat in self.ranks if beat["time"] >= self.now - self.job.seconds - _CLOCKS]


def look(folder: Path, *, now: float) -> Sight:
    """Read ``folder`` and ask Slurm of its job; lines that are half written are left for the next look."""
    ranks = [beat for path in sorted(folder.glob("heartbeat/rank_*.json")) for beat in _json(path.read_text())]
    latest, config = folder / "checkpoints" / "latest", folder / "config.yaml"
    metrics = folder / "metrics.jsonl"
    known = [*jobs_of(folder), *(str(beat["job"]) for beat in ranks if beat.get("job"))]
    number = max((job for job in known if job.isdigit()), key=int, default=None)
    return Sight(
        folder=folder,
        steps=[step for line in metrics.read_text().splitlines() for step in _json(line)] if metrics.exists() else [],
        ranks=sorted(ranks, key=lambda beat: beat["rank"]),
        # The ranks say how many steps they mean to do: config.yaml alone does not tell stage 1 from stage 2.
        total=max((beat["total"] for beat in ranks if beat["total"]), default=None),
        checkpoint=latest.read_text().strip() if latest.exists() else None,
        stacks=sorted(path.name for path in folder.glob("stacks/rank_*.txt")),
        started=config.stat().st_mtime if config.exists() else None,
        now=now,
        number=number,
        job=queue.look(number) if number is not None else None,
    )


def jobs_of(folder: Path) -> list[str]:
    """Jobs that chains have submitted for this run folder, which need not be there yet: of records beside it and above."""
    folder, found = folder.resolve(), []
    for above in (folder.parent, folder.parent.parent):
        for file in (*above.glob("slurm/*.json"), *above.glob("*/slurm/*.json")):
            for said in _json(file.read_text(encoding="utf-8", errors="replace")):
                if isinstance(said, dict) and said.get("run") == str(folder):
                    found.append(str(said.get("job")))
    return found


def _json(text: str) -> Iterator[dict[str, Any]]:
    try:
        yield harmless_in(json.loads(text))
    except ValueError:
        return


def render(sight: Sight) -> str:
    """Lines for a terminal."""
    lines = [harmless(str(sight.folder))]
    if sight.started is not None:
        lines[0] += f"   last started {_duration(sight.now - sight.started)} ago"
    if not sight.steps:
        lines.append("no step yet")
    else:
        lines += list(_progress(sight)) + list(_numbers(sight.steps))
    lines.append(f"checkpoint  {sight.checkpoint or 'none yet'}")
    lines += list(_job(sight)) + list(_ranks(sight))
    if sight.stacks:
        lines.append(f"STUCK       stacks of {len(sight.stacks)} rank(s): {sight.folder / 'stacks'}")
    return "\n".join(lines)


def _progress(sight: Sight) -> Iterator[str]:
    done = sight.steps[-1]["step"]
    seconds = [sum(step["seconds"].values()) for step in sight.steps[-_RECENT:] if step.get("seconds")]
    pace = f"{median(seconds):.1f} s a step" if seconds else ""
    if sight.total:
        filled = int(30 * done / sight.total)
        left = f", about {_duration((sight.total - done) * median(seconds))} left" if seconds and done < sight.total else ""
        yield f"step        {done}/{sight.total} [{'#' * filled}{'.' * (30 - filled)}] {pace}{left}"
    else:
        yield f"step        {done}   {pace}"


def _numbers(steps: list[dict[str, Any]]) -> Iterator[str]:
    """The last value of each, with the mean over the recent steps."""
    recent = steps[-_RECENT:]
    for name in ("loss", "reward_mean", "kl_mean", "entropy", "grad_norm", "learning_rate", "tokens_per_second"):
        values = [step[name] for step in recent if isinstance(step.get(name), int | float)]
        if values:
            yield f"{name:<19} {values[-1]:<12.5g} mean of {len(values)}: {sum(values) / len(values):.5g}"
    for said in alarms(steps[-1]):
        yield f"REWARD      step {steps[-1]['step']}: {said}"
    if gap := steps[-1].get("mismatch"):
        yield f"mismatch    engine and trainer {gap['mean']:.4g} a token, at most {gap['max']:.3g}, weights worth " + (
            f"{gap['effective_sample_size']:.1%} of the tokens"
        )
    dropped = [refilled["dropped_groups"] for step in recent if (refilled := step.get("refill"))]
    if dropped:
        mean = sum(dropped) / len(dropped)
        yield f"refill      {dropped[-1]} group(s) without signal drawn anew, mean of {len(dropped)}: {mean:.3g}"
    shares = steps[-1].get("seconds") or {}
    whole = sum(shares.values()) or 1.0
    if shares:
        yield "seconds     " + ", ".join(f"{phase} {value:.2f} ({value / whole:.0%})" for phase, value in shares.items())
    peak = (steps[-1].get("memory") or {}).get("peak_bytes")
    if peak:
        yield f"memory      {peak / 2**30:.2f} GiB at most on rank 0"
    skipped = sum(bool(step.get("update_skipped")) for step in steps)
    if skipped:
        yield f"SKIPPED     {skipped} update(s) that were not finite"


def _job(sight: Sight) -> Iterator[str]:
    """The job's state in Slurm's word, and what it means for the run."""
    job, name = sight.job, f"job         {sight.number} "
    if job is None:
        if sight.number is not None and not sight.ranks:
            yield f"{name}was submitted; the Slurm here, if there is one, does not know it (any more)"
        return
    attempt = f"attempt {job.restarts + 1}"
    if job.state == "PENDING":
        again = f"back in the queue for {attempt}" if job.restarts or sight.ranks else "not begun"
        yield f"{name}PENDING ({job.reason}): {again}"
    elif job.state in _OVER:
        yield f"{name}{job.state}, in {attempt}"
    else:
        silent = "" if sight.beating else ": its ranks have not begun yet"
        yield f"{name}{job.state} for {_duration(job.seconds)}, {attempt}{silent}"


def _ranks(sight: Sight) -> Iterator[str]:
    ranks = sight.beating
    if not ranks:
        return
    if all(beat["phase"] in _ENDED for beat in ranks):
        for phase in sorted({beat["phase"] for beat in ranks}, reverse=True):
            those = [beat for beat in ranks if beat["phase"] == phase]
            ago = _duration(sight.now - max(beat["time"] for beat in those))
            first = f", first {those[0]['rank']}" if phase == "failed" else ""
            yield f"ended       {ago} ago, {_ENDED[phase]} ({len(those)} rank(s){first})"
        return
    behind = min(beat["step"] for beat in ranks)
    silent = [beat for beat in ranks if sight.now - beat["time"] > _SILENT]
    phases = sorted({beat["phase"] for beat in ranks if beat["step"] == behind})
    yield f"ranks       {len(ranks)}, the last in step {behind + 1}: {', '.join(phases)}"
    # A rank that waits in a collective has been in its phase for less long than the one that it waits for.
    slowest = max(ranks, key=lambda beat: beat["seconds_in_phase"])
    hosts = {beat["rank"]: beat["host"] for beat in ranks}
    for phase, said in (sight.steps[-1].get("slowest", {}) if sight.steps else {}).items():
        if said["seconds"] > _BEHIND * said["median"]:
            where = f"rank {said['rank']} on {hosts.get(said['rank'], '?')}"
            yield f"STRAGGLER   {where}: {phase} took {said['seconds']:.1f} s, the median rank {said['median']:.1f} s"
    yield f"longest     rank {slowest['rank']} on {slowest['host']}: {slowest['phase']}, {slowest['seconds_in_phase']:.0f} s"
    for beat in silent[:4]:
        yield f"SILENT      rank {beat['rank']} on {beat['host']} for {_duration(sight.now - beat['time'])}, {beat['phase']}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
