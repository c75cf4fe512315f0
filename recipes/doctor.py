"""What this node or allocation has, what is missing, what follows from that, and how to get it.

    python recipes/doctor.py                                  this machine
    srun --ntasks-per-node=4 python recipes/doctor.py         every node of an allocation, and the network between them
    torchrun --nproc-per-node 8 recipes/doctor.py             the GPUs of one node
    python recipes/doctor.py experiment=paper_3b parallel=tp4     the precision that this experiment's teacher gets here
    srun python recipes/doctor.py json=true                   one JSON document a node, a line each: for a report of trouble

One report a node (from its first rank); the all-reduce over all ranks is measured last, and told by the first of all.  Versions
are compared with the list that goes with this torch (constraints.txt, constraints-gpu-*.txt), and what was compiled is tried.
Leaves with 1 if something that a run would use is missing or broken, else with 0; nothing is changed but a probe file in
``outputs``, which is removed.
"""

import sys
from pathlib import Path

from vold_nemo.command import recipe
from vold_nemo.config import Config


@recipe(reads=("device", "precision", "seed", "parallel", "teacher", "teachers", "objective", "rollout", "cluster", "json"))
def main(config: Config) -> None:
    import torch.distributed as dist

    from vold_nemo.config import driver
    from vold_nemo.config.launcher import launch
    from vold_nemo.megatron import diagnosis, launch_probes, parallel
    from vold_nemo.megatron.architecture import read as architecture_of
    from vold_nemo.megatron.device import pick_training_device

    place = launch()
    found = []
    if place.local_rank == 0:
        from vold_nemo.megatron import packages

        wanted = (packages.against_pins, packages.unmet, packages.engine, packages.compiled)
        for probe in (diagnosis.node, diagnosis.gpus, diagnosis.libraries, *wanted, diagnosis.slurm):
            found += diagnosis.attempt(probe.__name__, probe)
        if config.objective.kl.enabled:
            found += diagnosis.attempt("teacher", lambda: diagnosis.teachers(
                config, pick_training_device(config.device, place.local_rank), architecture_of
            ))  # fmt: skip
        copy, gpus = config.parallel, config.cluster.gpus
        world = max(place.world, copy.tensor * copy.pipeline * copy.context, gpus.sft or 1, gpus.vold or 1)
        found += diagnosis.attempt("open files", lambda: diagnosis.open_files(world))
        found += diagnosis.attempt("limits", lambda: launch_probes.system_limits(world, max(1, config.cluster.gpus_per_node)))
        found += diagnosis.attempt("verifiers", diagnosis.verifiers)
        found += diagnosis.attempt("variables", lambda: launch_probes.variables(config, "vold", driver.compute_capability()))
        found += diagnosis.attempt("network", launch_probes.networks)
        found += diagnosis.attempt("storage", lambda: diagnosis.storage(Path(config.outputs)))
        if not config.json:
            print("\n".join(map(str, found)), flush=True)
    if place.world > 1:
        layout = parallel.initialize(1, 1, seed=config.seed, device=config.device)
        network = diagnosis.attempt("all-reduce", lambda: diagnosis.all_reduce(layout.device))
        hosts: list = [None] * place.world
        dist.all_gather_object(hosts, [line.topic for line in (*found, *network) if line.grade == diagnosis.BAD])
        if place.rank == 0:
            found += network
            if not config.json:
                print("\n".join(map(str, network)), flush=True)
        parallel.destroy()
        broken = any(hosts)
    else:
        broken = any(line.grade == diagnosis.BAD for line in found)
    if config.json and place.local_rank == 0:
        from vold_nemo.megatron import trouble

        print(trouble.document(found, sys.argv[1:], int(broken)), flush=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
