"""Slurm's own programs, as a chain asks them: what is queued, would a script be taken, submit, cancel.  No torch."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vold_nemo.config import ConfigError

ALIVE = ("PENDING", "RUNNING", "SUSPENDED")  # base states: Slurm means to run it; one that is requeued is PENDING
ENDING = "ENDING"  # cancelled or ended, and not yet gone from its nodes
_SECONDS = 120  # that a program of Slurm may take: a controller that restarts answers late


def states() -> dict[str, str]:
    """Number of a job (an array's own) -> one of :data:`ALIVE`, or :data:`ENDING`, of all that the queue shows.

    squeue's ``--states`` looks at the base state, where the word that it prints is COMPLETING both of a job that was put back
    and of one that was cancelled.  Where tasks of an array differ, one that runs decides.

    :raises ConfigError: the queue cannot be read; an empty one would let a job be submitted twice.
    """
    found = dict.fromkeys(_listed("COMPLETING"), ENDING)
    for state in ("SUSPENDED", "PENDING", "RUNNING"):
        found |= dict.fromkeys(_listed(state), state)
    return found


def _listed(state: str) -> list[str]:
    return _call("squeue", "--noheader", f"--states={state}", "--format=%F").split()


def refusal(script: str) -> str | None:
    """Why Slurm would not take ``script`` (its text): a partition, an account, a time that is not allowed.  None: it would."""
    done = _run(["sbatch", "--test-only"], script)
    return None if done.returncode == 0 else (done.stderr.strip() or f"sbatch left with {done.returncode}")


def submit(script: str, after_success: str | None, after_end: Iterable[str]) -> str:
    """Submit the script at this path; its number.  It is cancelled if what it waits for fails.

    :raises ConfigError: Slurm did not take it.
    """
    waits = [f"afterok:{after_success}"] if after_success else []
    waits += [f"afterany:{job}" for job in after_end]
    option = [f"--dependency={','.join(waits)}"] if waits else []
    return _call("sbatch", "--parsable", "--kill-on-invalid-dep=yes", *option, script).strip().partition(";")[0]


def cancel(job: str) -> None:
    """It may have ended by itself meanwhile, which is no error."""
    _run(["scancel", job])


@dataclass(frozen=True)
class Job:
    """What the controller says of one job; ``seconds`` since its newest attempt began."""

    state: str
    reason: str
    restarts: int
    seconds: int


def look(job: str) -> Job | None:
    """None: no Slurm here, or it does not know the job (any more)."""
    try:
        done = _run(["scontrol", "--oneliner", "show", "job", job])
    except ConfigError:
        return None
    said = dict(re.findall(r"(\w+)=(\S*)", done.stdout.partition("\n")[0]))
    if done.returncode or "JobState" not in said:
        return None
    restarts = said.get("Restarts", "0")
    times = int(restarts) if restarts.isdigit() else 0
    return Job(said["JobState"], said.get("Reason", ""), times, seconds(said.get("RunTime", "")))


def seconds(time: str) -> int:
    """Slurm's ``[days-]hours:minutes:seconds``; 0 for what is no time."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", time)
    if match is None:
        return 0
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def _call(*command: str) -> str:
    done = _run(command)
    if done.returncode:
        raise ConfigError(" ".join(command[:2]), done.stderr.strip() or f"left with {done.returncode}", "an answer from Slurm",
                          "what was said before this line holds; call again when Slurm answers")  # fmt: skip
    return done.stdout


def _run(command: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        raise ConfigError(command[0], None, "a program of Slurm", "run this on a login node") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(command[0], f"no answer in {_SECONDS} s", "an answer from Slurm", "call again later") from None
