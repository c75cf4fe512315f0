"""Table and plot of every run that benchmarks/objective.py has kept."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

NAMES = {"dense": "dense torch", "single_pass": "ours", "two_pass": "ours, two passes", "trl": "TRL JSD", "liger": "Liger JSD"}
COLOURS = {"dense": "#9a6b4f", "single_pass": "#1f6f8b", "two_pass": "#6aa6b8", "trl": "#b3893b", "liger": "#7a5c99"}


def render(results: Path) -> None:
    """``results``.jsonl -> ``results``.md and ``results``.svg; of runs with the same settings the last one counts."""
    runs = {}
    for line in results.with_suffix(".jsonl").read_text().splitlines():
        run = json.loads(line)
        names = ("device", "dtype", "estimator", "tensor", "tokens", "chunk", "threads", "main_grad")
        key = *(run[name] for name in names), run.get("kernels", "torch"), run["machine"]
        runs.setdefault(key, []).append(run)
    ordered = [runs[key][-1] for key in sorted(runs)]
    results.with_suffix(".md").write_text(_table(ordered))
    if find_spec("matplotlib") is None:
        print("plot not drawn: matplotlib is not installed here; python benchmarks/objective.py render=true where it is")
        return
    _plot(ordered, results.with_suffix(".svg"))


def _table(runs: list[dict]) -> str:
    columns = (
        "tokens", "TP", "chunk", "estimator", "type", "processor", "method", "seconds", "CPU seconds", "peak MiB",
        "time / dense", "CPU time / dense", "peak / dense",
    )  # fmt: skip
    lines = [
        "# The objective beside dense torch, TRL and Liger", "",
        "Made by `benchmarks/objective.py`, whose docstring says what is measured. Forward and backward; peak beyond inputs,",
        "outputs and input gradients, of the largest rank; V = 151,936, H = 2048 and 4096. CPU seconds: of the slowest rank.",
        "On a CPU our large float32 products are oneDNN's, those of dense torch and TRL `torch.mm`'s (MKL). On an AMD core MKL",
        "reaches half of oneDNN's rate: that is most of the difference in time there. The peak does not depend on it.",
        "", f"| {' | '.join(columns)} |", "|---:|---:|---:|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for run in runs:
        for r in run["results"]:
            prefix = "" if r["method"] == "single_pass" else f"{r['method']}_"
            shares = [run.get(f"{prefix}{name}_ratio_vs_dense") for name in ("time", "cpu_time", "peak")]
            said = ["" if share is None else f"{share:.2f}" for share in shares[:2]]
            said.append("" if shares[2] is None else f"1/{1 / shares[2]:.1f}" if shares[2] < 1 else f"{shares[2]:.1f}")
            processor = ", ".join([run["machine"].partition(",")[0], *([run["note"]] if "note" in run else [])])
            where = f"{run['dtype']}, {run['device']} | {processor}"
            what = f"{run['tokens']} | {run['tensor']} | {run['chunk']} | {run['estimator']} | {where}"
            cost = f"{r['seconds']:.2f} | {r['cpu_seconds']:.2f} | {r['peak_bytes'] / 2**20:.0f}"
            name = NAMES[r["method"]]
            if run.get("kernels") == "triton" and r["method"] in ("single_pass", "two_pass"):
                name += ", Triton"
            lines.append(f"| {what} | {name} | {cost} | {' | '.join(said)} |")
    machines = sorted({run["machine"] for run in runs})
    return "\n".join([*lines, "", *(f"Measured on {machine}." for machine in machines), ""])


def _plot(runs: list[dict], path: Path) -> None:
    """Peak over tokens on the left, processor seconds over tokens on the right; solid TP 1, dashed TP 2."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "objective"  # the same runs give the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    curves: dict[tuple, list] = {}
    for run in runs:
        for r in run["results"]:
            key = r["method"], run["tensor"], run["estimator"], run["dtype"], run["device"], run["machine"]
            curves.setdefault(key, []).append((run["tokens"], r["peak_bytes"] / 2**20, r["cpu_seconds"]))
    named = set()
    for (method, tensor, *_), points in sorted(curves.items()):
        for axis, column in zip(axes, (1, 2), strict=True):
            label = NAMES[method] + (f", TP {tensor}" if tensor > 1 else "")
            points = sorted(points)
            axis.plot(
                [p[0] for p in points], [p[column] for p in points], "o-" if tensor == 1 else "s--",
                color=COLOURS[method], label=None if (axis, label) in named else label, markersize=4,
            )  # fmt: skip
            named.add((axis, label))
    ticks = sorted({run["tokens"] for run in runs})
    for axis, title in zip(axes, ("Peak beyond inputs and gradients, MiB", "Processor seconds, both passes"), strict=True):
        axis.set(title=title, xlabel="tokens", xscale="log", yscale="log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
