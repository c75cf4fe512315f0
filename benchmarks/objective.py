"""What one evaluation of the objective costs, forward and backward: ours beside others on the same tensors.

    python benchmarks/objective.py tokens=2048 json=true
    python benchmarks/objective.py tokens=512 tensor=2 threads=2
    .venv-trl/bin/python benchmarks/objective.py estimator=jsd methods=dense,single_pass,trl      TRL's environment
    python benchmarks/objective.py device=cuda dtype=bf16 tokens=8192 chunk=512 estimator=jsd repeats=5
    python benchmarks/objective.py render=true                                                   table and plot again

Methods (benchmarks/objective_methods.py): ``dense`` keeps [tokens, V] logits and lets autograd do the rest; ``single_pass`` and
``two_pass`` are ours; ``trl`` is TRL's generalised JSD loss, ``liger`` Liger's fused linear JSD (CUDA).  Each runs in processes
of its own, ``tensor`` of them under tensor parallelism (gloo; the slowest rank's time and the largest rank's peak count).

``peak`` is the highest memory beyond inputs, outputs and input gradients.  Gradients of inputs are born during the backward
pass: what they take is subtracted where the whole step peaks; the peak up to the birth of the first one is taken as it is.
The last line of ``json=true`` holds ``peak_ratio_vs_dense`` and ``time_ratio_vs_dense`` of the single pass (dense = 1);
``cpu_seconds`` is the processor time, which a busy machine distorts less than the clock.  Every run is added to
``results``.jsonl, from which ``results``.md and ``results``.svg are drawn; ``results=`` (empty) keeps nothing.

Keys: tokens, vocabulary, hidden, teacher_hidden, chunk, estimator (reverse | forward | jsd | k2), dtype (fp32 | bf16), device
(cpu | cuda), tensor, repeats, threads (of all ranks together; 0 = torch's choice), main_grad (ours adds ∂head to a float32
buffer that is there already, as Megatron's is), kernels (torch | triton: who walks over ours' logits; CUDA), methods (comma
separated), json, results, render.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import Peak, machine, parse  # noqa: E402

DEFAULTS = {
    "tokens": 2048, "vocabulary": 151_936, "hidden": 2048, "teacher_hidden": 4096, "chunk": 192, "estimator": "reverse",
    "dtype": "fp32", "device": "cpu", "tensor": 1, "repeats": 1, "threads": 0, "main_grad": False, "kernels": "torch",
    "methods": "dense,single_pass,two_pass,trl,liger", "json": False, "render": False,
    "results": str(ROOT / "benchmarks/results/objective"),
}  # fmt: skip


def measure(method: str, s: dict, rank: int, meeting: str) -> dict:
    """Seconds (the fastest repeat) and peak bytes of one method on one rank, in this process."""
    import torch
    import torch.distributed as dist

    from benchmarks.objective_methods import IMPORTS, METHODS, Problem

    importlib.import_module(IMPORTS.get(method, "vold_nemo.objective"))
    if s["threads"]:
        torch.set_num_threads(max(1, s["threads"] // s["tensor"]))
    group = None
    if s["tensor"] > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=s["tensor"])
        group = dist.group.WORLD
    problem = Problem.make(s, rank, group)
    seconds, cpu_seconds, peaks, loss = [], [], [], None
    for _ in range(s["repeats"]):
        problem.hidden.grad = problem.head.grad = None
        if problem.main_grad is not None:
            problem.main_grad.zero_()
        peak, start, cpu_start = Peak(s["device"]), time.perf_counter(), time.process_time()
        before = []
        problem.at_gradients = lambda _, peak=peak, before=before: before.append(peak.stop())
        loss = METHODS[method](problem)
        loss.backward()
        after = peak.stop()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        born = sum(t.grad.numel() * t.grad.element_size() for t in (problem.hidden, problem.head) if t.grad is not None)
        peaks.append(max(after - born, *before, 0))
    gradient = problem.main_grad if problem.head.grad is None else problem.head.grad
    if group is not None:
        dist.destroy_process_group()
    return {
        "method": method, "seconds": min(seconds), "cpu_seconds": min(cpu_seconds), "peak_bytes": max(peaks),
        "loss": float(loss), "gradient_norm": float(gradient.float().norm()),
    }  # fmt: skip


def run(method: str, s: dict) -> dict:
    """``method`` on all ranks, each in a process; the worst rank's numbers."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TRL_EXPERIMENTAL_SILENCE="1")
    if s["threads"]:
        environment["OMP_NUM_THREADS"] = str(max(1, s["threads"] // s["tensor"]))
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c",
                 "import json; from benchmarks.objective import measure; "
                 f"print(json.dumps(measure({method!r}, {s!r}, {rank}, {folder + '/meeting'!r})))"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            )
            for rank in range(s["tensor"])
        ]  # fmt: skip
        said = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise SystemExit(f"{method} failed with {process.returncode}:\n{errors[-3000:]}")
    ranks = [json.loads(output.splitlines()[-1]) for output, _ in said]
    worst = {key: max(rank[key] for rank in ranks) for key in ("seconds", "cpu_seconds", "peak_bytes")}
    norm = sum(rank["gradient_norm"] ** 2 for rank in ranks) ** 0.5  # ranks hold different rows
    return {"method": method, **worst, "loss": ranks[0]["loss"], "gradient_norm": norm}


def ratios(results: dict[str, dict]) -> dict[str, float]:
    """Each method's peak and times over dense's; the single pass's without a prefix."""
    said = {}
    for method, r in results.items():
        if "dense" not in results or method == "dense":
            continue
        prefix, base = "" if method == "single_pass" else f"{method}_", results["dense"]
        said[f"{prefix}peak_ratio_vs_dense"] = r["peak_bytes"] / base["peak_bytes"]
        said[f"{prefix}time_ratio_vs_dense"] = r["seconds"] / base["seconds"]
        said[f"{prefix}cpu_time_ratio_vs_dense"] = r["cpu_seconds"] / base["cpu_seconds"]
    return said


def main(arguments: list[str]) -> None:
    from benchmarks.objective_methods import METHODS, unavailable
    from benchmarks.objective_report import render

    s = parse(arguments, DEFAULTS)
    if s["render"]:
        render(Path(s["results"]))
        return
    if s["vocabulary"] % s["tensor"]:
        raise SystemExit(f"vocabulary={s['vocabulary']}: must divide by tensor={s['tensor']}; pad it to a multiple")
    results = {}
    print(f"{'method':<12} {'seconds':>8} {'cpu s':>8} {'peak GiB':>9}  loss")
    for method in s["methods"].split(","):
        if method not in METHODS:
            raise SystemExit(f"methods={s['methods']}: {method!r} is none of {', '.join(METHODS)}")
        if reason := unavailable(method, s):
            print(f"{method:<12} left out: {reason}")
            continue
        results[method] = r = run(method, s)
        print(f"{method:<12} {r['seconds']:8.2f} {r['cpu_seconds']:8.2f} {r['peak_bytes'] / 2**30:9.3f}  {r['loss']:.6f}")
    settings = {key: value for key, value in s.items() if key not in ("json", "results", "render", "methods")}
    line = {**settings, "machine": machine(s["device"]), "results": list(results.values()), **ratios(results)}
    if s["results"]:
        path = Path(s["results"]).with_suffix(".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        render(Path(s["results"]))
    if s["json"]:
        print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:])
