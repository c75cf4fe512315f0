"""Makes ``expected.json``: what rehearsals say of the configurations that ``step.py`` runs, for each kind of GPU.

    python -m tests.gpu.expected             # a minute each, a CPU build of torch, no GPU
    python -m tests.gpu.expected "peak 9.0"  # one of them anew
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.gpu.facts import ROOT, versions
from tests.gpu.step import EXPECTED, overrides_of

NAMES = [f"{name} {capability}" for capability in ("9.0", "8.0", "10.0") for name in ("peak", "step")]


def rehearse(key: str) -> dict:
    """Peaks by phase of the configuration ``key``, "<item> <compute capability>", by recipes/rehearse.py."""
    name, capability = key.split()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(ROOT / "recipes/rehearse.py"), *overrides_of(name), f"cluster.compute_capability={capability}",
            "rehearse.engine=te", f"rehearse.path={folder}/kept",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        files = list(Path(folder).glob("kept/vold_rank0_of_1.json"))
        if not files:
            raise SystemExit(f"{key}: the rehearsal left with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        found = json.loads(files[0].read_text())
    return {
        "configuration": found["configuration"], "layers": found["layers"],
        "violations": [one["kind"] + ": " + one["what"] for one in found["violations"]],
        "peaks": {row["phase"]: row["peak_bytes"] for row in found["phases"]},
        "when": datetime.now(UTC).date().isoformat(),
        "versions": {name: versions()[name] for name in ("torch", "megatron-core")},
    }  # fmt: skip


def main(keys: list[str]) -> None:
    for key in keys or NAMES:
        found = rehearse(key)  # before the file is read: another may be at work on another key
        known = json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else {}
        EXPECTED.write_text(json.dumps(dict(sorted({**known, key: found}.items())), indent=1) + "\n")
        print(f"{key}: written to {EXPECTED}")


if __name__ == "__main__":
    main(sys.argv[1:])
