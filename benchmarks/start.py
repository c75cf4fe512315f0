"""From srun to the first step, as far as a CPU can show it: imports, a node's check, gloo's groups, reading shards.

    python benchmarks/start.py json=true
    python benchmarks/start.py at_once=1,8 hidden=1024 layers=12 folder=/scratch/here stage=/local/there

    imports   seconds until N processes that start together have imported what a training rank does, and the processor's of
              one; which packages take it
    check     seconds until a rank whose network interface is not there has left with 2
    groups    seconds until W gloo ranks have met and made seven groups of all of them (planning/start.py)
    reading   every rank of a layout loads its part of a checkpoint with a file a layer, which is not in the page cache: bytes
              that a rank asks for, bytes that the disk gave to all, seconds; a pipeline stage is a node, whose files are then
              staged

Processes share the machine's cores: the seconds of many at once are an upper bound for a node that has a core for each.

Keys: at_once, worlds, hidden, layers, rows, folder and stage (on the storages to compare; empty = temporary), json, results.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import machine, parse, tell  # noqa: E402

DEFAULTS = {
    "at_once": "1,2,4", "worlds": "2,4,8,16", "hidden": 768, "layers": 8, "rows": 16384, "folder": "", "stage": "",
    "json": False, "results": str(ROOT / "benchmarks/results/start"),
}  # fmt: skip
IMPORTS = {"torch": "import torch", "a training rank": "import nemo.core.config, megatron.core, vold_nemo.models.stages"}
REPORT = "; import sys, time; print(time.process_time(), len(sys.modules))"
RECIPE = """
from vold_nemo.command import recipe
from vold_nemo.config import Config

@recipe(reads=("sft",), training=True)
def main(config: Config) -> None:
    raise SystemExit("not reached")

main()
"""
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2))  # tensor, pipeline


def imports(counts: list[int]) -> list[dict]:
    found, environment = [], {**os.environ, "PYTHONPATH": str(ROOT)}
    for what, code in IMPORTS.items():
        command = [sys.executable, "-W", "ignore", "-c", code + REPORT]
        for count in counts:
            began = time.perf_counter()
            ranks = [
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
                for _ in range(count)
            ]
            said = [rank.communicate()[0].split() for rank in ranks]
            found.append({
                "what": what, "at_once": count, "seconds": time.perf_counter() - began,
                "processor": max(float(line[-2]) for line in said), "modules": int(said[0][-1]),
            })  # fmt: skip
    return found


def packages(most: int = 8) -> dict[str, float]:
    """Share of a training rank's imports that each package takes itself, the largest (python -X importtime)."""
    command = [sys.executable, "-X", "importtime", "-W", "ignore", "-c", IMPORTS["a training rank"]]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    own: dict[str, int] = {}
    for microseconds, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \| +(\w+)", done.stderr, re.MULTILINE):
        own[name] = own.get(name, 0) + int(microseconds)
    return {name: own[name] / sum(own.values()) for name in sorted(own, key=own.__getitem__, reverse=True)[:most]}


def check() -> dict:
    rank = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "NCCL_SOCKET_IFNAME": "=none0"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "some_stage.py").write_text(RECIPE)
        command = [sys.executable, "some_stage.py", "experiment=miniature"]
        environment, before = {**os.environ, **rank, "PYTHONPATH": str(ROOT)}, os.times()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode != 2 or "no interface none0" not in done.stderr:
        raise SystemExit(f"the check did not stop it: {done.stderr}")
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": after.elapsed - before.elapsed, "processor": processor}


def groups(worlds: list[int]) -> list[dict]:
    import torch.distributed  # noqa: F401 - once, before the ranks are forked

    context, found = multiprocessing.get_context("fork"), []
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            began, answers = time.perf_counter(), context.Queue()
            ranks = [context.Process(target=_meet, args=(rank, world, folder, answers)) for rank in range(world)]
            for rank in ranks:
                rank.start()
            slowest = max(answers.get(timeout=300) for _ in ranks) - began
            for rank in ranks:
                rank.join()
        found.append({"world": world, "seconds": slowest})
    return found


def _meet(rank: int, world: int, folder: str, answers) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for _ in range(7):
        dist.barrier(dist.new_group(list(range(world)), backend="gloo"))
    answers.put(time.perf_counter())
    dist.barrier()
    dist.destroy_process_group()


def reading(settings: dict) -> list[dict]:
    from tests.gloo import Ranks
    from vold_nemo.checkpoint.node_copy import Copier, Wanted
    from vold_nemo.config import ParallelConfig
    from vold_nemo.megatron import tensors
    from vold_nemo.planning.staging import Node, needed

    found, workers = [], Ranks()
    with tempfile.TemporaryDirectory(dir=settings["folder"] or None) as folder:
        source = write_checkpoint(Path(folder) / "teacher", settings)
        weights = {entry.file for entry in tensors.index(source).values()}
        try:
            for tensor, pipeline in LAYOUTS:
                world, parallel = tensor * pipeline, ParallelConfig(tensor=tensor, pipeline=pipeline)
                line: dict = {"tensor": tensor, "pipeline": pipeline, "bytes": sum(file.stat().st_size for file in weights)}
                line["read"] = _together(workers, world, tensor, pipeline, [str(source)] * world)
                with tempfile.TemporaryDirectory(dir=settings["stage"] or None) as stage:
                    folders, line["copied"] = [], []
                    for number in range(pipeline):
                        read = needed(source, parallel, Node(range(number * tensor, (number + 1) * tensor), world))
                        small = [file.name for file in source.iterdir() if file.suffix == ".json"]
                        files, links = [file.name for file in read], [file.name for file in weights - read]
                        one = Wanted("teacher.path", source, (*small, *files), tuple(links))
                        _evict(source)
                        began = time.monotonic()
                        copier = Copier(Path(stage) / f"node{number}", began + 600, lambda said: None)
                        folders += [str(copier.run([one])[source])] * tensor
                        line["copied"].append({"bytes": copier.done, "seconds": time.monotonic() - began})
                    line["staged"] = _together(workers, world, tensor, pipeline, folders)
                found.append(line)
        finally:
            workers.stop()
    return found


def _together(workers, world: int, tensor: int, pipeline: int, folders: list[str]) -> dict:
    for folder in set(folders):
        _evict(Path(folder))
    ranks = workers.of(world).run(load, tensor, pipeline, folders, timeout=600)
    return {
        "asked": max(rank["asked"] for rank in ranks), "fetched": sum(rank["fetched"] for rank in ranks),
        "seconds": max(rank["seconds"] for rank in ranks),
    }  # fmt: skip


def load(tensor: int, pipeline: int, folders: list[str]) -> dict:
    """On one rank: bytes of the slices it asks for, bytes that the disk gave it, and seconds."""
    import torch
    import torch.distributed as dist

    from vold_nemo.megatron import architecture, build, parallel, weights

    class Counting(weights.Files):
        asked = 0

        def slice(self, *arguments):
            found = super().slice(*arguments)
            self.asked += found.nbytes
            return found

    path = folders[dist.get_rank()]
    arch = architecture.read(path)
    layout = parallel.initialize(tensor, pipeline, seed=0, device="cpu")
    padded = architecture.padded_vocabulary([arch.vocabulary], tensor)
    model = build.build_model(arch, layout, padded_vocabulary=padded, dtype=torch.float32)
    dist.barrier()
    source, before, began = Counting(path), _fetched(), time.perf_counter()
    weights.load_hf(model, arch, layout, source)
    seconds, fetched = time.perf_counter() - began, _fetched() - before
    parallel.destroy()
    return {"asked": source.asked, "fetched": fetched, "seconds": seconds}


def _fetched() -> int:
    """Bytes that this process caused the storage to read (Linux)."""
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def _evict(folder: Path) -> None:
    """The folder's files leave the page cache."""
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_checkpoint(path: Path, settings: dict) -> Path:
    """A random Qwen3 with a file a layer, and one for both ends."""
    import safetensors.torch

    from vold_nemo.miniature.models import TextShape
    from vold_nemo.miniature.random_models import write_random_teacher

    hidden = settings["hidden"]
    sizes = {"heads": hidden // 64, "kv_heads": 2, "head_dim": 64, "ffn": hidden * 11 // 4}
    shape = TextShape(layers=settings["layers"], hidden=hidden, **sizes)
    write_random_teacher(path, shape, rows=settings["rows"])
    every = safetensors.torch.load_file(path / "model.safetensors")
    placed = {name: f"layer-{name.split('.')[2]}.safetensors" if ".layers." in name else "ends.safetensors" for name in every}
    for file in set(placed.values()):
        safetensors.torch.save_file({name: every[name] for name in every if placed[name] == file}, path / file)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return path


def describe(found: dict, where: str) -> str:
    lines = [f"# From srun to the first step, on a CPU\n\n{where}\n", "| imports | at once | seconds | processor s | modules |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in found["imports"]:
        lines.append(
            f"| {row['what']} | {row['at_once']} | {row['seconds']:.1f} | {row['processor']:.1f} | {row['modules']:,} |"
        )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found["packages"].items())
    lines.append(f"\nOf a training rank's imports: {shares}.")
    seconds, processor = found["check"]["seconds"], found["check"]["processor"]
    lines.append(f"\nA rank whose interface is not there: exit code 2 after {seconds:.1f} s, {processor:.1f} of a processor.\n")
    lines += ["| gloo ranks | seconds to meet and make 7 groups |", "|---|---|"]
    lines += [f"| {row['world']} | {row['seconds']:.2f} |" for row in found["groups"]]
    lines += [
        "\nMiB of a checkpoint; a rank asks for, the disk gives to all ranks, seconds of the slowest\n",
        "| tensor × pipeline | checkpoint | asked | from the disk | s | copied a node | s | staged: from the disk | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["reading"]:
        read, staged, mib = row["read"], row["staged"], 2**20
        copied = ", ".join(f"{node['bytes'] / mib:.0f}" for node in row["copied"])
        took = ", ".join(f"{node['seconds']:.2f}" for node in row["copied"])
        lines.append(
            f"| {row['tensor']} × {row['pipeline']} | {row['bytes'] / mib:.0f} | {read['asked'] / mib:.0f} | "
            f"{read['fetched'] / mib:.0f} | {read['seconds']:.2f} | {copied} | {took} | {staged['fetched'] / mib:.0f} | "
            f"{staged['seconds']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    settings = parse(arguments, DEFAULTS)
    counts, worlds = ([int(number) for number in settings[key].split(",")] for key in ("at_once", "worlds"))
    found = {"imports": imports(counts), "packages": packages(), "check": check(), "groups": groups(worlds)}
    found["reading"] = reading(settings)
    where = f"{machine('cpu')}; load {os.getloadavg()[1]:.0f}"  # of all that ran on it meanwhile
    tell({"benchmark": "start", **settings}, found, where, describe(found, where))


if __name__ == "__main__":
    main(sys.argv[1:])
