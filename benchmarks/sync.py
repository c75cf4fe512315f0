"""A weight sync beside moving its bytes once: sending each rank its engine's part, copying it in, and proving that it arrived.

    python benchmarks/sync.py json=true
    python benchmarks/sync.py tensor=2
    python benchmarks/sync.py pipeline=2
    python benchmarks/sync.py experts=8 expert=2
    python benchmarks/sync.py tensor=2 pipeline=2 engine=2

Megatron's model of a random Qwen2.5-VL checkpoint on gloo ranks streams its language weights into a transformers engine on each
rank; with ``experts``, a Qwen3-VL mixture's into plain memory; with ``engine`` ranks to an engine, each rank's share of them.
Parts take turns, median of ``repeats``, of the slowest rank; each rank is one thread.  Seconds are its processor time, gloo's
threads included; ``wall`` is the clock's, which says something only on a machine with nothing else to do:

    copy      the bytes that a rank keeps, tensor by tensor, from memory to the engine's parameters
    link      only with several ranks: the bytes that it must receive, flat and in one call, by whichever of gloo's ways is
              the quickest: an all-to-all; a message to and from each rank; where every rank keeps everything and layers are
              what is split, a broadcast from each rank of its part (an all-gather over tensor ranks took five times as long)
    stream    send and copy: `exchange.Exchange` into the live parameters
    sync      `sync.deliver`, as a step does it: send, copy, checks, and the proof of ``parts`` (rollout.checksum_parts)
    proved    the same with the whole of every tensor proved, as a run's first sync does it

What moving the bytes once costs is link + copy: what a rank receives, once and with nothing put together, cut or checked, as if
all of it lay in one piece; then everything that the engine keeps, once more, into its parameters.  ``turned`` (with experts)
is such a copy with every expert's matrix transposed, as a mixture's file keeps it and Megatron does not: a stream can do with
no less than link + turned.

``beyond_model``: highest memory during the first sync above what lay there before, in bytes, beside what the plan says of it.
``share``: bytes received from other ranks over bytes kept, of the worst rank.

Keys: tensor, pipeline, expert, engine, hidden, layers, rows, experts, parts, repeats, load (what else ran, in words), json,
results (path without suffix, or empty).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import Peak, machine, parse  # noqa: E402

DEFAULTS = {
    "tensor": 1, "pipeline": 1, "expert": 1, "engine": 1, "hidden": 1024, "layers": 8, "rows": 16384, "experts": 0,
    "parts": 8, "repeats": 9, "json": False, "load": "unknown",
    "results": str(ROOT / "benchmarks/results/sync"),
}  # fmt: skip


def write_checkpoint(path: Path, settings: dict) -> None:
    from tests.megatron import tiny
    from vold_nemo.miniature.random_models import TINY, write_random_student

    hidden, layers, rows = settings["hidden"], settings["layers"], settings["rows"]
    if settings.get("experts"):
        tiny.save(
            "qwen3_vl_moe", path, tied=False, hidden_size=hidden, num_hidden_layers=layers, vocab_size=rows,
            num_experts=settings["experts"], moe_intermediate_size=hidden * 3 // 8,
        )  # fmt: skip
        return
    shape = replace(
        TINY, hidden=hidden, layers=layers, heads=hidden // 64, kv_heads=max(settings["tensor"], hidden // 256),
        ffn=hidden * 11 // 4,
    )  # fmt: skip
    write_random_student(path, shape, rows=rows)


class PlainMemory:
    """An engine as far as a weight sync sees one, where transformers' engine does not hold the model."""

    def __init__(self, ranks: int, groups: int):
        import torch

        self._live, self._ranks, self._groups = {}, ranks, groups
        self.dtype, self.version = torch.float32, None

    def keeps(self, name, shape, rank):
        from vold_nemo.rollout.shares import share

        return share(name, shape, rank % self._ranks, self._ranks, self._groups)

    def room(self, name):
        return self._live.get(name)

    def load(self, named_tensors, version, part):
        from vold_nemo.rollout.engine import LoadReport
        from vold_nemo.rollout.fingerprints import Fingerprints

        for name, value in named_tensors:
            self._live[name].copy_(value)  # nothing to do where the stream has written to it
        size = sum(live.nbytes for live in self._live.values())
        return LoadReport(size, 0.0, Fingerprints.of(self._live.items(), part, totals=True), version)


def measure(path: str, settings: dict) -> dict:
    """On one rank: seconds of every part, bytes, and memory beyond the model."""
    import torch
    import torch.distributed as dist

    from tests.megatron import tiny
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.exchange import Exchange
    from vold_nemo.rollout.sync import deliver
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    plain = settings["experts"] or settings["engine"] > 1
    engine = None if plain else TransformersEngine(path)
    model, arch, layout = tiny.built(path, settings["tensor"], settings["pipeline"], expert=settings["expert"])
    engine = engine or PlainMemory(settings["engine"], arch.kv_groups)
    exchange = Exchange(model, arch, layout, engine.keeps, engine.room)
    if plain:
        empty = Exchange(model, arch, layout, engine.keeps).stream()
        engine._live.update((name, torch.zeros(value.shape)) for name, value in empty)
    source = {name: live.clone() for name, live in engine._live.items()}
    size, world = sum(value.nbytes for value in source.values()), dist.get_world_size()
    whole = torch.zeros(size // 4 // world * world)
    inward, outward = exchange.plan.totals()
    sent, received = torch.zeros(sum(outward)), torch.zeros(sum(inward))

    @torch.no_grad()
    def copy() -> None:
        for name, live in engine._live.items():
            live.copy_(source[name])

    @torch.no_grad()
    def turned() -> None:
        for name, live in engine._live.items():
            if live.dim() < 3:
                live.copy_(source[name])
                continue
            for there, here in zip(live, source[name].view(len(live), *live.shape[:0:-1]), strict=True):
                there.copy_(here.t())

    @torch.no_grad()
    def stream() -> None:
        for name, value in exchange.stream():
            engine._live[name].copy_(value)

    def broadcasts() -> None:
        for rank, part in enumerate(whole.chunk(world)):
            dist.broadcast(part, rank)

    def messages() -> None:
        me, works = dist.get_rank(), []
        for rank, (here, there) in enumerate(zip(received.split(inward), sent.split(outward), strict=True)):
            if rank != me and len(here):
                works.append(dist.irecv(here, rank))
            if rank != me and len(there):
                works.append(dist.isend(there, rank))
        for work in works:
            work.wait()

    def sync(parts: int) -> None:
        deliver(exchange.stream(), engine, 1, parts)

    parts = {"copy": copy, "stream": stream, "sync": lambda: sync(settings["parts"]), "proved": lambda: sync(1)}
    if settings["experts"]:
        parts["turned"] = turned
    if world > 1:
        parts["link all-to-all"] = lambda: dist.all_to_all_single(received, sent, inward, outward)
        parts["link messages"] = messages
        if settings["engine"] == 1 and not settings["experts"]:  # of a mixture only experts travel
            parts |= {} if settings["tensor"] == world else {"link broadcasts": broadcasts}
    copy()  # weights that still lie in a mapped file become memory
    sum(float(parameter.sum()) for parameter in model.parameters())
    dist.barrier()
    peak = Peak("cpu")  # of the first: later ones find memory that the allocator kept
    sync(1)
    beyond = peak.stop()
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    wall: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(settings["repeats"] + 1):
        for name, part in parts.items():
            dist.barrier()
            clock, began = time.perf_counter(), time.process_time()
            part()
            if turn:  # the first one warms up
                seconds[name].append(time.process_time() - began)
                wall[name].append(time.perf_counter() - clock)
    parallel.destroy()
    plan = exchange.plan
    return {
        "seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
        "wall": {name: statistics.median(all_) for name, all_ in wall.items()},
        "bytes": size, "beyond": beyond, "planned": 4 * exchange.beside, "share": 4 * sum(inward) / size,
        "rounds": sum(any(one.sent) for one in plan.rounds), "calls": sum(one.packed for one in plan.rounds),
        "messages": sum(
            move.alone and move.source != move.target for one in plan.rounds for item in one.items for move in item.moves
        ),
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    settings = parse(arguments, DEFAULTS)
    from tests.gloo import Ranks

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), settings)
        workers, world = Ranks(), max(settings["tensor"], settings["expert"]) * settings["pipeline"]
        try:
            ranks = workers.of(world).run(measure, folder, settings, timeout=1800)
        finally:
            workers.stop()
    seconds, wall = (
        {name: max(rank[clock][name] for rank in ranks) for name in ranks[0][clock]} for clock in ("seconds", "wall")
    )
    layout = {name: settings[name] for name in ("tensor", "pipeline", "expert", "engine", "experts")}
    named = {name: value for name, value in layout.items() if value > 1} or {"tensor": 1}
    ways = ("stream", "sync", "proved")
    line = {
        "benchmark": "sync", **layout, "parts": settings["parts"], "bytes": ranks[0]["bytes"],
        **{f"{way}_ratio_vs_copy": seconds[way] / seconds["copy"] for way in ways},
        "share": max(rank["share"] for rank in ranks), "rounds": ranks[0]["rounds"],
        "collectives": ranks[0]["calls"], "messages": max(rank["messages"] for rank in ranks),
        "beyond_model": max(rank["beyond"] for rank in ranks), "beyond_model_planned": max(rank["planned"] for rank in ranks),
        "machine": machine("cpu"), "load": f"{settings['load']}; load average {os.getloadavg()[1]:.0f} over 5 minutes",
    }  # fmt: skip
    if links := {name: value for name, value in seconds.items() if name.startswith("link")}:
        line["link"] = min(links, key=links.__getitem__)
        least = links[line["link"]] + seconds["copy"]
        line |= {f"{way}_ratio_vs_link_and_copy": seconds[way] / least for way in ways}
        if "turned" in seconds:
            line["link_and_turned_ratio_vs_link_and_copy"] = (links[line["link"]] + seconds["turned"]) / least
        least = min(value for name, value in wall.items() if name.startswith("link")) + wall["copy"]
        line |= {f"{way}_wall_ratio_vs_link_and_copy": wall[way] / least for way in ways}
        line |= {f"{name}_ratio_vs_copy": value / seconds["copy"] for name, value in links.items()}
    for name, value in line.items():
        print(f"{name:36} {value:.2f}" if isinstance(value, float) else f"{name:36} {value}")
    if settings["results"]:
        file = Path(f"{settings['results']}.json")
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | {" ".join(f"{k}={v}" for k, v in named.items()): line}, indent=2) + "\n")
    if settings["json"]:
        print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:])
