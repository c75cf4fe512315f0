"""Items ``peak`` and ``step``: whole steps of stage 2 on one GPU, with drawn weights of published shapes.

The stage is the project's own (models/stages.py), driven as a rehearsal drives it: rollouts of planned lengths, rewards at the
planned rate, an engine that takes the memory and the copies of one.  So one configuration can be rehearsed and run, and the two
be compared phase by phase.  ``expected.json`` has the rehearsals: they need a CPU build of torch, which a GPU's machine has not
(``python -m tests.gpu.expected`` makes it anew).
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.gpu import drawn
from tests.gpu.place import FAKE, GPU, Place, Skipped

ONE_GPU = (
    "experiment=paper_3b_h100", "parallel=single", "parallel.recompute=full", "cluster=h200", "cluster.gpus.vold=1",
    "vold.optimizer.distributed=false", "vold.prompts_per_step=4", "rollout.samples_per_prompt=5", "rollout.sleep=true",
    "rollout.max_tokens=1600", "plan.prompt_tokens=200", "plan.response_tokens=800", "rehearse.micro_batches=null",
    "objective.chunk_tokens=2048", "teacher.fp8.probe_tokens=0",  # what drawn weights say means nothing
    "rollout.probe_tolerance=1e9", "vold.rollout_log_every=0", "logging.tensorboard=false",
)  # fmt: skip
PEAK = (*ONE_GPU, "student.path=Qwen/Qwen3-VL-2B-Instruct", "teacher.path=Qwen/Qwen3-4B-Instruct-2507")
STEP = (*ONE_GPU, "student.path=Qwen/Qwen2.5-VL-3B-Instruct", "teacher.path=Qwen/Qwen3-8B")
GRPO = "objective=grpo"
EXPECTED = Path(__file__).with_name("expected.json")
COMPARED = ("generate", "teacher", "train", "sync")
DEVIATION, WORKSPACES = 0.05, 256 << 20  # as rehearsal/findings.py allows between a rehearsal and its plan
BESIDE = 5 << 30  # bytes of contexts, workspaces and fragmentation that are not PyTorch's tensors (plan.reserve_gib)
STEPS = 2  # the second one is timed: kernels are loaded by then


class Peaks:
    """Most memory of each phase, by the allocator's own count."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = defaultdict(int)
        self.phase = "join"

    def enter(self, phase: str) -> None:
        if phase != self.phase:
            self.bytes[self.phase] = max(self.bytes[self.phase], torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
            self.phase = phase


def configured(overrides: Sequence[str]):
    from vold_nemo.config.compose import compose

    config = compose(list(overrides))
    return replace(config, vold=replace(config.vold, start=config.student.path))  # stage 1 has not run: the same shapes


def run(place: Place, config) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """(peak bytes by phase, metrics of each of :data:`STEPS` steps) of stage 2 under ``config``."""
    from vold_nemo.models import heartbeat
    from vold_nemo.models.stages import train_vold
    from vold_nemo.planning.plan import models_of
    from vold_nemo.rehearsal.inputs import RehearsedVOLD, VOLDInputs

    told: list[dict[str, Any]] = []

    class Student(RehearsedVOLD):
        total_steps = STEPS if place.kind == GPU else 1

        def train_step(self, number: int) -> dict[str, Any]:
            told.append(super().train_step(number))
            return told[-1]

        def save_checkpoint(self, *args, **kwargs) -> None:
            """Nothing is kept."""

        def save_to(self, path: str) -> None:
            """Nothing is kept."""

    class Inputs(VOLDInputs):
        model = Student

        def source(self, path: str):
            return drawn.Bank(path, place.device)

    peaks = Peaks()
    torch.cuda.reset_peak_memory_stats()
    heartbeat.listeners.append(peaks.enter)
    with tempfile.TemporaryDirectory() as folder:
        train_vold(config, Inputs(config, None, Path(folder), models_of(config), 1))
    peaks.enter("done")
    heartbeat.listeners.remove(peaks.enter)
    gc.collect()
    torch.cuda.empty_cache()
    return dict(peaks.bytes), told


def expected(place: Place, name: str) -> dict[str, Any]:
    """The rehearsal of ``name`` on a GPU of this capability.  Skipped where there is none, or this GPU is too small."""
    from vold_nemo.megatron.build import has_transformer_engine
    from vold_nemo.rehearsal.kept import digest

    major, minor = place.capability
    found = json.loads(EXPECTED.read_text()).get(f"{name} {major}.0") if (major, minor) != (8, 9) else None
    if found is None:
        raise Skipped(f"not rehearsed for compute capability {major}.{minor}: tests/gpu/expected.py lists those that are")
    if digest(configured([*overrides_of(name), f"cluster.compute_capability={major}.0"])) != found["configuration"]:
        raise RuntimeError(f"{EXPECTED.name} is of another configuration: python -m tests.gpu.expected makes it anew")
    if not has_transformer_engine():
        raise Skipped("the rehearsal is of Transformer Engine's layers, and it is not installed: slurm/build_gpu.sh")
    free, _ = torch.cuda.mem_get_info(place.device)
    need = max(found["peaks"].values()) + BESIDE
    if free < need:
        raise Skipped(f"it takes {need / 2**30:.0f} GiB, as rehearsed, and {free / 2**30:.0f} are free")
    return found


def overrides_of(name: str) -> tuple[str, ...]:
    return {"peak": PEAK, "step": STEP}[name]


def compare(place: Place, peaks: dict[str, int], rehearsed: dict[str, int]) -> None:
    for phase in COMPARED:
        wanted = rehearsed[phase]
        place.check(
            f"{phase}_peak_bytes", peaks[phase],
            "the rehearsal's, within the 5 % and the 256 MiB of workspaces that a rehearsal may be from its plan",
            at_least=(1 - DEVIATION) * wanted - WORKSPACES, at_most=(1 + DEVIATION) * wanted + WORKSPACES, kind="bytes",
        )  # fmt: skip


def peak(place: Place) -> None:
    rehearsed = expected(place, "peak")
    peaks, told = run(place, configured(PEAK))
    place.say(peaks=peaks, rehearsed=rehearsed["peaks"], rehearsed_on=rehearsed["when"], seconds=_seconds(place, told))
    compare(place, peaks, rehearsed["peaks"])


def step(place: Place) -> None:
    """Twenty rollouts of 1,000 tokens; half of them are right, so that about half of them meet the teacher."""
    from vold_nemo.planning.plan import models_of

    with tempfile.TemporaryDirectory() as folder:
        arms = _arms(place, Path(folder))
        rehearsed = expected(place, "step") if place.kind == GPU else None
        found = {}
        for arm, config in arms.items():
            peaks, told = run(place, config)
            last = told[-1]
            found[arm] = last
            place.say(**{
                f"{arm}_seconds": _seconds(place, told), f"{arm}_peaks": peaks, f"{arm}_held": last["memory"],
                f"{arm}_rollouts": {key: last[key] for key in ("trained_rollouts", "scored_rollouts", "skipped_groups")},
            })  # fmt: skip
            if arm == "vold" and rehearsed is not None:
                compare(place, peaks, rehearsed["peaks"])
        models = models_of(arms["vold"])
    student, teacher = (_matrices(arch) for arch in (models.student, models.teachers[0]))
    work = {arm: 8 * student * said["trained_rollouts"] + 2 * teacher * said["scored_rollouts"] for arm, said in found.items()}
    took = {arm: sum(said["seconds"].get(phase, 0.0) for phase in ("teacher", "train")) for arm, said in found.items()}
    place.say(work_ratio=work["vold"] / work["grpo"])
    place.check(
        "vold_over_grpo", took["vold"] / took["grpo"],
        "of the seconds of teacher and training: the ratio of multiplications (8 a student's weight and trained token with "
        "recomputation, 2 a teacher's and scored token, as if FP8 were no faster), and a quarter for the KL in the loss",
        at_most=1.25 * work["vold"] / work["grpo"], kind="rate",
    )  # fmt: skip


def _arms(place: Place, folder: Path) -> dict[str, Any]:
    overrides = list(STEP)
    if place.kind == FAKE:  # the code is the same; item ``peak`` takes real shapes
        student, teacher = (
            drawn.write_config(folder / name, shape) for name, shape in (("student", drawn.STUDENT), ("teacher", drawn.TEACHER))
        )
        overrides += [f"student.path={student}", f"teacher.path={teacher}"]
        overrides += ["plan.response_tokens=100", "rollout.max_tokens=200"]
    return {"vold": configured(overrides), "grpo": configured([*overrides, GRPO])}


def _matrices(arch) -> int:
    """Weights that each token is multiplied with, LM head included."""
    from vold_nemo.megatron.precision import linear_shapes

    layer = sum(rows * columns for rows, columns in linear_shapes(arch, 1).values())
    return arch.layers * layer + arch.vocabulary * arch.hidden


def _seconds(place: Place, told: list[dict[str, Any]]) -> list[dict[str, float]] | None:
    return [said["seconds"] for said in told] if place.kind == GPU else None
