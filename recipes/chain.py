"""Write the Slurm scripts of an experiment, one a stage, without submitting them.

    python recipes/chain.py experiment=paper_3b cluster=my_site        scripts in outputs/paper_3b/slurm/
    bash slurm/pipeline.sh experiment=paper_3b cluster=my_site         writes and submits them, one after the other

The configuration is checked as by recipes/plan.py: every finding at once, and no script.  Where recipes/prefetch.py has left
its lock file (``prefetch.lock``), models and data are compared with it, which reads them once.  Where and how jobs run is in
``cluster`` (conf/cluster/*.yaml; slurm/README.md has a site's variables).  Each script can be read, changed and submitted by
hand.
"""

import sys
from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(reads=(
    "cluster", "traces", "sft", "vold", "evaluate", "report", "parallel", "student", "teacher", "teachers",
    "objective", "data", "prepare", "prefetch", "profile",
))  # fmt: skip
def main(config: Config) -> None:
    from vold_nemo.config.compose import HydraArguments
    from vold_nemo.planning.launch import refuse_inside_a_step, write_chain
    from vold_nemo.planning.prefetch import check_lock
    from vold_nemo.planning.validity import findings

    refuse_inside_a_step()
    errors, lock = findings(config, "plan"), Path(config.prefetch.lock)
    if not errors and lock.is_file():
        errors = check_lock(config, lock)
    if errors:
        raise ExceptionGroup("configuration", errors)
    for stage, path in write_chain(config, HydraArguments.parse(sys.argv[1:]).argv(), Path.cwd()):
        print(f"{stage.name}\t{stage.tasks} task(s){f' x array of {stage.array}' if stage.array else ''}\t{path}")


if __name__ == "__main__":
    main()
