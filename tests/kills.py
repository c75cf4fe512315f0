"""Kill training runs at random instants until KILLS have been made, and hold each run to the undisturbed one, bit for bit.

    python -m tests.kills 200 outputs/kills          make test-kills KILLS=200
    python -m tests.kills 200 outputs/kills          again: goes on behind the runs that are finished

Both stages, on two tensor-parallel and on two data-parallel ranks.  A run is killed one to four times (kill -9, of both ranks
or of one), each time at an instant drawn from the length of the undisturbed run, then left to end.  Everything is drawn from
the number of the run.  One line a run in FOLDER/kills.jsonl, and a summary; leaves with 1 if any run ended otherwise.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.models.killed_in_phase import WHAT_RECIPES_IMPORT
from tests.models.stages import make_world
from tests.models.test_resume import command, curve, rank_states, shards
from tests.ports import free_port

STAGES, LAYOUTS, RANKS = ("sft", "vold"), ("tp2", "dp2"), 2
LONGEST = 300.0  # seconds of an attempt that nobody kills
MOST = 4  # kills of a run


def start(arguments: Sequence[str], said: Path) -> list[int]:
    """Both ranks of a recipe as forks of this process, which has imported what takes long; their process ids."""
    port = str(free_port())
    ranks = []
    for rank in range(RANKS):
        child = os.fork()
        if child:
            ranks.append(child)
            continue
        code = 1
        try:
            os.setsid()
            file = os.open(said.with_name(f"{said.name}.{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(file, number)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(RANKS)}  # fmt: skip
            sys.argv = list(arguments)
            sys.path.insert(0, str(Path(arguments[0]).parent))
            runpy.run_path(arguments[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return ranks


def wait(ranks: Sequence[int], seconds: float) -> list[int | None]:
    """Exit codes of the ranks after at most ``seconds``; None of one that still runs."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(ranks) and time.monotonic() < deadline:
        for rank in set(ranks) - set(codes):
            ended, status = os.waitpid(rank, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return [codes.get(rank) for rank in ranks]


def kill(ranks: Sequence[int], codes: Sequence[int | None]) -> None:
    """Those that still run, and reap them."""
    for rank, code in zip(ranks, codes, strict=True):
        if code is None:
            os.kill(rank, signal.SIGKILL)
            os.waitpid(rank, 0)


def whole(arguments: Sequence[str], outputs: Path) -> None:
    """An attempt to its end."""
    ranks = start(arguments, outputs / "said")
    codes = wait(ranks, LONGEST)
    kill(ranks, codes)
    if codes != [0] * RANKS:
        raise RuntimeError(f"left with {codes}: {(outputs / 'said.0').read_text()[-3000:]}")


def where(outputs: Path) -> str:
    """Step and phase of rank 0's last heartbeat, and whether a checkpoint was half written."""
    beat, half = outputs / "run/heartbeat/rank_0.json", list(outputs.glob("run/checkpoints/step_*.tmp"))
    said = json.loads(beat.read_text()) if beat.is_file() else {"phase": "before the first heartbeat", "step": 0}
    done = sorted(path.name for path in outputs.glob("run/checkpoints/step_*[0-9]"))
    return f"{said['phase']}, {done[-1] if done else 'no checkpoint'}{', one half written' if half else ''}"


def differing(reference: Path, outputs: Path) -> list[str]:
    """What a finished run has otherwise than the undisturbed one."""
    found = [name for name, read in (("metrics", curve), ("shards", shards)) if read(outputs) != read(reference)]
    for rank, (a, b) in enumerate(zip(rank_states(reference), rank_states(outputs), strict=True)):
        same = bool((a["random"]["torch"] == b["random"]["torch"]).all())
        if not same or a["schedule"] != b["schedule"] or a["extra"] != b["extra"]:
            found.append(f"state of rank {rank}")
    return found + ([] if (outputs / "run/student.nemo").is_file() else ["no student.nemo"])


def one(number: int, world: Path, folder: Path) -> dict[str, Any]:
    """Run ``number``, from its first attempt to the comparison."""
    draw = random.Random(f"kills/{number}")
    stage, layout = list(itertools.product(STAGES, LAYOUTS))[number % 4]
    reference, outputs = folder / f"{stage}_{layout}", folder / f"run_{number}"
    lasted = reference / "seconds"

    def arguments(place: Path) -> list[str]:
        return command(world, stage, 1, place, f"parallel={layout}")[1:]

    if not lasted.is_file():
        shutil.rmtree(reference, ignore_errors=True)
        reference.mkdir()
        began = time.monotonic()
        whole(arguments(reference), reference)
        lasted.write_text(str(time.monotonic() - began))
    shutil.rmtree(outputs, ignore_errors=True)
    outputs.mkdir()
    kills = []
    for _ in range(draw.randint(1, MOST)):
        after, which = draw.uniform(0, float(lasted.read_text())), draw.choice(("both", "both", "0", "1"))
        ranks, began = start(arguments(outputs), outputs / "said"), time.monotonic()
        codes = wait(ranks, after)
        if None not in codes:
            if not kills:  # a whole run in less time than was known
                lasted.write_text(str(min(float(lasted.read_text()), time.monotonic() - began)))
            break
        kills.append({"after": round(after, 3), "which": which, "where": where(outputs)})
        if which != "both" and codes[int(which)] is None:
            os.kill(ranks[int(which)], signal.SIGKILL)
            codes = wait(ranks, 60)  # the other finds out by itself, or is ended as a launcher would
        kill(ranks, codes)
    try:
        whole(arguments(outputs), outputs)
        wrong = differing(reference, outputs)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        wrong = [str(error)]
    if not wrong:
        shutil.rmtree(outputs)
    return {"run": number, "stage": stage, "layout": layout, "kills": kills, "wrong": wrong}


def summary(runs: Sequence[dict[str, Any]]) -> str:
    lines = []
    for stage, layout in itertools.product(STAGES, LAYOUTS):
        own = [run for run in runs if (run["stage"], run["layout"]) == (stage, layout)]
        kills = [kill for run in own for kill in run["kills"]]
        half = sum("half written" in kill["where"] for kill in kills)
        right = sum(not run["wrong"] for run in own)
        made = f"{len(kills):4} kills ({half} in a checkpoint)"
        lines.append(f"{stage:<5} {layout}: {made}, {right} of {len(own)} runs bit for bit")
    wrong = [run for run in runs if run["wrong"]]
    total = sum(len(run["kills"]) for run in runs)
    lines.append(f"all: {total} kills, {len(runs) - len(wrong)} of {len(runs)} runs bit for bit")
    lines += [f"WRONG run {run['run']} ({run['stage']} {run['layout']}): {'; '.join(run['wrong'])[:2000]}" for run in wrong]
    return "\n".join(lines)


def main(wanted: int, folder: Path) -> int:
    folder = folder.resolve()
    record, world = folder / "kills.jsonl", folder / "world"
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if not (world / ".made").is_file():
        shutil.rmtree(world, ignore_errors=True)
        world.mkdir(parents=True)
        make_world(world)
        (world / ".made").touch()
    runs = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    while sum(len(run["kills"]) for run in runs) < wanted:
        runs.append(one(len(runs), world, folder))
        with record.open("a") as file:
            file.write(json.dumps(runs[-1]) + "\n")
        print(f"{runs[-1]}", flush=True)
    print(summary(runs))
    return int(any(run["wrong"] for run in runs))


if __name__ == "__main__":
    from vold_nemo.megatron import cpu

    cpu.enable()
    for name in WHAT_RECIPES_IMPORT:
        importlib.import_module(name)
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
