"""A weight sync beside copying its bytes once: gathering shards, copying into the engine, and proving that they arrived.

    python benchmarks/sync.py json=true
    python benchmarks/sync.py tensor=2 hidden=1024 layers=8

Megatron's model of a random Qwen2.5-VL checkpoint on ``tensor`` gloo ranks streams its language weights into a transformers
engine on each rank.  Parts, taking turns, the median of ``repeats``; each rank is one thread, seconds are its processor time
(which other work on the machine distorts little), of the slowest rank:

    copy      the same bytes, tensor by tensor, from memory to the engine's parameters: what the ratios are over
    link      only with tensor > 1: one flat all-gather of the shards, what gloo asks for those bytes at the least
    stream    gather and copy: `weights.stream_hf` into the live parameters
    sync      `sync.deliver`, as a step does it: gather, copy, checks, and a checksum on both sides

``beyond_model``: highest memory during a sync above what lay there before, in units of the largest tensor (the embedding).

Keys: tensor, hidden, layers, rows, repeats, json, results (path without suffix, or empty).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import Peak, machine, parse  # noqa: E402

DEFAULTS = {
    "tensor": 1, "hidden": 1024, "layers": 8, "rows": 16384, "repeats": 5, "json": False,
    "results": str(ROOT / "benchmarks/results/sync"),
}  # fmt: skip


def write_checkpoint(path: Path, settings: dict) -> None:
    from vold_nemo.miniature.random_models import write_random_student

    hidden = settings["hidden"]
    write_random_student(
        path, hidden=hidden, layers=settings["layers"], heads=hidden // 64, kv_heads=max(settings["tensor"], hidden // 256),
        ffn=hidden * 11 // 4, rows=settings["rows"],
    )  # fmt: skip


def measure(path: str, settings: dict) -> dict:
    """On one rank: seconds of every part, bytes, and memory beyond the model."""
    import torch
    import torch.distributed as dist

    from vold_nemo.megatron import architecture, build, parallel, weights
    from vold_nemo.rollout.sync import deliver
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    arch, tensor = architecture.read(path), settings["tensor"]
    engine = TransformersEngine(path)
    layout = parallel.initialize(tensor, 1, seed=0, device="cpu")
    padded = build.padded_vocabulary([arch.vocabulary], tensor)
    model = build.build_model(arch, layout, padded_vocabulary=padded, dtype=torch.float32)
    weights.load_hf(model, arch, layout, path)
    source = {name: live.clone() for name, live in engine._live.items()}
    size = sum(value.numel() * 4 for value in source.values())
    shard = torch.zeros(size // 4 // tensor)
    whole = torch.zeros(tensor * shard.numel())

    @torch.no_grad()
    def copy() -> None:
        for name, live in engine._live.items():
            live.copy_(source[name])

    @torch.no_grad()
    def stream() -> None:
        for name, value in weights.stream_hf(model, arch, layout, borrowed=True):
            engine._live[name].copy_(value)

    def link() -> None:
        dist.all_gather(list(whole.chunk(tensor)), shard, group=layout.tensor_group)

    def sync() -> None:
        deliver(weights.stream_hf(model, arch, layout, borrowed=True), engine, 1)

    parts = {"copy": copy, "stream": stream, "sync": sync} | ({"link": link} if tensor > 1 else {})
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(settings["repeats"] + 1):
        for name, part in parts.items():
            dist.barrier()
            began = time.process_time()
            part()
            if turn:  # the first one warms up
                seconds[name].append(time.process_time() - began)
    peak = Peak("cpu")
    sync()
    beyond = peak.stop() / max(live.numel() * 4 for live in engine._live.values())
    parallel.destroy()
    return {"seconds": {name: statistics.median(all_) for name, all_ in seconds.items()}, "bytes": size, "beyond": beyond}


def main(arguments: list[str]) -> None:
    settings = parse(arguments, DEFAULTS)
    from tests.gloo import Workers

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), settings)
        workers = Workers(settings["tensor"])
        try:
            ranks = workers.run(measure, folder, settings, timeout=1800)
        finally:
            workers.stop()
    seconds = {name: max(rank["seconds"][name] for rank in ranks) for name in ranks[0]["seconds"]}
    line = {
        "benchmark": "sync", "tensor": settings["tensor"], "bytes": ranks[0]["bytes"],
        "stream_ratio_vs_copy": seconds["stream"] / seconds["copy"], "sync_ratio_vs_copy": seconds["sync"] / seconds["copy"],
        "beyond_model": max(rank["beyond"] for rank in ranks), "machine": machine("cpu"),
    }  # fmt: skip
    if "link" in seconds:
        least = seconds["link"] + seconds["copy"]
        line |= {f"{part}_ratio_vs_link_and_copy": seconds[part] / least for part in ("stream", "sync")}
    for name, value in line.items():
        print(f"{name:30} {value:.2f}" if isinstance(value, float) else f"{name:30} {value}")
    if settings["results"]:
        file = Path(f"{settings['results']}.json")
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | {f"tensor={settings['tensor']}": line}, indent=2) + "\n")
    if settings["json"]:
        print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:])
