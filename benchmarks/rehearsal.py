"""What a rehearsal costs on the machine that it runs on: processor seconds and memory of the whole process.

    python benchmarks/rehearsal.py json=true
    python benchmarks/rehearsal.py which=export repeats=1 results=

Each is one rank of one stage in a process of its own, as recipes/rehearse.py runs it, imports included; the shim is compiled
and Transformer Engine fetched before, where that is needed.  Keys: which (part of a name; empty = all), engine, repeats (the
least is told), json, results (path without suffix, or empty).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import machine, parse, tell  # noqa: E402

DEFAULTS = {"which": "", "engine": "auto", "repeats": 1, "json": False, "results": str(ROOT / "benchmarks/results/rehearsal")}
LARGE = "experiment=qwen2_5_vl_72b_from_235b"
RUNS = {
    "paper_3b, SFT, rank 0 of 32": ["experiment=paper_3b", "rehearse.stage=sft"],
    "paper_3b, VOLD, rank 0 of 4": ["experiment=paper_3b", "rehearse.stage=vold"],
    "72B from 235B, VOLD, rank 100 of 128": [LARGE, "rehearse.stage=vold", "rehearse.rank=100"],
    "72B, export on a CPU": [LARGE, "rehearse.stage=export", "device=cpu"],
}


def once(overrides: list[str], engine: str, folder: Path) -> dict:
    asked = [*overrides, f"rehearse.engine={engine}", f"rehearse.path={folder}"]
    command = [sys.executable, str(ROOT / "recipes/rehearse.py"), *asked]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    (file,) = folder.glob("*.json")
    found = json.loads(file.read_text())
    return {
        "processor_seconds": used.ru_utime + used.ru_stime, "of_them_rehearsing": found["processor_seconds"],
        "resident_mib": used.ru_maxrss / 1024, "layers": found["layers"], "violations": len(found["violations"]),
        "micro_batches": found["micro_batches"], "launches": sum(row["launches"] for row in found["phases"]),
        "peak_gib": max((row["peak_bytes"] for row in found["phases"]), default=0) / 2**30,
    }  # fmt: skip


def measure(s: dict) -> dict[str, dict]:
    found = {}
    for name, overrides in RUNS.items():
        if s["which"] in name:
            runs = []
            for _ in range(s["repeats"]):
                with tempfile.TemporaryDirectory() as folder:
                    runs.append(once(overrides, s["engine"], Path(folder)))
            found[name] = min(runs, key=lambda run: run["processor_seconds"])
    return found


def table_of(s: dict, found: dict[str, dict], where: str) -> str:
    lines = [
        "# What a rehearsal costs", "", "Made by `benchmarks/rehearsal.py`; see its docstring. One process each.", "",
        "| rehearsal | layers | micro-batches | processor s | resident, MiB | launches noted | peak found, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in found.items():
        batches = f"{run['micro_batches']['run']} of {run['micro_batches']['planned']}" if run["micro_batches"]["run"] else "–"
        lines.append(
            f"| {name} | {run['layers']} | {batches} | {run['processor_seconds']:.0f} | {run['resident_mib']:,.0f} | "
            f"{run['launches']:,} | {run['peak_gib']:.1f} |"
        )
    settings = ", ".join(f"{key}={s[key]}" for key in ("engine", "repeats"))
    return "\n".join([*lines, "", f"Settings: {settings}.", f"Measured on {where}.", ""])


def main(arguments: list[str]) -> None:
    s = parse(arguments, DEFAULTS)
    found, where = measure(s), machine("cpu")
    tell(s, found, where, table_of(s, found, where))


if __name__ == "__main__":
    main(sys.argv[1:])
