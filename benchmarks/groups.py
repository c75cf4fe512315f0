"""Sockets between ranks: those that gloo opens when groups are made, and those that a run's collectives ask for.

    python benchmarks/groups.py json=true
    python benchmarks/groups.py ranks=8 world=1024

Two parts.  ``measured``: gloo ranks of this machine make the groups of a TP2 x PP2 layout: each with gloo of its own that
connects when it is made; the same, connecting late; and as on a GPU, where the default group alone has gloo, which connects
late.  Each counts the TCP sockets of its process, after the groups and after the collectives of objects that a step and a
checkpoint take.
``formula``: one rank of ``world`` at TP8 PP4 EP32, by the groups that megatron-core makes there: what it connects at once, and
the peers that it ends up with.

Keys: ranks, world, json, results (path without suffix, or empty).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import machine, parse, tell  # noqa: E402

DEFAULTS = {"ranks": 8, "world": 1024, "json": False, "results": str(ROOT / "benchmarks/results/groups")}
_ESTABLISHED = "01"  # in /proc/net/tcp


def sockets() -> int:
    """Connected TCP sockets of this process."""
    own = set()
    for entry in os.scandir("/proc/self/fd"):
        try:
            target = os.readlink(entry.path)
        except OSError:
            continue
        if target.startswith("socket:["):
            own.add(target[8:-1])
    found = 0
    for table in ("tcp", "tcp6"):
        lines = Path("/proc/self/net", table).read_text().splitlines()[1:]
        found += sum(1 for words in map(str.split, lines) if words[3] == _ESTABLISHED and words[9] in own)
    return found


def rank_of(number: int, size: int, meeting: str, lazy: bool, own: bool, outbox) -> None:
    """``own``: megatron-core's groups have gloo; else (on a GPU: NCCL, which opens nothing before its first use) none."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["TORCH_GLOO_LAZY_INIT"] = str(int(lazy))
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=size)
    dist.barrier()
    joined = sockets()
    from vold_nemo.megatron import cpu

    cpu.enable()
    from megatron.core import parallel_state

    made = parallel_state.create_group
    if not own:
        parallel_state.create_group = lambda ranks=None, timeout=None, backend=None, **options: made(
            ranks, timeout=timeout, backend="fake", **options
        )
        import torch.testing._internal.distributed.fake_pg  # registers the backend that opens nothing
    parallel_state.initialize_model_parallel(2, 2, create_gloo_process_groups=own)
    dist.barrier()
    grouped = sockets()
    objects: list = [None] * size
    dist.all_gather_object(objects, number)
    dist.broadcast_object_list([number], src=0)
    dist.all_reduce(torch.ones(4))
    dist.gather_object(number, [None] * size if number == 0 else None)
    dist.barrier()
    outbox.put((number, joined, grouped, sockets()))
    outbox.close()
    outbox.join_thread()  # what a thread writes would end with the process
    dist.barrier()
    os._exit(0)  # groups of two kinds are not worth taking down


def measured(size: int) -> dict[str, dict[str, list[int]]]:
    """By way of connecting: sockets of each rank once it has joined, has its groups, has talked."""
    import torch.multiprocessing as mp

    context, found = mp.get_context("forkserver"), {}
    context.set_forkserver_preload(["megatron.core.parallel_state"])
    for name, lazy, own in (("all at once", False, True), ("late, all groups", True, True), ("late, one group", True, False)):
        with tempfile.TemporaryDirectory() as folder:
            outbox = context.Queue()
            meeting = str(Path(folder) / "meeting")
            ranks = [context.Process(target=rank_of, args=(n, size, meeting, lazy, own, outbox)) for n in range(size)]
            for one in ranks:
                one.start()
            rows = sorted(outbox.get(timeout=250) for _ in ranks)
            for one in ranks:
                one.join(60)
        found[name] = {key: [row[at] for row in rows] for at, key in ((1, "joined"), (2, "groups"), (3, "talked"))}
    return found


def group_sizes(world: int, tensor: int, pipeline: int, expert: int) -> list[tuple[str, int]]:
    """(backend, ranks) of each group that the last rank of ``world`` belongs to when all inherit what the default one has,
    as torch's fake groups tell it; the default group first."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from vold_nemo.megatron import cpu

    dist.init_process_group("fake", rank=world - 1, world_size=world, store=FakeStore())
    cpu.enable()
    from megatron.core import parallel_state

    kept, made = [("", world)], torch.distributed.new_group

    def new_group(ranks=None, timeout=None, backend=None, pg_options=None, **options):
        members = list(ranks) if ranks is not None else list(range(world))
        if world - 1 in members:
            kept.append((backend or "", len(members)))
        return made(ranks=ranks, backend="fake", **options)

    torch.distributed.new_group = new_group
    try:
        parallel_state.initialize_model_parallel(
            tensor, pipeline, expert_model_parallel_size=expert, expert_tensor_parallel_size=1, create_gloo_process_groups=True
        )
    finally:
        torch.distributed.new_group = made
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    return kept


def by_formula(world: int) -> dict[str, int]:
    """Connections of one rank: gloo's to every peer of every group; and with gloo in the default group alone, which connects
    late: in a ring (all-gathers), in a tree (broadcasts), by halves (all-reduces), and with rank 0 (gathers)."""
    groups = group_sizes(world, 8, 4, 32)
    tree = (world - 1).bit_length()
    return {
        "groups": len(groups), "before: gloo peers at once": sum(size - 1 for _, size in groups),
        "now: gloo peers at once": 0, "now: NCCL connections at once": 0,
        "now: gloo peers later, default group": 2 + 2 * tree + 1, "now: of rank 0, which all meet": world - 1,
    }  # fmt: skip


def report(found: dict, world: int) -> str:
    lines = ["| sockets of a rank, least to most | joined | groups made | talked |", "|---|---|---|---|"]
    for name, rows in found["measured"].items():
        lines.append(f"| {name} | " + " | ".join(f"{min(counts)} to {max(counts)}" for counts in rows.values()) + " |")
    lines += ["", f"| one rank of {world:,}, TP8 PP4 EP32, by formula | |", "|---|---|"]
    lines += [f"| {name} | {count:,} |" for name, count in found["formula"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    settings = parse(sys.argv[1:], DEFAULTS)
    found = {"measured": measured(settings["ranks"]), "formula": by_formula(settings["world"])}
    tell(settings, found, machine("cpu"), report(found, settings["world"]))


if __name__ == "__main__":
    main()
