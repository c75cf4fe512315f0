"""A training run as a process of its own, checkpointing behind each step, for a test to kill and start again."""

import json
import os
import signal
import sys
from pathlib import Path

from tests.megatron import steps
from vold_nemo.checkpoint import loading, saving


def die_writing(step: int) -> None:
    """The process ends in its thread, in the checkpoint after ``step`` steps, while other ranks' threads wait for it."""
    write_own = saving.Snapshot._write_own

    def write_and_die(self) -> None:
        write_own(self)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    saving.Snapshot._write_own = write_and_die


def main(source: str, folder: str, report: str, dies: str = "") -> None:
    parts = steps.trainer(Path(source), 2, 1)
    state, layout = steps.state(parts), parts[2]
    latest = loading.find_latest(folder)
    first = 0 if latest is None else loading.load(latest, state)[0]

    def say(line: dict) -> None:
        if layout.rank == 0:
            with open(report, "a") as file:
                file.write(json.dumps(line) + "\n")

    if dies and layout.rank == int(dies):
        die_writing(2)
    say({"resumed": first})
    with saving.Writer(later=True) as writer:
        for step in range(first, steps.STEPS):
            loss, norm = steps.train(parts, step, step + 1, 1)[0]
            say({"step": step, "loss": loss, "norm": norm})
            writer.save(folder, step + 1, state, wait=False, retention=loading.Retention(1))


if __name__ == "__main__":
    main(*sys.argv[1:])
