"""A training run as a process of its own, checkpointing after each step, for a test to kill and start again."""

import json
import sys
from pathlib import Path

from tests.megatron import steps
from vold_nemo.megatron import checkpoint, saving


def main(source: str, folder: str, report: str) -> None:
    parts = steps.trainer(Path(source), 2, 1)
    model, _, layout, optimizer, schedule = parts
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "layout": layout}
    latest = checkpoint.find_latest(folder)
    first = 0 if latest is None else checkpoint.load(latest, **state)[0]

    def say(line: dict) -> None:
        if layout.rank == 0:
            with open(report, "a") as file:
                file.write(json.dumps(line) + "\n")

    say({"resumed": first})
    for step in range(first, steps.STEPS):
        loss, norm = steps.train(parts, step, step + 1, 1)[0]
        say({"step": step, "loss": loss, "norm": norm})
        saving.write(folder, step + 1, keep=1, **state)


if __name__ == "__main__":
    main(*sys.argv[1:])
