"""Look at a run from anywhere that sees its folder: progress, rewards, seconds by phase, memory, ranks that are behind.

    python recipes/watch.py outputs/vold/sft_vold            refreshed every 5 seconds, until Ctrl-C
    python recipes/watch.py outputs/vold/sft_vold --once     printed once

Reads metrics.jsonl, heartbeat/ and checkpoints/ and writes nothing.  No torch, no NeMo, no network.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="watch.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder: outputs/<run>")
    parser.add_argument("--once", action="store_true", help="print once and leave")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two looks (default: 5)")
    given = parser.parse_args()

    from vold_nemo.evaluation.watching import look, render

    if not given.run.is_dir():
        print(f"error: run = {given.run}\n  allowed: a run folder\n  mend:    see outputs/<experiment>/", file=sys.stderr)
        return 2
    if given.once:
        print(render(look(given.run, now=time.time())))
        return 0
    try:
        while True:
            print("\x1b[2J\x1b[H" + render(look(given.run, now=time.time())), flush=True)
            time.sleep(given.every)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
