"""Items one after the other, each in a process that is killed when its time is over; a JSON line for each, at once.

No torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

PASSED, FAILED, SKIPPED, TIMED_OUT, REHEARSED = "passed", "failed", "skipped", "timed out", "rehearsed"
LEAST = 10.0  # seconds below which no item is begun
GRACE = 2.0  # seconds that a process has to leave once its result is there
_TAIL = 2000  # characters of what a process said that are kept where it left no word of its own


@dataclass(frozen=True)
class Job:
    """One item to run: its name, what it is, its limit in seconds, and ``command(file)``, which writes its result to the file.

    ``rehearsal``: cpu | fake; such a line says ``rehearsed`` where another would say ``passed``.
    """

    name: str
    what: str
    seconds: float
    command: Callable[[Path], list[str]]
    rehearsal: str | None = None


def run_all(
    jobs: Sequence[Job], *, total: float, facts: dict[str, Any], out: TextIO, environment: dict[str, str] | None = None,
    tell: Callable[[str], None] = print,
) -> list[dict[str, Any]]:  # fmt: skip
    """Lines of ``jobs``, each written to ``out`` and flushed when its item ends; ``facts`` stand in every one.

    Nothing runs beyond ``total`` seconds: what does not fit any more is skipped and says so.  What earlier items left of their
    time later ones may have, beyond what those that follow them were promised.
    """
    began, lines, promised = time.monotonic(), [], sum(job.seconds for job in jobs)
    for job in jobs:
        left = total - (time.monotonic() - began)
        promised -= job.seconds
        seconds = job.seconds if math.isinf(total) else min(left, max(job.seconds, left - promised))
        name = f"{job.name} ({job.rehearsal})" if job.rehearsal else job.name
        tell(f"{name}: {job.what}; at most {max(0.0, seconds):.0f} s")
        if left < min(LEAST, job.seconds):
            reason = f"the {total:.0f} seconds of all items are over"
            said: dict[str, Any] = {"status": SKIPPED, "reason": reason, "seconds": 0.0}
        else:
            said = run_one(job, seconds, environment)
        if job.rehearsal:
            said["rehearsal"] = job.rehearsal
            said["status"] = REHEARSED if said["status"] == PASSED else said["status"]
        line = {"item": job.name, **said, **facts}
        out.write(json.dumps(line) + "\n")
        out.flush()
        with contextlib.suppress(OSError):  # a terminal or a pipe has nothing to sync
            os.fsync(out.fileno())
        tell(f"    {line['status']}, {line['seconds']:.1f} s{_why(line)}")
        lines.append(line)
    return lines


def run_one(job: Job, seconds: float, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Status, figures and limits of ``job`` after at most ``seconds``; whatever it started is killed with it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="acceptance_") as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                job.command(result), stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **(environment or {}), "TMPDIR": folder},
            )  # fmt: skip
            try:
                code = _wait(process, result, began + seconds)
            finally:
                _end(process)
        took = round(time.monotonic() - began, 2)
        if result.is_file():  # written whole or not at all; one that hangs behind its last line has done its work
            return json.loads(result.read_text()) | {"seconds": took}
        tail = log.read_text(errors="replace")[-_TAIL:].strip()
    if code is None:
        return {"status": TIMED_OUT, "error": f"not done after {seconds:.0f} s", "tail": tail, "seconds": took}
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return {"status": FAILED, "error": f"the process left with {how} and without a result", "tail": tail, "seconds": took}


def _wait(process: subprocess.Popen, result: Path, until: float) -> int | None:
    """The exit code; None where it did not leave in time, or not soon after its result was there."""
    seen = math.inf
    while (code := process.poll()) is None:
        now = time.monotonic()
        if now > until or now > seen + GRACE:
            return None
        if math.isinf(seen) and result.is_file():
            seen = now
        time.sleep(0.05)
    return code


def _end(process: subprocess.Popen) -> None:
    """Kill the whole session of ``process``; nothing of it may hold the GPU when the next item comes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _why(line: dict[str, Any]) -> str:
    reason = line.get("reason") or line.get("error")
    return f": {reason.splitlines()[0][:200]}" if reason else ""


def exit_code(lines: Sequence[dict[str, Any]]) -> int:
    """0 where nothing failed and something ran."""
    ran = [line for line in lines if line["status"] in (PASSED, REHEARSED)]
    return 0 if ran and all(line["status"] in (PASSED, REHEARSED, SKIPPED) for line in lines) else 1


def summary(lines: Sequence[dict[str, Any]]) -> str:
    """A table of items, and below each what was outside its limit or why it did not run."""
    rows = [f"{'item':<22}{'status':<12}{'seconds':>8}   limits that hold"]
    for line in lines:
        limits = line.get("limits", {})
        held = [limit["holds"] for limit in limits.values() if limit["holds"] is not None]
        name = line["item"] + (f" ({line['rehearsal']})" if "rehearsal" in line else "")
        of = f"{sum(held)} of {len(held)}" if held else "-"
        rows.append(f"{name:<22}{line['status']:<12}{line['seconds']:>8.1f}   {of}{_why(line)}")
        for name, limit in limits.items():
            if limit["holds"] is False:
                known = [key for key in ("at_least", "at_most") if key in limit]
                bounds = ", ".join(f"{key.replace('_', ' ')} {limit[key]:.4g}" for key in known)
                rows.append(f"{'':<34}{name} = {line['figures'][name]:.4g}; {bounds}: {limit['because']}")
    if lines:
        last = lines[-1]
        found = ", ".join(f"{name} {version}" for name, version in last.get("versions", {}).items() if version)
        rows += ["", f"{last.get('gpu') or 'no GPU'}; {found}", f"evidence: {last.get('evidence', 'not said')}"]
        rows += [f"    {name} {said}" for name, said in last.get("unpinned", {}).items()]
    return "\n".join(rows)


def seen_by_torch(environment: dict[str, str] | None = None, seconds: float = 60) -> dict[str, Any] | None:
    """:func:`tests.gpu.facts.seen` in a process of its own; None where it fails or hangs."""
    command = [sys.executable, "-m", "tests.gpu.facts"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env={**os.environ, **(environment or {})}
        )
    except subprocess.TimeoutExpired:
        return None
    found = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    return json.loads(found[0].removeprefix("SEEN ")) if found else None
