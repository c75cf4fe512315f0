"""What a checkpoint takes beside the model, of a GPU and of the host's memory, rehearsed: bytes of one rank, nothing is run.

    python benchmarks/saving.py json=true
    python benchmarks/saving.py which=paper_3b results=

Each line is a training stage of an experiment in a process of its own, up to the files of its first checkpoint, which training
waits for, and of its second, which a thread writes from a copy.  The same in three ways:

    gathered   megatron-core's own ``fully_reshardable``: the optimizer's state goes to the first data rank
    first      each rank's share of the optimizer from where it lies; weights that all data ranks hold, by the first
    shared     as it is now: these are shared out, too

    GPU     bytes at the highest point beyond those that stood when the checkpoint began
    host    the same of host memory; tensors of less than 16 MiB do not count where a rehearsal computes them
    written bytes of this rank's tensors in one checkpoint

Keys: which (part of a name; empty = all), json, results (path without suffix, or empty).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import machine, parse, tell  # noqa: E402

DEFAULTS = {"which": "", "json": False, "results": str(ROOT / "benchmarks/results/saving")}
RUNS = {
    "paper_3b, SFT, rank 0 of 32 (TP2 DP16)": ["experiment=paper_3b", "rehearse.stage=sft"],
    "72B, SFT, rank 0 of 128 (TP8 PP2 DP8)": ["experiment=qwen2_5_vl_72b_from_235b", "rehearse.stage=sft"],
}
WAYS = ("gathered", "first", "shared")


def rehearsed(way: str, overrides: list[str]) -> dict:
    """In a process that has not imported torch: it plays a GPU from here on."""
    from vold_nemo.config.compose import compose
    from vold_nemo.rehearsal import run

    found, go = {}, run._run

    def watched(config, watch, folder, result) -> None:
        from vold_nemo.checkpoint import saving, sharded
        from vold_nemo.rehearsal import inputs

        save, ledger = inputs.OneStep.save_checkpoint, watch.ledger
        if way == "gathered":
            saving.sharded_state = lambda optimizer, weights: optimizer.sharded_state_dict(
                weights, metadata={"distrib_optim_sharding_type": "fully_reshardable"}
            )
        if way != "shared":
            sharded._share_out = lambda state: None

        def noted(self, *args, **options) -> None:
            if hasattr(self, "handover"):
                self.handover.enter("checkpoint")
            before = {name: getattr(ledger, name).live for name in ("device", "host")}
            ledger.enter("saving")
            save(self, *args, **options)
            for name, size in before.items():
                found[name] = getattr(ledger, name).peaks["saving"].size - size
            copied = sum(size for (phase, *_), size in ledger.copies.items() if phase == "saving")
            found["written"] = copied // 2  # two checkpoints
            found["held"] = before["device"]

        inputs.OneStep.save_checkpoint = noted
        go(config, watch, folder, result)

    run._run = watched
    done = run.rehearse(compose([*overrides, "rehearse.engine=local", "rehearse.micro_batches=1"]))
    if done.failed is not None:
        raise done.failed
    return found


def measure(s: dict) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for name, overrides in RUNS.items():
        if s["which"] not in name:
            continue
        found[name] = {}
        for way in WAYS:
            command = [sys.executable, str(Path(__file__)), "of", way, *overrides]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{name}, {way}: {done.stderr[-2000:]}")
            found[name][way] = json.loads(done.stdout.splitlines()[-1])
    return found


def table_of(found: dict[str, dict], where: str) -> str:
    lines = [
        "# What a checkpoint takes beside the model", "",
        "Made by `benchmarks/saving.py`; see its docstring. Rehearsed: one rank on fake CUDA tensors; no GPU has run it.",
        "", "| rank | way | GPU, GiB | host, GiB | written, GiB |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, ways in found.items():
        for way, said in ways.items():
            sizes = " | ".join(f"{said[key] / 2**30:.2f}" for key in ("device", "host", "written"))
            written = sizes if way != "gathered" else sizes.rpartition(" | ")[0] + " | –"  # what is gathered is copied, too
            lines.append(f"| {name} | {way} | {written} |")
    return "\n".join([*lines, "", f"Rehearsed on {where}.", ""])


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["of"]:
        print(json.dumps(rehearsed(arguments[1], arguments[2:])))
        return
    s = parse(arguments, DEFAULTS)
    found, where = measure(s), machine("cpu")
    tell(s, found, where, table_of(found, where))


if __name__ == "__main__":
    main(sys.argv[1:])
