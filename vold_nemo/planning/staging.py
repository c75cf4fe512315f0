"""Which files of which checkpoints a node's ranks read, so that each node copies those and no others to its own disk.

    generate_traces   the teacher, whole: each task decodes with all of it
    sft               of the student the files that hold a tensor of a rank of the node
    vold              ``vold.start``, whole: rollout engines hold all of it; of each teacher as of stage 1's student

A rank of pipeline stage p reads the placements of stage p (embedding on the first, head on the last), and of experts those of
its expert rank, so with P stages on nodes of their own a node copies about 1/P of a teacher.  What is not copied is linked: a
rank that is placed otherwise than supposed here (ranks in a row on each node, srun's ``block``) reads it from the file system,
slower and as right.  Data sets are small beside weights, and are not staged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vold_nemo.checkpoint.node_copy import Wanted
from vold_nemo.config import Config, ConfigError, ParallelConfig, TeacherConfig
from vold_nemo.megatron import architecture, tensors
from vold_nemo.megatron.architecture import HEAD, Architecture
from vold_nemo.megatron.names import Placement, placements, stage_of
from vold_nemo.planning.prefetch import recorded

SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken")  # what configurations and tokenizers consist of


@dataclass(frozen=True)
class Node:
    """``ranks`` of a world of ``world``: those of this node."""

    ranks: range
    world: int

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Node | None:
        """The node of this task, one of a step with one task a node; None where it cannot be known which ranks it will have.

        ``VOLD_RANKS``: ranks of the step to come, where they lie in a row on each node (slurm/stage.sbatch).
        """
        env = os.environ if environment is None else environment
        said = [env.get(name, "") for name in ("VOLD_RANKS", "SLURM_STEP_NUM_NODES", "SLURM_NODEID")]
        if not all(number.isdigit() for number in said):
            return None
        world, nodes, number = map(int, said)
        each = world // nodes
        return cls(range(number * each, (number + 1) * each), world) if each * nodes == world else None


def wanted(config: Config, verb: str, node: Node | None) -> list[Wanted]:
    """What ``node`` copies for ``recipes/<verb>.py``; everything that any rank reads where it is None.

    Raises:
        ConfigError: a checkpoint that is not here.
    """
    found = []
    for key, path, whole in models(config, verb):
        folder = Path(path)
        if not folder.is_dir():
            mend = "fetch it first (recipes/prefetch.py), or run the recipe that writes it"
            raise ConfigError(key, path, "a checkpoint folder, or a hub id that is in the local cache", mend)
        weights = sorted({entry.file for entry in tensors.index(folder).values()})
        read = set(weights) if whole or node is None else needed(folder, config.parallel, node)
        small = (file for file in folder.rglob("*") if file.suffix in SMALL and file.is_file())
        found.append(Wanted(
            key, folder, files=tuple(str(file.relative_to(folder)) for file in sorted({*read, *small})),
            links=tuple(str(file.relative_to(folder)) for file in weights if file not in read),
            sha256=recorded(Path(config.prefetch.lock), path),
        ))  # fmt: skip
    return found


def models(config: Config, verb: str) -> Iterator[tuple[str, str, bool]]:
    """(key, path, whether all of it is read on each node), each path once."""
    teachers: dict[str, TeacherConfig] = {"teacher": config.teacher}
    teachers |= {f"teachers.{name}": one for name, one in config.teachers.items()}
    named: list[tuple[str, str, bool]] = []
    if verb == "generate_traces" and config.traces.engine != "dataset":
        named = [("teacher.path", config.teacher.path, True)]
    elif verb == "sft":
        named = [("student.path", config.student.path, False)]
    elif verb == "vold":
        named = [("vold.start", config.vold.start, True)]
        named += [(f"{name}.path", one.path, False) for name, one in teachers.items() if config.objective.kl.enabled]
    seen: set[str] = set()
    for key, path, whole in named:
        if path not in seen:
            yield key, path, whole
        seen.add(path)


def needed(folder: Path, parallel: ParallelConfig, node: Node) -> set[Path]:
    """Weight files of ``folder`` that hold a tensor which a rank of ``node`` reads."""
    arch, entries = architecture.read(folder), tensors.index(folder)
    return {entries[name].file for name in names_of(arch, parallel, node) if name in entries}


def names_of(arch: Architecture, parallel: ParallelConfig, node: Node) -> set[str]:
    """Tensors on disk that ``node``'s ranks read; a stored tied head, too, which is compared with the embedding."""
    found: set[str] = set()
    for place in read_by(arch, parallel, node):
        found.update(place.hf)
        if arch.tied and arch.head_on_disk and place.megatron.startswith("embedding."):
            found.add(HEAD)
    return found


def read_by(arch: Architecture, parallel: ParallelConfig, node: Node) -> Iterator[Placement]:
    """Placements of which ``node``'s ranks hold a part, by the order of ranks of megatron-core (tp-cp-ep-dp-pp)."""
    stage = node.world // parallel.pipeline
    stages = {rank // stage for rank in node.ranks}
    each = arch.experts // parallel.expert if arch.experts else 1
    holders = {owner: {rank % stage % parallel.expert for rank in node.ranks if rank // stage == owner} for owner in stages}
    virtual = arch.virtual(parallel.pipeline, parallel.virtual)
    for place in placements(arch, parallel.tensor, arch.vocabulary):
        owner = stage_of(place, arch, parallel.pipeline, virtual)
        copied = arch.tied and place.megatron.startswith("embedding.") and parallel.pipeline - 1 in stages
        if (owner in stages or copied) and (place.expert is None or place.expert // each in holders[owner]):
            yield place
