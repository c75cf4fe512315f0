"""A rehearsal as plain data: what ``rehearsal.json`` keeps, and what terminal and page show."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from vold_nemo.config.environment import GLOO_LAZY
from vold_nemo.planning import rates, timing
from vold_nemo.planning.plan import models_of
from vold_nemo.rehearsal import findings
from vold_nemo.rehearsal.kept import digest
from vold_nemo.rehearsal.ledger import place_of
from vold_nemo.rehearsal.run import Rehearsal

HOLDERS = 16  # named of a peak
PLACES = 20  # named of copies; of waits all, so that what is not among them did not happen


def account(done: Rehearsal) -> dict[str, Any]:
    """Bytes, counts and seconds.  ``measured`` is false: nothing of it was run on a GPU."""
    config, ledger, layout = done.config, done.ledger, done.layout
    models = models_of(config)
    rows, wrong = [], [ended_early(done.failed, ledger)] if done.failed else []
    if layout is not None:
        rows = findings.compared(done, models)
    wrong += findings.violations(done, models, rows)
    planned = {row.phase: row for row in rows}
    return {
        "measured": False,
        "configuration": digest(config),
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions(),
        "experiment": config.name, "cluster": config.cluster.name, "stage": done.stage, "rank": done.rank, "world": done.world,
        "place": _place(layout), "layers": done.layers, "apex": config.rehearse.apex,
        "processor_seconds": round(done.seconds, 1),
        "micro_batches": {"planned": done.micro_batches, "run": done.micro_batches_run},
        "tokens": {"planned": done.tokens, "run": done.tokens_run},
        "violations": [{"kind": one.kind, "what": one.what, "place": one.place} for one in wrong],
        "phases": [phase_of(ledger, phase, planned.get(phase)) for phase in ledger.phases],
        "host": [
            {"phase": row.phase, "peak_bytes": row.rehearsed, "planned_bytes": row.planned, "planned_parts": row.parts}
            for row in findings.compared_on_host(done, models)
        ],
        "held": done.held,
        "collectives": _collectives(ledger),
        "waits": by_place(ledger.syncs, None),
        "copies": by_place(ledger.copies),
        "unknown_values": dict(ledger.unknown.most_common(PLACES)),
        "groups": groups_of(done.groups),
        "seconds": _seconds(done, models),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of the libraries whose code was executed; Transformer Engine's is said with the layers."""
    return {name: version(name) for name in ("torch", "megatron-core")}


def ended_early(error: BaseException, ledger) -> findings.Violation:
    lines = [line for line in str(error).splitlines() if line.strip()] or ["no word"]
    phase = ledger.before if ledger.phase == "failed" else ledger.phase  # a loop says so when it is left
    where = f"{place_of(error)}, in {phase}"
    return findings.Violation("ended early", f"{type(error).__name__}: {lines[0][:300]}", where)


def _place(layout) -> dict[str, int]:
    if layout is None:
        return {}
    return {name: getattr(layout, f"{name}_rank") for name in ("tensor", "context", "data", "pipeline", "expert")}


def phase_of(ledger, phase: str, row: findings.Compared | None, memory: str = "device") -> dict[str, Any]:
    """One phase; ``memory``: whose peak is told by holder."""
    peak = getattr(ledger, memory).peaks[phase]
    holders = sorted(peak.holders.items(), key=lambda item: -item[1])[:HOLDERS]
    made_in: Counter[str] = Counter()
    for (_, made), size in peak.holders.items():
        made_in[made] += size
    return {
        "phase": phase, "peak_bytes": peak.size, "planned_bytes": row.planned if row else None,
        "planned_parts": row.parts if row else {}, "host_peak_bytes": ledger.host.peaks[phase].size,
        "holders": [{"bytes": size, "place": place, "made_in": made} for (place, made), size in holders],
        "made_in": dict(made_in.most_common()),
        "launches": ledger.launches[phase], "processor_seconds": round(ledger.processor[phase], 1),
        "flops": {f"{name} {kind}": flops for (at, kind, name), flops in ledger.flops.items() if at == phase},
        "waits": sum(count for (at, *_), count in ledger.syncs.items() if at == phase),
    }  # fmt: skip


def _collectives(ledger) -> list[dict[str, Any]]:
    found = [
        {
            "phase": call.phase, "operation": call.operation, "group": call.group, "size": call.size, "link": call.link,
            "device": call.device, "calls": calls, "bytes": ledger.collective_bytes[call],
        }
        for call, calls in ledger.collective_calls.items()
    ]  # fmt: skip
    objects = [
        {"phase": phase, "operation": operation, "group": group, "size": size, "link": "", "device": "objects",
         "calls": calls, "bytes": None}
        for (phase, operation, group, size), calls in ledger.objects.items()
    ]  # fmt: skip
    return found + objects


def by_place(counted: Counter, most: int | None = PLACES) -> list[dict[str, Any]]:
    return [
        {"phase": phase, "what": what, "place": place, "count": count}
        for (phase, what, place), count in counted.most_common(most)
    ]


def groups_of(groups) -> dict[str, Any]:
    """Connections by formula: gloo's to each peer of each group, when it is made or (late) when two talk; NCCL's when a device
    tensor first meets it."""
    gloo = [group for group in groups.known.values() if "gloo" in group.backend and group.size > 1]
    peers = sum(group.size - 1 for group in gloo)
    nccl = [group for group in groups.known.values() if "cuda" in groups.using.get(group.name, ()) and group.size > 1]
    return {
        "of_this_rank": len(groups.known), "made_in_the_world": groups.made + 1,
        "gloo": len(gloo), "gloo_peers": peers, "gloo_at_once": 0 if os.environ.get(GLOO_LAZY) == "1" else peers,
        "nccl_used": sorted({(group.name, group.size) for group in nccl}),
    }  # fmt: skip


# Groups that meet in each micro-batch; over the others gradients, norms and flags travel once an update.
_OF_A_MICRO_BATCH = ("TENSOR_MODEL", "PIPELINE", "CONTEXT", "EXPERT", "TENSOR_AND")
_TRAVELS = {"allreduce": 2.0, "broadcast": None, "send": None, "recv": None}  # times (n - 1)/n of the bytes; None: all, once


def _seconds(done: Rehearsal, models) -> dict[str, dict[str, float]]:
    """By phase, from the rates of ``cluster.*``: ``work`` and ``links`` as rehearsed, ``planned`` beside them.

    Work and collectives of training and scoring are those of the micro-batches that were run, scaled by tokens to all.
    """
    config, ledger = done.config, done.ledger
    if rates.missing(config) or not done.tokens_run:
        return {}
    speed, plan = rates.rates(config), config.plan
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"work": 0.0, "links": 0.0})
    scale = {"train": done.tokens / max(1, done.tokens_run), "teacher": done.scored_tokens / max(1, done.scored_tokens_run)}
    for (phase, kind, _), flops in ledger.flops.items():
        share = plan.forward_efficiency if phase == "teacher" else plan.train_efficiency
        fast = config.cluster.fp8_tflops if kind.startswith("float8") and config.cluster.fp8_tflops else speed.bf16_tflops
        found[phase]["work"] += flops * scale.get(phase, 1.0) / (fast * 1e12 * share)
    for call, size in ledger.collective_bytes.items():
        if call.device != "cuda" or call.size < 2:
            continue
        times = _TRAVELS.get(call.operation, 1.0)
        travelling = size if times is None else size * times * (call.size - 1) / call.size
        band = (speed.network_gbs if call.link == "network" else speed.link_gbs) * 1e9 * plan.network_efficiency
        often = scale.get(call.phase, 1.0) if call.group.startswith(_OF_A_MICRO_BATCH) else 1.0
        found[call.phase]["links"] += often * travelling / band
    for phase, seconds in timing.duration(config, models, done.stage, done.world).seconds.items():
        found["train" if done.stage == "sft" else phase].setdefault("planned", 0.0)
        found["train" if done.stage == "sft" else phase]["planned"] += seconds
    return {phase: {name: round(value, 4) for name, value in said.items()} for phase, said in found.items()}
