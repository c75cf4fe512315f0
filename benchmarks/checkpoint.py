"""How long training waits for a checkpoint: written at once, and by a thread from a copy in host memory.

    python benchmarks/checkpoint.py json=true
    python benchmarks/checkpoint.py hidden=1024 layers=8 tensor=2 folder=/scratch/here

Megatron's model of a random Qwen2.5-VL checkpoint with Adam's state, fp32, on ``tensor`` gloo ranks of one thread each.  The
two ways take turns; medians of ``repeats``, of the slowest rank:

    at_once    `saving.write`: shards, checksums, manifest, renamed
    waited     until `saving.Writer.save` comes back: training goes on from there
    behind     the thread's own time from there to the renamed folder, with a training step going on meanwhile
    step       one forward and backward pass of ``tokens`` tokens and an update, alone
    step_with  the same while the thread writes

Keys: tensor, hidden, layers, rows, tokens, repeats, folder (on the storage to measure), json, results (path or empty).
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

from benchmarks.measure import machine, parse  # noqa: E402
from benchmarks.sync import write_checkpoint  # noqa: E402

DEFAULTS = {
    "tensor": 1, "hidden": 512, "layers": 8, "rows": 16384, "tokens": 512, "repeats": 3, "folder": "", "json": False,
    "results": str(ROOT / "benchmarks/results/loading.json"),
}  # fmt: skip


def measure(path: str, folder: str, settings: dict) -> dict:
    """On one rank: seconds of every part, and bytes written."""
    import torch
    import torch.distributed as dist

    from vold_nemo.checkpoint import loading, saving
    from vold_nemo.config import OptimizerConfig
    from vold_nemo.megatron import architecture, build, parallel, training, weights
    from vold_nemo.megatron.optimizer import LearningRate, build_optimizer

    arch = architecture.read(path)
    layout = parallel.initialize(settings["tensor"], 1, seed=0, device="cpu")
    padded = architecture.padded_vocabulary([arch.vocabulary], settings["tensor"])
    model = build.build_model(arch, layout, padded_vocabulary=padded, dtype=torch.float32)
    weights.load_hf(model, arch, layout, weights.Files(path))
    options = OptimizerConfig(learning_rate=1e-5)
    model = training.wrap_ddp(model, distributed_optimizer=False)
    optimizer, schedule = build_optimizer(options, model), LearningRate(options, 1000)
    ids = torch.randint(0, arch.vocabulary, (1, settings["tokens"]))
    state, newest = loading.TrainingState(model, optimizer, schedule, layout), loading.Retention(1)

    def forward(stage, ids):
        hidden = stage(ids, torch.arange(ids.size(1)).expand_as(ids), None)
        return hidden, lambda value: training.summed(value.square().mean())

    def step() -> float:
        began = time.perf_counter()
        passed = training.forward_backward(model, [ids], forward, layout=layout)
        training.update(optimizer, schedule, passed, layout=layout)
        dist.barrier()
        return time.perf_counter() - began

    step()
    seconds: dict[str, list[float]] = {name: [] for name in ("at_once", "waited", "behind", "step", "step_with")}
    with saving.Writer(later=True) as writer:
        for number in range(2 * settings["repeats"]):
            dist.barrier()
            if number % 2:
                began = time.perf_counter()
                saving.write(folder, number, state, retention=newest)
                seconds["at_once"].append(time.perf_counter() - began)
                seconds["step"].append(step())
                continue
            began = time.perf_counter()
            writer.save(folder, number, state, wait=False, retention=newest)
            seconds["waited"].append(time.perf_counter() - began)
            seconds["step_with"].append(step())
            writer.settle()
            seconds["behind"].append(time.perf_counter() - began - seconds["waited"][-1])
    files = loading.read_manifest(loading.find_latest(folder))["files"]
    parallel.destroy()
    return {
        "seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
        "bytes": sum(entry["bytes"] for entry in files.values()),
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    settings = parse(arguments, DEFAULTS)
    from tests.gloo import Ranks

    with tempfile.TemporaryDirectory(dir=settings["folder"] or None) as folder:
        write_checkpoint(Path(folder) / "student", settings)
        workers = Ranks()
        try:
            paths = [str(Path(folder) / name) for name in ("student", "saved")]
            ranks = workers.of(settings["tensor"]).run(measure, *paths, settings, timeout=1800)
        finally:
            workers.stop()
    seconds = {name: max(rank["seconds"][name] for rank in ranks) for name in ranks[0]["seconds"]}
    line = {
        "benchmark": "checkpoint", "tensor": settings["tensor"], "bytes": ranks[0]["bytes"],
        "waited_ratio_vs_at_once": seconds["waited"] / seconds["at_once"],
        "behind_ratio_vs_at_once": seconds["behind"] / seconds["at_once"],
        "step_with_ratio_vs_step": seconds["step_with"] / seconds["step"],
        "steps_behind": seconds["behind"] / seconds["step"],
        "machine": machine("cpu"),
    }  # fmt: skip
    for name, value in line.items():
        print(f"{name:30} {value:.2f}" if isinstance(value, float) else f"{name:30} {value}")
    if settings["results"]:
        file = Path(settings["results"])
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | {f"tensor={settings['tensor']}": line}, indent=2) + "\n")
    if settings["json"]:
        print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:])
