"""The plan of an experiment: which GPUs each stage takes, what they hold at their fullest, how long it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vold_nemo.config import Config, ConfigError
from vold_nemo.megatron import architecture
from vold_nemo.planning import memory, timing
from vold_nemo.planning.memory import GIB, Models, Phase
from vold_nemo.planning.published import architecture_of, vision_parameters
from vold_nemo.planning.timing import Duration
from vold_nemo.planning.validity import precision_findings

STAGES = ("traces", "sft", "vold")


@dataclass(frozen=True)
class StagePlan:
    """One stage on ``gpus`` ranks.  ``phases``: every phase on every pipeline stage; ``time`` None where no rates are known."""

    stage: str
    gpus: int
    phases: tuple[Phase, ...]
    time: Duration | None
    capacity: int | None  # bytes of one GPU

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        return self.capacity is None or self.peak.total <= self.capacity

    def worst(self) -> Iterator[Phase]:
        """The fullest rank of each phase, in the order of the phases."""
        for name in dict.fromkeys(phase.name for phase in self.phases):
            yield max((phase for phase in self.phases if phase.name == name), key=lambda phase: phase.total)


@dataclass(frozen=True)
class Plan:
    stages: tuple[StagePlan, ...]

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def gpu_hours(self) -> float | None:
        times = [stage.time for stage in self.stages]
        return None if None in times else sum(time.gpu_hours for time in times)


def models_of(config: Config) -> Models:
    """Both architectures, from disk or from the published table.

    Raises:
        ConfigError: a model that is neither here nor published, or of a family that is not built.
    """
    student, scribe = architecture_of(config.student.path), architecture_of(config.teacher.path)
    if student.experts:
        mend = "plan it by hand: the activations of experts are not in the formulas"
        raise ConfigError("student.path", config.student.path, "a dense student", mend)
    teacher = scribe if config.objective.kl.enabled else None
    more = tuple(architecture_of(one.path) for one in config.teachers.values()) if teacher is not None else ()
    return Models(student, teacher, vision_parameters(config.student.path), scribe, more)


def stage_gpus(config: Config, stage: str) -> int:
    """``cluster.gpus.<stage>``; unset, one GPU for the traces and one model copy for the others."""
    return getattr(config.cluster.gpus, stage) or (1 if stage == "traces" else config.parallel.model_ranks)


def plan_stage(config: Config, models: Models, stage: str, gpus: int) -> StagePlan:
    cluster = config.cluster
    time = timing.duration(config, models, stage, gpus) if timing.is_timed(config) else None
    capacity = int(cluster.memory_gib * GIB) if memory.on_cuda(config) else None
    return StagePlan(stage, gpus, tuple(memory.phases(config, models, stage, gpus)), time, capacity)


def make_plan(config: Config, models: Models) -> Plan:
    # The set's own traces are copied by a processor: no teacher decodes, and no GPU is held.
    stages = STAGES[1:] if config.traces.engine == "dataset" else STAGES
    return Plan(tuple(plan_stage(config, models, stage, stage_gpus(config, stage)) for stage in stages))


def layout_findings(config: Config, models: Models, stage: str, gpus: int) -> list[ConfigError]:
    """Why ``stage`` cannot run in this layout on ``gpus`` ranks; empty if it can."""
    if stage == "traces":
        return []
    teachers = [models.teacher, *models.more] if models.teacher is not None else []
    used = [models.student] if stage == "sft" else [models.student, *teachers]
    beside = any(arch.experts for arch in teachers)
    errors = [
        error for arch in used for error in architecture.check_layout(arch, config.parallel, gpus, beside_experts=beside)
    ]
    if stage != "sft":
        sections = ("teacher", *(f"teachers.{name}" for name in config.teachers))
        for section, arch in zip(sections, teachers, strict=False):  # without a KL there are none
            errors += precision_findings(config, section, arch)
    return errors


def places(config: Config, models: Models, gpus: int) -> list[str]:
    """Which ranks hold what: megatron-core numbers tensor fastest, then context, then data, then pipeline."""
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    each, lines = gpus // pipeline, []
    named = [("student", models.student)] + ([("teacher", models.teacher)] if models.teacher is not None else [])
    for stage in range(pipeline):
        held = []
        for name, arch in named:
            split = arch.stages(pipeline)
            first = sum(split[:stage])
            held.append(f"{name} layers {first}-{first + split[stage] - 1}")
        ends = ["embeddings"] * (stage == 0) + ["final norms, LM heads, objective"] * (stage == pipeline - 1)
        ranks = f"ranks {stage * each}-{(stage + 1) * each - 1}" if each > 1 else f"rank {stage * each}"
        copies = "1 copy" if each == tensor else f"{each // tensor} copies"
        shared = f", {config.parallel.context} of them share each sequence" if config.parallel.context > 1 else ""
        lines.append(f"{ranks}: 1/{tensor} of {', '.join([*held, *ends])}; {copies}{shared}")
    return lines
