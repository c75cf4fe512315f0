"""Every experiment that is meant for GPUs, rehearsed one after the other (``make rehearse``).

    python -m vold_nemo.rehearsal.experiments [key=value ...]

The arguments go to each of them.  Says at the end which had violations or could not begin, and leaves with 2 if any had.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

from vold_nemo.config.compose import compose
from vold_nemo.config.launcher import CONFIGURATION_ERROR
from vold_nemo.config.places import conf, recipes
from vold_nemo.rehearsal import kept


def for_gpus(arguments: Sequence[str] = ()) -> Iterator[str]:
    """Names of the experiments whose cluster has GPUs."""
    for file in sorted((conf() / "experiment").glob("*.yaml")):
        if compose([f"experiment={file.stem}", *arguments]).cluster.memory_gib is not None:
            yield file.stem


def main(arguments: Sequence[str]) -> int:
    outcomes = {}
    for name in for_gpus(arguments):
        asked = [f"experiment={name}", "rehearse.all=true", *arguments]
        done = subprocess.run([sys.executable, str(recipes() / "rehearse.py"), *asked])
        found = kept.of(compose(asked))
        wrong = [f"{one['stage']} rank {one['rank']}: {bad['kind']}" for one in found for bad in one["violations"]]
        ended = f"ended with {done.returncode}" if done.returncode else f"no violation on {len(found)} ranks"
        outcomes[name] = (done.returncode, "; ".join(wrong) or ended)
    print("\nrehearsed")
    for name, (_, said) in outcomes.items():
        print(f"  {name:<34}{said}")
    return CONFIGURATION_ERROR if any(code for code, _ in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
