"""Run one rank of any layout on fake CUDA tensors, before the queue and without a GPU; a minute on a laptop.

    python recipes/rehearse.py experiment=paper_3b rehearse.stage=sft
    python recipes/rehearse.py experiment=qwen2_5_vl_72b_from_235b rehearse.rank=100       the world of cluster.gpus
    python recipes/rehearse.py experiment=qwen2_5_vl_72b_from_235b rehearse.rank=1001 rehearse.world=1024 \\
        parallel.pipeline=4 parallel.expert=32
    python recipes/rehearse.py experiment=paper_3b_h100 rehearse.all=true         both stages' telling ranks, the export
    python recipes/rehearse.py experiment=qwen2_5_vl_72b_from_235b rehearse.stage=export device=cpu     its export

The rank builds what it would build and takes one step, in the recipe's own order: engine, student, teacher, gradients,
optimizer, rollouts of the planned lengths, the teacher's pass, training, update, weight sync, checkpoint.  Operations, devices,
groups, bytes and waits are those of a GPU; numbers are not computed.  Writes rehearsal.html and a JSON file a rank under
``rehearse.path``.  Exit code 2: a violation (mixed devices, a tensor on a group that cannot carry it, memory that outlives its
phase, does not fit or is not as planned, a parameter that is missing, left over or born on the CPU).
"""

import sys

from vold_nemo.command import recipe
from vold_nemo.command.recipe import until_nobody_reads
from vold_nemo.config import Config
from vold_nemo.config.launcher import CONFIGURATION_ERROR


@recipe(alone=True, reads=(
    "rehearse", "cluster", "plan", "parallel", "student", "teacher", "teachers", "tokenizer", "objective", "rollout", "sft",
    "vold", "checkpoint", "export", "limits", "seed", "precision", "device",
))  # fmt: skip
def main(config: Config) -> None:
    from vold_nemo.pages import rehearsal as page
    from vold_nemo.rehearsal import kept, text

    if config.rehearse.all:
        from vold_nemo.rehearsal.several import rehearse_all

        found = rehearse_all(config, sys.argv)
    else:
        kept.can_be_kept(config)  # before the work
        found = [_one(config)]
        kept.keep(config, found[0])
    written = page.write(config.rehearse.path, kept.of(config) or found, config.cluster.memory_gib)
    with until_nobody_reads():
        if not config.rehearse.all:
            print("\n".join(text.lines(found[0])))
        print(f"written: {written}")
    if any(one["violations"] for one in found):
        sys.exit(CONFIGURATION_ERROR)


def _one(config: Config) -> dict:
    if config.rehearse.stage == "export":
        from vold_nemo.rehearsal.export import rehearse_export

        return rehearse_export(config)
    from vold_nemo.rehearsal.run import rehearse

    done = rehearse(config)
    from vold_nemo.rehearsal.account import account  # with torch, which a rehearsal has to import itself

    return account(done)


if __name__ == "__main__":
    main()
