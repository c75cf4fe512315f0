"""What a step costs a GPU beside its FLOPs, counted by rehearsals: memory, waits, launches and bytes; no GPU is needed.

    python benchmarks/lean.py                                    every row, of this checkout; kept as "after"
    python benchmarks/lean.py which=objective                    rows whose names begin so
    python benchmarks/lean.py root=OTHER_CHECKOUT label=before   of another checkout, kept under another word
    python benchmarks/lean.py which=phases                       the largest phases of three experiments

Rows are kept one by one in ``results`` (.json), beside what other calls left there, and the table (.md) is drawn of all.  Keys:
root, label, which (empty = all), results (path without suffix).  Nothing here is measured on a GPU: see docs/rehearsal.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import parse  # noqa: E402

DEFAULTS = {"root": str(ROOT), "label": "after", "which": "", "results": str(ROOT / "benchmarks/results/lean")}
PAPER, LAYERS = "experiment=paper_3b", 36
CHUNK = {"before": 512}  # tokens a chunk where no other was chosen; else that of a GPU
EXPERIMENTS = ("paper_3b_h100", "qwen2_5_vl_7b_from_32b_h100", "qwen2_5_vl_72b_from_235b")
MEANS = {
    "sft_activations_gib": "paper_3b, SFT: activations and loss of one micro-batch of 8,192 tokens, GiB",
    "waits_train": "paper_3b, VOLD: the host waits for the device, per micro-batch that is trained on",
    "waits_teacher": "paper_3b, VOLD: the same, per micro-batch that the teacher scores",
    "packed_waits": "paper_3b, SFT with packed rows and parallel.recompute=full: the host waits, per layer",
    "objective_k2": "objective, k2, torch: 8,192 tokens, 75,968 ids",
    "objective_reverse": "objective, exact reverse KL, torch: the same",
    "objective_triton": "objective, exact reverse KL, Triton: the same",
    "phases": "launches, waits and peak of the phases that took most",
}


@cache
def rehearsed(root: str, *asked: str) -> dict:
    """``recipes/rehearse.py`` of the checkout ``root``: its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, f"{root}/recipes/rehearse.py", *asked, f"rehearse.path={folder}"]
        done = subprocess.run(command, env=_environment(root), capture_output=True, text=True)
        files = list(Path(folder).glob("*.json"))
        if not files:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr[-3000:]}")
        return json.loads(files[0].read_text())


def _environment(root: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": root, "TORCHDYNAMO_DISABLE": "1"}


def phase(found: dict, name: str) -> dict:
    return next(row for row in found["phases"] if row["phase"] == name)


def activations(root: str, label: str) -> float:
    found = rehearsed(root, PAPER, "rehearse.stage=sft", "rehearse.micro_batches=1")
    return round((phase(found, "train")["peak_bytes"] - sum(found["held"].values())) / 2**30, 2)


def waits(name: str) -> Callable[[str, str], float]:
    """Of four micro-batches less those of two: half of either are scored."""

    def per_micro_batch(root: str, label: str) -> float:
        four, two = (rehearsed(root, PAPER, "rehearse.stage=vold", f"rehearse.micro_batches={n}") for n in (4, 2))
        return (phase(four, name)["waits"] - phase(two, name)["waits"]) / (2 if name == "train" else 1)

    return per_micro_batch


def packed(root: str, label: str) -> float:
    found = rehearsed(root, PAPER, "rehearse.stage=sft", "rehearse.micro_batches=1", "sft.packing=true", "sft.micro_batch=1",
                      "sft.pack_length=8192", "parallel.recompute=full")  # fmt: skip
    rows = [row for row in found["waits"] if row["phase"] == "train"]
    inside = ("rope_utils", "megatron/layers.py", "dot_product_attention")
    return sum(row["count"] for row in rows if any(place in row["place"] for place in inside)) / LAYERS


def objective(estimator: str, kernels: str) -> Callable[[str, str], dict]:
    def counted(root: str, label: str) -> dict:
        script, chunk = str(ROOT / "benchmarks/lean_objective.py"), str(CHUNK.get(label, 2048))
        done = subprocess.run(
            [sys.executable, script, root, estimator, kernels, chunk], env=_environment(root), capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(done.stdout.splitlines()[-1])

    return counted


def phases(root: str, label: str) -> dict:
    """By experiment and stage: phases by the launches that they took (of the micro-batches that were run), waits and GiB."""
    said = {}
    for experiment in EXPERIMENTS:
        for stage in ("sft", "vold"):
            found = rehearsed(root, f"experiment={experiment}", f"rehearse.stage={stage}", "rehearse.micro_batches=2")
            rows = sorted(found["phases"], key=lambda row: -row["launches"])[:5]
            said[f"{experiment}, {stage}"] = {
                row["phase"]: {
                    "launches": row["launches"], "waits": row["waits"], "peak_gib": round(row["peak_bytes"] / 2**30, 2),
                    "seconds": found["seconds"].get(row["phase"], {}),
                } for row in rows
            }  # fmt: skip
            said[f"{experiment}, {stage}"]["violations"] = len(found["violations"])
    return said


ROWS: dict[str, Callable] = {
    "sft_activations_gib": activations, "waits_train": waits("train"),
    "waits_teacher": waits("teacher"), "packed_waits": packed, "objective_k2": objective("k2", "torch"),
    "objective_reverse": objective("reverse", "torch"), "objective_triton": objective("reverse", "triton"), "phases": phases,
}  # fmt: skip


def table_of(kept: dict[str, dict]) -> str:
    labels = list(kept)
    lines = [
        "# What a step costs beside its FLOPs", "",
        "Made by `benchmarks/lean.py` from rehearsals on fake CUDA tensors: counted, not measured on a GPU.", "",
        f"| | {' | '.join(labels)} |", f"|---|{'---|' * len(labels)}",
    ]  # fmt: skip
    for name, meaning in MEANS.items():
        found = [kept[label].get(name) for label in labels]
        if name == "phases" or not any(one is not None for one in found):
            continue
        keys = next((list(one) for one in found if isinstance(one, dict)), None)
        for key in keys or [None]:
            cells = [one.get(key) if isinstance(one, dict) else one for one in found]
            said = [f"{cell:,}" if isinstance(cell, int | float) else "–" for cell in cells]
            lines.append(f"| {meaning}{f': {key}' if key else ''} | {' | '.join(said)} |")
    for label in labels:
        for run, rows in kept[label].get("phases", {}).items():
            told = "; ".join(
                f"{name} {row['launches']:,} launches, {row['waits']} waits, {row['peak_gib']} GiB"
                for name, row in rows.items() if isinstance(row, dict)
            )  # fmt: skip
            lines += ["", f"{label}, {run} (2 micro-batches run, {rows['violations']} violations): {told}."]
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> None:
    s = parse(arguments, DEFAULTS)
    path = Path(s["results"])
    for name, row in ROWS.items():
        if not name.startswith(s["which"]):
            continue
        value = row(s["root"], s["label"])
        print(f"{name}: {json.dumps(value)}", flush=True)
        kept = json.loads(path.with_suffix(".json").read_text()) if path.with_suffix(".json").exists() else {}
        kept.setdefault(s["label"], {})[name] = value
        path.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
        path.with_suffix(".md").write_text(table_of(dict(sorted(kept.items(), key=lambda item: item[0] != "before"))))


if __name__ == "__main__":
    main(sys.argv[1:])
