"""The export of a finished run, in one process: a checkpoint as the run's ranks would have written it, and no file of it.

What streams, cuts and hands on is the recipe's own code (``checkpoint/shard_stream.py``, ``checkpoint/export.py``).  The files
are not there: what is read from them is a fake tensor (``written.py``), what is written is counted.  The vision tower goes
from file to file, eight MiB at a time; only its bytes are counted, as one tensor.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vold_nemo.config import Config, ConfigError
from vold_nemo.planning import memory
from vold_nemo.planning.memory import GIB
from vold_nemo.planning.plan import models_of, stage_gpus

VISION = "the vision tower"


def rehearse_export(config: Config) -> dict[str, Any]:
    """What ``account.account`` says of a training stage.  Turns this process into one that has a fake GPU, for good, unless
    the export is to run on processors (``device=cpu``, or a cluster without GPUs).

    Raises:
        ConfigError: no compiler, or a model without published shapes.
    """
    from vold_nemo.rehearsal import run

    with run.launched_as(0, 1, 0):
        return _rehearse(config, memory.on_cuda(config))


def _rehearse(config: Config, cuda: bool) -> dict[str, Any]:
    from vold_nemo.rehearsal import run, shim

    if cuda:
        shim.load()
    from vold_nemo.rehearsal.groups import Groups
    from vold_nemo.rehearsal.ledger import Ledger
    from vold_nemo.rehearsal.stand_ins import play_modules, play_world
    from vold_nemo.rehearsal.watch import Watch

    world = config.rehearse.world or stage_gpus(config, "vold")
    ledger, groups = Ledger(), Groups(0, world, config.cluster.gpus_per_node)
    watch = Watch(ledger, groups, host_real=0)
    layers = run.play(config, ledger, watch) if cuda else "the project's own"
    play_modules(ledger)
    play_world(ledger, watch)
    began, failed = time.process_time(), None
    read, files = Counter(), []
    with tempfile.TemporaryDirectory(prefix="rehearsal_") as folder:
        try:
            files = _run(config, watch, Path(folder), read)
        except ConfigError:
            raise
        except Exception as error:
            failed = error
    return _account(config, watch, layers, read, files, failed, time.process_time() - began)


def _run(config: Config, watch, folder: Path, read: Counter) -> list[int]:
    """Bytes of each file that is written; those read are counted in ``read``, by file."""
    import torch

    from vold_nemo.checkpoint import export
    from vold_nemo.checkpoint.shard_files import Strategy
    from vold_nemo.checkpoint.shard_stream import stream_shards
    from vold_nemo.megatron import architecture, parallel
    from vold_nemo.megatron.names import placements
    from vold_nemo.megatron.tensors import Entry
    from vold_nemo.planning.published import vision_parameters

    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
    source = config.student.path
    arch, ledger, layout = architecture.read(source), watch.ledger, config.parallel
    watch.groups.join()
    with watch:
        wrote = parallel.initialize(
            layout.tensor, layout.pipeline, context=layout.context, expert=layout.expert, seed=config.seed, device=config.device
        )
        from vold_nemo.rehearsal import written

        padded = architecture.padded_vocabulary(models_of(config).padded_rows, layout.tensor)
        written.write_index(arch, wrote, padded, dtype, folder)
        parallel.destroy()
        watch.groups.go_on(0, 1)
        layout = parallel.initialize(1, 1, seed=config.seed, device=config.device)

        def begins(key: str) -> None:
            ledger.enter("layers" if key.startswith("decoder.layers.") else key.split(".")[-2].replace("_", " "))

        strategy = Strategy(lambda path: written.Reader(path, watch, read, begins), alone=True)
        entries = {
            name: Entry(Path(source), "BF16", tuple(shape), 0, 2 * math.prod(shape))
            for place in placements(arch, 1, arch.vocabulary)
            for name, shape in zip(place.hf, place.shapes, strict=True)
        }
        if size := 2 * vision_parameters(source):
            entries[VISION] = Entry(Path(source), "BF16", (size // 2,), 0, size)
        shards = export.files(entries, config.export.max_shard_bytes)
        file_of = {name: number for number, names in enumerate(shards) for name in names}
        sizes = [0] * len(shards)

        def put(name: str, data) -> None:
            sizes[file_of[name]] += data.nbytes

        ledger.enter("check")
        stream = stream_shards(folder, arch, layout, dtype, strategy=strategy)
        export.receive(stream, arch, entries, Path(source), put)
        if VISION in entries:
            sizes[file_of[VISION]] += entries[VISION].nbytes
        ledger.enter("done")
        parallel.destroy()
    return sizes


def _account(config: Config, watch, layers: str, read: Counter, files: list[int], failed, seconds: float) -> dict[str, Any]:
    from vold_nemo.rehearsal import account
    from vold_nemo.rehearsal.findings import Compared, Violation
    from vold_nemo.rehearsal.kept import digest

    cuda, ledger, models = memory.on_cuda(config), watch.ledger, models_of(config)
    where = "device" if cuda else "host"
    planned = memory.export(config, models, "vold")
    parts = {name: size for name, size in planned.parts.items() if name != "reserve"}
    peaks = getattr(ledger, where).peaks
    most = max(ledger.phases, key=lambda phase: peaks[phase].size)
    row = Compared(most, peaks[most].size, sum(parts.values()), parts)
    wrong = [account.ended_early(failed, ledger)] if failed else []
    wrong += [Violation(problem.kind, problem.what, problem.place) for problem in ledger.problems.values()]
    if row.deviation > config.rehearse.deviation:
        what = f"{row.rehearsed / GIB:.2f} GiB of {where} memory, planned {row.planned / GIB:.2f} ({row.deviation:+.1%})"
        wrong.append(Violation("not as planned", what, most))
    return {
        "measured": False,
        "configuration": digest(config),
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "versions": account.versions(),
        "experiment": config.name, "cluster": config.cluster.name, "stage": "export", "rank": 0, "world": 1,
        "place": {}, "layers": layers, "apex": False, "processor_seconds": round(seconds, 1), "memory": where,
        "micro_batches": {"planned": 0, "run": 0}, "tokens": {"planned": 0, "run": 0},
        "violations": [{"kind": one.kind, "what": one.what, "place": one.place} for one in wrong],
        "phases": [account.phase_of(ledger, phase, row if phase == most else None, where) for phase in ledger.phases],
        "held": {}, "collectives": [],
        "waits": account.by_place(ledger.syncs), "copies": account.by_place(ledger.copies),
        "unknown_values": {}, "groups": account.groups_of(watch.groups), "seconds": {},
        "files": {
            "read": len(read), "read_bytes": sum(read.values()), "written": len(files), "written_bytes": sum(files),
            "largest": max(files, default=0), "carried_bytes": 2 * models.vision,
        },
    }  # fmt: skip
