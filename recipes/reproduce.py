"""A table or figure of the paper, drawn beside ours.

    python recipes/reproduce.py reproduce.target=table1                              from a finished demo, at miniature scale
    python recipes/reproduce.py reproduce.target=figure5 reproduce.missing=run       train here what is missing, then draw
    python recipes/reproduce.py reproduce.target=table3 reproduce.scale=paper reproduce.missing=slurm cluster=my_site

Targets: table1, table2, table3, table5, table6, figure3, figure4, figure5, figure6.  Finished runs of the experiment (``name``,
by default the scale's own) are reused; what is missing is listed as a shell script, run, or written as calls of
slurm/pipeline.sh.  Writes ``<target>.html`` and ``<target>.json`` under ``reproduce.path``, and says whose each number is.
"""

import sys
from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config


def show(config: Config) -> None:
    """The dry run: which arms are here, and what makes the others."""
    from vold_nemo.config.compose import HydraArguments
    from vold_nemo.pages.reproduce.targets import target
    from vold_nemo.pages.reproduce.work import Reproduction

    overrides = HydraArguments.parse(sys.argv[1:]).overrides
    work = Reproduction(config, target(config.reproduce.target), config.reproduce.scale, overrides)
    for arm in work.arms:
        print(f"reads    {arm.name}: {work.checkpoint_of(arm)}: {'here' if work.finished(arm) else 'not here yet'}")
    for arm in work.missing():
        steps = "the world, or the student's checkpoint" if arm.name == "base" else ", ".join(s.recipe for s in work.steps(arm))
        print(f"not here yet: {arm.name}: {steps}", file=sys.stderr)


@recipe(plan=show, alone=True, reads=(
    "reproduce", "student", "parallel", "cluster", "evaluate", "reward", "rollout", "data", "seed", "device",
    "precision",
))  # fmt: skip
def main(config: Config) -> None:
    from vold_nemo.config.compose import HydraArguments
    from vold_nemo.config.writing import replace_text, writing
    from vold_nemo.pages.reproduce.page import write_page
    from vold_nemo.pages.reproduce.targets import target
    from vold_nemo.pages.reproduce.work import Reproduction

    chosen, scale, options = target(config.reproduce.target), config.reproduce.scale, config.reproduce
    overrides = HydraArguments.parse(sys.argv[1:]).overrides
    work, folder = Reproduction(config, chosen, scale, overrides), Path(options.path)
    if work.missing():
        if options.missing == "run":
            work.run()
        elif options.missing == "slurm":
            for script in work.write_slurm(folder / chosen.name):
                print(f"script: {script}")
        else:
            script = folder / f"{chosen.name}.sh"
            with writing("reproduce.path", folder):
                replace_text(script, work.listing())
            print(f"missing: {', '.join(arm.name for arm in work.missing())}; what makes them: {script}")
    path, _ = write_page(work, folder)
    print(f"{chosen.name}: {path}")


if __name__ == "__main__":
    from vold_nemo.pages.reproduce.targets import with_experiment

    sys.argv[1:] = with_experiment(sys.argv[1:])
    main()
