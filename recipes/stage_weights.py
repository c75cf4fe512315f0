"""Copy the weights that a node's ranks read to the node's own disk; slurm/stage.sbatch runs it before the ranks start.

    srun --ntasks-per-node=1 python recipes/stage_weights.py experiment=paper_3b cluster.launch.stage=/scratch/me
    export VOLD_STAGE=/scratch/me                                 and the ranks of recipes/vold.py read them there

Into ``cluster.launch.stage`` go configuration, tokenizer and the safetensors files that this node's ranks read, real files and
not links of the hub cache; the other files are linked.  Room is looked at first.  What is there already, whole, is kept: from
an attempt before this one or from another job of the node, which is waited for where it is still copying.  Sizes are compared,
and SHA-256 where recipes/prefetch.py has left its lock.  Leaves with 2 where the copy cannot be had; what is half copied is
never used.
"""

from vold_nemo.command import recipe
from vold_nemo.config import Config, ConfigError


@recipe(reads=(
    "staging", "cluster", "student", "teacher", "teachers", "vold", "traces", "objective", "parallel", "prefetch",
))  # fmt: skip
def main(config: Config) -> None:
    import os
    import socket
    import time
    from pathlib import Path

    from vold_nemo.checkpoint.node_copy import Copier
    from vold_nemo.config import staged
    from vold_nemo.planning.staging import Node, wanted

    launch, began = config.cluster.launch, time.monotonic()
    if launch.stage is None:
        mend = "give cluster.launch.stage=FOLDER: /local/scratch/$SLURM_JOB_ID, $TMPDIR"
        raise ConfigError(staged.KEY, None, "a folder on the node's own disk", mend)
    os.environ.pop(staged.VARIABLE, None)  # what is copied is read where it was
    folder, host = staged.expanded(launch.stage), os.environ.get("SLURMD_NODENAME") or socket.gethostname()

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {host}: {text}", flush=True)

    models = wanted(config, config.staging.verb, Node.here())
    for one in models:
        if os.path.realpath(one.source) in (here := os.path.realpath(folder), *map(str, Path(here).parents)):
            mend = f"name a folder elsewhere: copies inside {one.source} would be taken for files of it"
            raise ConfigError(staged.KEY, launch.stage, f"a folder outside the checkpoint of {one.key}", mend)
    copier = Copier(folder, began + 60 * launch.stage_minutes, say)
    copies = copier.run(models)
    staged.write_record(folder, {one.source: (copies[one.source], (*one.files, *one.links)) for one in models})
    for one in models:
        say(f"{one.key}: {len(one.files)} files in {copies[one.source]}, {len(one.links)} left at {one.source}")
    say(f"{copier.done / 1e9:,.1f} GB copied in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
