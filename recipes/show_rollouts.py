"""Look at what the student answered in a step of stage 2, and where in it student and teacher disagree.

    python recipes/show_rollouts.py outputs/miniature_tp2/sft_vold                               the newest step
    python recipes/show_rollouts.py outputs/miniature_tp2/sft_vold --step 10 --reward 0 --sort kl
    python recipes/show_rollouts.py outputs/miniature_tp2/sft_vold --length 1000: --finish length --list
    FORCE_COLOR=1 python recipes/show_rollouts.py outputs/miniature_tp2/sft_vold --colour gap --show 50 | less -R

Ranges are LOW:HIGH, either end may be left out, a single number is both.  Reads rollouts/step_*.jsonl (and, for the shades,
the tokenizer of the run's start); writes nothing.  No torch, no network.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def span(text: str) -> tuple[float, float]:
    """``0.5:``, ``:3``, ``1:2`` or ``1``."""
    low, separator, high = text.partition(":")
    first = float(low) if low else float("-inf")
    return first, (float(high) if high else float("inf")) if separator else first


def count(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text}: allowed is 0 or more")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="show_rollouts.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder of stage 2, or one of its rollouts/step_*.jsonl")
    parser.add_argument("--step", type=int, help="which step (default: the newest)")
    parser.add_argument("--reward", type=span, metavar="RANGE", help="0: the wrong ones; 1: the right ones")
    parser.add_argument("--length", type=span, metavar="RANGE", help="tokens of the answer")
    parser.add_argument("--kl", type=span, metavar="RANGE", help="mean KL of a token; rollouts without one are left out")
    parser.add_argument("--finish", choices=("stop", "length"), help="how it ended")
    parser.add_argument("--scored", action="store_const", const=True, help="only those that the teacher scored")
    parser.add_argument("--id", help="of the prompt")
    parser.add_argument("--sort", choices=("reward", "length", "kl", "gap"), help="largest first (default: as sampled)")
    parser.add_argument("--list", action="store_true", help="one line a rollout")
    parser.add_argument("--show", type=count, default=3, metavar="N", help="so many answers in full (default: 3)")
    parser.add_argument("--colour", choices=("kl", "gap", "surprise"), default="kl", help="what the shades say (default: kl)")
    parser.add_argument("--tokenizer", type=Path, help="folder or tokenizer.json (default: that of the run's vold.start)")
    given = parser.parse_args()

    from rich.console import Console

    from vold_nemo.config import ConfigError
    from vold_nemo.config.launcher import CONFIGURATION_ERROR, stands_alone
    from vold_nemo.config.printable import harmless
    from vold_nemo.pages import rollout_view as view

    if not stands_alone("show_rollouts"):
        return 0

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160  # a pager has no width of its own
    console = Console(highlight=False, markup=False, emoji=False, width=wide)
    try:
        file = view.find_file(given.run, given.step)
        rows = view.read(file)
        decode = view.tokenizer_of(file, given.tokenizer)
    except ConfigError as error:
        print(harmless(f"error: {error}"), file=sys.stderr)
        return CONFIGURATION_ERROR
    wanted = view.Filter(given.reward, given.length, given.kl, given.finish, given.scored, given.id)
    kept = [row for row in rows if wanted.keeps(row)]
    if given.sort:
        kept.sort(key=view.SORTS[given.sort], reverse=True)
    console.print(f"{harmless(str(file))}: {len(kept)} of {len(rows)} rollouts\n", soft_wrap=True)
    if kept:
        console.print(view.overview(kept))
    if given.list:
        console.print(view.listing(kept))
        return 0
    shown = kept[: given.show]
    if shown:
        console.print(view.legend(given.colour), "")
    for row in shown:
        console.print(view.detail(row, decode, given.colour))
    if len(shown) < len(kept):
        console.print(f"{len(kept) - len(shown)} more: --show {len(kept)}, or --list", style="dim italic")
    if shown and decode is None:
        console.print("no tokenizer found: answers have no shades (give --tokenizer)", style="dim italic")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
