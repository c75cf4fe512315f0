"""An experiment as a chain of Slurm jobs, one a stage: write the scripts, say what is left to do, submit it.

    python recipes/chain.py experiment=paper_3b cluster=my_site        scripts in outputs/paper_3b/slurm/, nothing submitted
    bash slurm/pipeline.sh --diff experiment=paper_3b cluster=my_site  what would run, what be cancelled, and why
    bash slurm/pipeline.sh experiment=paper_3b cluster=my_site         writes and submits them, one after the other

The configuration is checked as by recipes/plan.py: every finding at once, and no script.  Where recipes/prefetch.py has left
its lock file (``prefetch.lock``), models and data are compared with it, which reads them once.  Before anything is cancelled
or submitted, files that a stage would miss are named, and Slurm is asked about each script.  A stage is done again only if a
key that it reads has changed.  Where and how jobs run is in ``cluster`` (conf/cluster/*.yaml; slurm/README.md has a site's
variables).  Each script can be read, changed and submitted by hand.
"""

import sys
from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(reads=(
    "chain", "cluster", "traces", "sft", "vold", "evaluate", "report", "parallel", "student", "teacher", "teachers",
    "objective", "data", "prepare", "prefetch", "profile",
))  # fmt: skip
def main(config: Config) -> None:
    from vold_nemo.config.compose import HydraArguments
    from vold_nemo.planning import launch, missing, queue, submission
    from vold_nemo.planning.prefetch import check_lock
    from vold_nemo.planning.validity import findings

    launch.refuse_inside_a_step()
    errors, lock = findings(config, "plan"), Path(config.prefetch.lock)
    if not errors and lock.is_file():
        errors = check_lock(config, lock)
    if errors:
        raise ExceptionGroup("configuration", errors)
    here, overrides = Path.cwd(), launch.without_planning(HydraArguments.parse(sys.argv[1:]).argv())
    if config.chain.action == "write":
        for stage, path in launch.write_chain(config, overrides, here):
            print(f"{stage.name}\t{stage.tasks} task(s){f' x array of {stage.array}' if stage.array else ''}\t{path}")
        return
    wished, folder = launch.wishes(config, overrides, here), launch.folder_of(config, here)
    if config.chain.action == "test":
        for wish in wished:
            if not config.chain.stages or wish.stage.name in config.chain.stages:
                print(f"{wish.stage.name:<12} {queue.refusal(wish.script) or 'Slurm would take it'}")
        return
    decided = submission.decisions(wished, config.chain.stages, folder)
    if config.chain.action == "diff":
        print("\n".join(map(submission.describe, decided)), flush=True)
    if errors := [*missing.findings(config, decided), *submission.refusals(decided)]:
        raise ExceptionGroup("chain", errors)
    if config.chain.action == "diff":
        return
    with submission.alone(folder):
        decided = submission.decisions(wished, config.chain.stages, folder)  # nobody else has submitted since
        launch.write_chain(config, overrides, here)
        for line in submission.submit(decided, folder):
            print(line, flush=True)
    print(f"logs: {folder.parent / 'logs'}")


if __name__ == "__main__":
    main()
