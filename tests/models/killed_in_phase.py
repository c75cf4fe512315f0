"""Recipes that end themselves with SIGKILL.  Importing them takes longer than running them: one process imports, each attempt
is a fork of it.

Reads lines ``[recipe.py, [key=value, ...], file for what it says, phase, step, seconds]`` and answers each with the attempt's
exit code (-9: killed).  SECONDS after it has entered PHASE of step STEP (from 0) the attempt is killed, and nothing that Python
would clean up is cleaned up; phase "write" is the thread's that writes a checkpoint, and "" leaves the attempt alone.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from vold_nemo.megatron import cpu
from vold_nemo.models.heartbeat import Heartbeat

WHAT_RECIPES_IMPORT = (
    "nemo.core.config", "vold_nemo.models.sft", "vold_nemo.models.vold", "vold_nemo.rollout.transformers_engine",
    "megatron.core.optimizer", "megatron.core.dist_checkpointing.strategies.torch", "megatron.core.pipeline_parallel",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
)  # fmt: skip


def kill_in(phase: str, step: int, seconds: float) -> None:
    note = Heartbeat.note

    def kill_later() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def note_and_kill(self, *arguments) -> None:
        note(self, *arguments)
        if (self.phase, self.step) == (phase, step):
            threading.Thread(target=kill_later, daemon=True).start()

    Heartbeat.note = note_and_kill


def kill_the_writer(step: int) -> None:
    """The process ends when its thread has written its own file of the checkpoint after ``step``, and no shard."""
    from vold_nemo.checkpoint.saving import Snapshot

    write_own = Snapshot._write_own

    def write_and_kill(self) -> None:
        write_own(self)
        if self.step == step + 1 and threading.current_thread() is not threading.main_thread():
            os.kill(os.getpid(), signal.SIGKILL)

    Snapshot._write_own = write_and_kill


def attempt(recipe: str, arguments: list[str], said: str, phase: str, step: int, seconds: float) -> int:
    """The exit code of the recipe in a process of its own."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if phase == "write":
            kill_the_writer(step)
        elif phase:
            kill_in(phase, step, seconds)
        sys.argv = [recipe, *arguments]
        sys.path.insert(0, str(Path(recipe).parent))
        runpy.run_path(recipe, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    cpu.enable()
    for name in WHAT_RECIPES_IMPORT:
        importlib.import_module(name)
    for line in sys.stdin:
        print(attempt(*json.loads(line)), flush=True)
