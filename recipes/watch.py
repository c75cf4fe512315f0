"""Look at a run from anywhere that sees its folder: progress, rewards, seconds by phase, memory, ranks that are behind.

    python recipes/watch.py outputs/miniature_tp2/sft_vold            refreshed every 5 seconds, until Ctrl-C
    python recipes/watch.py outputs/miniature_tp2/sft_vold --once     printed once

Reads metrics.jsonl, heartbeat/ and checkpoints/, where there is a Slurm asks it about the run's job, and writes nothing.  No
torch, no NeMo, no network.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


RUN = ("config.yaml", "metrics.jsonl", "heartbeat", "checkpoints")  # what a run folder has one of from its start


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in RUN)


def seconds(text: str) -> float:
    if not 0 < float(text) <= 86_400:
        raise argparse.ArgumentTypeError(f"{text}: allowed is more than 0, and a day at most")
    return float(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="watch.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder: outputs/<run>")
    parser.add_argument("--once", action="store_true", help="print once and leave")
    parser.add_argument("--every", type=seconds, default=5.0, metavar="SECONDS", help="between two looks (default: 5)")
    given = parser.parse_args()

    from vold_nemo.config import ConfigError
    from vold_nemo.config.launcher import CONFIGURATION_ERROR, stands_alone
    from vold_nemo.config.printable import guard
    from vold_nemo.pages.watch import jobs_of, look, render

    guard()
    if not stands_alone("watch"):
        return 0
    if not is_run(given.run) and not jobs_of(given.run):
        inside = sorted(str(file.parent) for depth in ("*", "*/*") for file in given.run.glob(f"{depth}/metrics.jsonl"))
        mend = f"runs inside: {', '.join(inside[:12])}" if inside else "see outputs/<experiment>/"
        print(f"error: {ConfigError('run', str(given.run), 'a run folder', mend)}", file=sys.stderr)
        return CONFIGURATION_ERROR
    if given.once:
        print(render(look(given.run, now=time.time())))
        return 0
    try:
        while True:
            shown = render(look(given.run, now=time.time()))
            sys.__stdout__.write("\x1b[2J\x1b[H")  # what the run's files say goes through the guard
            print(shown, flush=True)
            time.sleep(given.every)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
