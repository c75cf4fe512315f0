"""``make gpu``: what one GPU proves of this project in eight minutes; see docs/first_gpu.md.

    python -m tests.gpu.acceptance [--only fp8_linear,objective] [--out FILE] [--seconds 480]
    python -m tests.gpu.acceptance --rehearse [--capability 8.0]      # without a GPU; proves that every line runs, no number

Lines go to FILE (default: outputs/acceptance/<time>_<gpu>.jsonl).  Exit codes: 0 nothing failed, 1 something did or ran out of
time, 2 there is no GPU here, or a wrong argument.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.gpu import facts, runner
from tests.gpu.items import ITEMS, TOTAL

NO_GPU = """no GPU: torch {torch} {built} sees none here{driver}.
    with one:           check nvidia-smi and CUDA_VISIBLE_DEVICES; slurm/build_gpu.sh makes an environment whose torch has CUDA,
                        and `make gpu GPU_PYTHON=<that environment>/bin/python` uses it
    under Slurm:        sbatch slurm/acceptance.sbatch
    without a network:  python -m tests.gpu.pack FOLDER (docs/first_gpu.md)
    to rehearse it:     make gpu REHEARSE=1"""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.acceptance", description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="on a CPU and on a GPU that is played")
    parser.add_argument("--capability", default="9.0", choices=("8.0", "9.0", "10.0"), help="of the GPU that is played")
    parser.add_argument("--only", default="", help=f"comma separated: {', '.join(item.name for item in ITEMS)}")
    parser.add_argument("--out", default=None, help="file of JSON lines, added to")
    parser.add_argument("--seconds", type=float, default=None, help=f"of all items (default {TOTAL:.0f}; rehearsed: any)")
    found = parser.parse_args(argv)
    unknown = set(filter(None, found.only.split(","))) - {item.name for item in ITEMS}
    if found.seconds is not None and not (found.seconds > 0 and math.isfinite(found.seconds)):
        parser.error(f"--seconds {found.seconds:g}: a number above 0")
    if unknown:
        parser.error(f"--only: no item {', '.join(sorted(unknown))}; there are {', '.join(item.name for item in ITEMS)}")
    return found


def jobs_of(asked: argparse.Namespace) -> list[runner.Job]:
    wanted = [item for item in ITEMS if not asked.only or item.name in asked.only.split(",")]
    jobs = []
    for item in wanted:
        for kind in item.rehearsed_on if asked.rehearse else ("gpu",):

            def command(file: Path, item=item, kind=kind) -> list[str]:
                return [sys.executable, "-m", "tests.gpu.child", item.name, kind, str(file), asked.capability]

            seconds = item.rehearsal_seconds if asked.rehearse else item.seconds
            jobs.append(runner.Job(item.name, item.what, seconds, command, kind if asked.rehearse else None))
    return jobs


def main(argv: Sequence[str]) -> int:
    asked = arguments(argv)
    root = str(facts.ROOT)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if asked.rehearse:  # a CPU is what it is for: a GPU that is here would be seen by megatron-core
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    else:
        environment["CUDA_DEVICE_MAX_CONNECTIONS"] = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    seen, driver, found = runner.seen_by_torch(environment), facts.driver(), facts.versions()
    if not asked.rehearse and (seen is None or seen["gpu"] is None):
        built = "does not answer and"
        if seen is not None:
            built = f"(built for CUDA {seen['cuda']})" if seen["cuda"] else "(a CPU build)"
        beside = f", though nvidia-smi finds driver {driver}" if driver else ""
        print(NO_GPU.format(torch=found["torch"] or "(not installed)", built=built, driver=beside), file=sys.stderr)
        return 2
    level, other = facts.evidence(found, facts.pins())
    said = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": found, "driver": driver, **(seen or {}),
            "evidence": level, "unpinned": other}  # fmt: skip
    name = re.sub(r"[^A-Za-z0-9]+", "-", "rehearsal" if asked.rehearse else said["gpu"]).strip("-")
    default = Path("outputs/acceptance") / f"{time.strftime('%Y%m%d_%H%M%S')}_{name}.jsonl"
    file = Path(asked.out) if asked.out else default
    total = asked.seconds or (float("inf") if asked.rehearse else TOTAL)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        opened = file.open("a")
    except OSError as error:
        print(f"error: --out {file}: {error.strerror}; name a file that can be written", file=sys.stderr)
        return 2
    with opened as out:
        lines = runner.run_all(jobs_of(asked), total=total, facts=said, out=out, environment=environment)
    print("\n" + runner.summary(lines))
    if asked.rehearse:
        print("rehearsed: the code came to its end; what needs a GPU's numbers is not judged (null), and nothing was proved")
    print(f"written: {file}")
    return runner.exit_code(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
