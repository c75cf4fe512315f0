"""A recipe that ends itself with SIGKILL: ``killed_in_phase.py PHASE STEP SECONDS recipe.py key=value ...``.

SECONDS after it has entered PHASE of step STEP (from 0); nothing that Python would clean up is cleaned up.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from vold_nemo.models.heartbeat import Heartbeat

PHASE, STEP, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
note = Heartbeat.note


def kill_later() -> None:
    time.sleep(SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def note_and_kill(self, phase: str, step: int | None = None) -> None:
    note(self, phase, step)
    if (self.phase, self.step) == (PHASE, STEP):
        threading.Thread(target=kill_later, daemon=True).start()


Heartbeat.note = note_and_kill
sys.argv = sys.argv[4:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
