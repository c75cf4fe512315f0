"""A weight sync beside copying its bytes once: gathering shards, copying into the engine, and proving that they arrived.

    python benchmarks/sync.py json=true
    python benchmarks/sync.py tensor=2
    python benchmarks/sync.py pipeline=2
    python benchmarks/sync.py experts=8 expert=2

Megatron's model of a random Qwen2.5-VL checkpoint on gloo ranks streams its language weights into a transformers engine on each
rank; with ``experts``, a Qwen3-VL mixture's into plain memory.  Parts take turns, median of ``repeats``; each rank is one
thread, seconds are its processor time (which other work on the machine distorts little), of the slowest rank:

    copy      the same bytes, tensor by tensor, from memory to the engine's parameters: what the ratios are over
    link      only with several ranks: one flat all-gather of the shards (over the tensor ranks; else a broadcast from each
              rank of its part), what gloo asks for those bytes at the least
    stream    gather and copy: `weights.stream_hf` into the live parameters
    sync      `sync.deliver`, as a step does it: gather, copy, checks, and the proof of ``parts`` (rollout.checksum_parts)
    proved    the same with the whole of every tensor proved, as a run's first sync does it

``beyond_model``: highest memory during the first sync above what lay there before, in units of the largest bucket: the tensors
that one parameter of Megatron becomes (embedding, gate and up, a layer's packed experts).

Keys: tensor, pipeline, expert, hidden, layers, rows, experts, parts, repeats, json, results (path without suffix, or empty).
"""

from __future__ import annotations

import json
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
    "tensor": 1, "pipeline": 1, "expert": 1, "hidden": 1024, "layers": 8, "rows": 16384, "experts": 0, "parts": 4, "repeats": 9,
    "json": False,
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

    def __init__(self, named_tensors):
        import torch

        self._live = {name: torch.empty_like(value) for name, value in named_tensors}
        self.dtype, self.version = torch.float32, None

    def load(self, named_tensors, version, part):
        from vold_nemo.rollout.engine import LoadReport
        from vold_nemo.rollout.fingerprints import Fingerprints

        for name, value in named_tensors:
            self._live[name].copy_(value)
        size = sum(live.nbytes for live in self._live.values())
        return LoadReport(size, 0.0, Fingerprints.of(self._live.items(), part, totals=True), version)


def measure(path: str, settings: dict) -> dict:
    """On one rank: seconds of every part, bytes, and memory beyond the model."""
    import torch
    import torch.distributed as dist

    from tests.megatron import tiny
    from vold_nemo.megatron import parallel, weights
    from vold_nemo.rollout.sync import deliver
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    engine = None if settings["experts"] else TransformersEngine(path)
    model, arch, layout = tiny.built(path, settings["tensor"], settings["pipeline"], expert=settings["expert"])
    engine = engine or PlainMemory(weights.stream_hf(model, arch, layout, borrowed=True))
    source = {name: live.clone() for name, live in engine._live.items()}
    size, world = sum(value.nbytes for value in source.values()), dist.get_world_size()
    shard = torch.zeros(size // 4 // world)
    whole = torch.zeros(world * len(shard))

    @torch.no_grad()
    def copy() -> None:
        for name, live in engine._live.items():
            live.copy_(source[name])

    @torch.no_grad()
    def stream() -> None:
        for name, value in weights.stream_hf(model, arch, layout, borrowed=True):
            engine._live[name].copy_(value)

    def link() -> None:
        if settings["tensor"] == world:
            dist.all_gather(list(whole.chunk(world)), shard)
            return
        for rank, part in enumerate(whole.chunk(world)):
            dist.broadcast(part, rank)

    def sync(parts: int) -> None:
        deliver(weights.stream_hf(model, arch, layout, borrowed=True), engine, 1, parts)

    parts = {"copy": copy, "stream": stream, "sync": lambda: sync(settings["parts"]), "proved": lambda: sync(1)}
    parts |= {"link": link} if world > 1 else {}
    copy()  # weights that still lie in a mapped file become memory
    sum(float(parameter.sum()) for parameter in model.parameters())
    dist.barrier()
    peak = Peak("cpu")  # of the first: later ones find memory that the allocator kept
    sync(1)
    beyond = peak.stop()
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(settings["repeats"] + 1):
        for name, part in parts.items():
            dist.barrier()
            began = time.process_time()
            part()
            if turn:  # the first one warms up
                seconds[name].append(time.process_time() - began)
    parallel.destroy()
    return {
        "seconds": {name: statistics.median(all_) for name, all_ in seconds.items()}, "bytes": size, "beyond": beyond,
        "bucket": largest_bucket(engine._live),
    }  # fmt: skip


def largest_bucket(live: dict) -> int:
    """Bytes of the tensors that one parameter of Megatron becomes, at most."""
    together: dict[str, int] = {}
    for name, value in live.items():
        bucket = name
        for fused in ("gate_proj.weight", "up_proj.weight"):
            bucket = bucket.replace(fused, "gate and up")
        for fused in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
            bucket = bucket.replace(fused, "q, k and v")
        together[bucket] = together.get(bucket, 0) + value.nbytes
    return max(together.values())


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
    seconds = {name: max(rank["seconds"][name] for rank in ranks) for name in ranks[0]["seconds"]}
    layout = {name: settings[name] for name in ("tensor", "pipeline", "expert", "experts")}
    named = {name: value for name, value in layout.items() if value > 1} or {"tensor": 1}
    ways = ("stream", "sync", "proved")
    line = {
        "benchmark": "sync", **layout, "parts": settings["parts"], "bytes": ranks[0]["bytes"],
        **{f"{way}_ratio_vs_copy": seconds[way] / seconds["copy"] for way in ways},
        "beyond_model": max(rank["beyond"] / rank["bucket"] for rank in ranks), "machine": machine("cpu"),
    }  # fmt: skip
    if "link" in seconds:
        least = seconds["link"] + seconds["copy"]
        line |= {f"{way}_ratio_vs_link_and_copy": seconds[way] / least for way in ways}
    for name, value in line.items():
        print(f"{name:30} {value:.2f}" if isinstance(value, float) else f"{name:30} {value}")
    if settings["results"]:
        file = Path(f"{settings['results']}.json")
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | {" ".join(f"{k}={v}" for k, v in named.items()): line}, indent=2) + "\n")
    if settings["json"]:
        print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:])
