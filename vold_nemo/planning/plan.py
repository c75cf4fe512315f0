"""The plan of an experiment: which GPUs each stage takes, what they hold at their fullest, how long it lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vold_nemo.config import Config, ConfigError
from vold_nemo.megatron import architecture
from vold_nemo.megatron.architecture import read as architecture_of
from vold_nemo.planning import decoding, memory, rates, timing
from vold_nemo.planning.memory import GIB, Models, Phase
from vold_nemo.planning.published import vision_parameters
from vold_nemo.planning.timing import Duration
from vold_nemo.planning.validity import precision_findings

STAGES = ("traces", "sft", "vold")


def figure(value: float, digits: int = 3) -> str:
    """``value`` to so many digits, whole from there on: 1,043 and not 1.04e+03."""
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


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
    def free(self) -> int | None:
        """Bytes that the peak leaves of a GPU, below 0 where it does not fit; None where nothing says how large one is."""
        return None if self.capacity is None else self.capacity - self.peak.total

    @property
    def fits(self) -> bool:
        return self.free is None or self.free >= 0

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
    def times(self) -> list[Duration]:
        """Of all stages; empty where no rates are known."""
        return [stage.time for stage in self.stages if stage.time is not None]

    @property
    def gpu_hours(self) -> float | None:
        return sum(time.gpu_hours for time in self.times) if self.times else None


def models_of(config: Config) -> Models:
    """Both architectures, from disk or from the published table.

    Raises:
        ConfigError: a model that is neither here nor published, or of a family that is not built.
    """
    student, trace_writer = architecture_of(config.student.path), architecture_of(config.teacher.path)
    if student.experts:
        mend = "plan it by hand: the activations of experts are not in the formulas"
        raise ConfigError("student.path", config.student.path, "a dense student", mend)
    teacher = trace_writer if config.objective.kl.enabled else None
    more = tuple(architecture_of(one.path) for one in config.teachers.values()) if teacher is not None else ()
    return Models(student, teacher, vision_parameters(config.student.path), trace_writer, more)


def stage_gpus(config: Config, stage: str) -> int:
    """``cluster.gpus.<stage>``; unset, one engine for the traces and one model copy for the others."""
    one = config.traces.tensor_parallel if stage == "traces" else config.parallel.model_ranks
    return getattr(config.cluster.gpus, stage) or one


def plan_stage(config: Config, models: Models, stage: str, gpus: int) -> StagePlan:
    time = None if rates.missing(config) else timing.duration(config, models, stage, gpus)
    return StagePlan(stage, gpus, tuple(memory.phases(config, models, stage, gpus)), time, memory.capacity(config))


def fits(config: Config, models: Models, stage: str, gpus: int) -> bool:
    """:attr:`StagePlan.fits` alone: ends at the first phase that is too large."""
    room = memory.capacity(config)
    return room is None or all(phase.total <= room for phase in memory.phases(config, models, stage, gpus))


def planned_stages(config: Config) -> tuple[str, ...]:
    """Stages that take GPUs: the set's own traces are copied by a processor, and no teacher decodes."""
    return STAGES[1:] if config.traces.engine == "dataset" else STAGES


def make_plan(config: Config, models: Models) -> Plan:
    return Plan(
        tuple(plan_stage(config, models, stage, stage_gpus(config, stage)) for stage in planned_stages(config))
    )


def with_rehearsals(plan: Plan, config: Config, models: Models, rehearsals: Sequence[Mapping[str, Any]]) -> Plan:
    """``plan`` with the times of phases that were rehearsed (:func:`timing.counted`)."""
    return Plan(tuple(
        stage if stage.time is None else replace(stage, time=timing.counted(stage.time, config, models, rehearsals))
        for stage in plan.stages
    ))  # fmt: skip


def layout_findings(config: Config, models: Models, stage: str, gpus: int) -> list[ConfigError]:
    """Why ``stage`` cannot run in this layout on ``gpus`` ranks; empty if it can."""
    if stage == "traces":
        engine, heads = config.traces.tensor_parallel, models.trace_writer.heads
        if not gpus % engine and not heads % engine:
            return []
        allowed = f"a divisor of the {gpus} GPUs of the traces and of the teacher's {heads} heads"
        return [ConfigError("traces.tensor_parallel", engine, allowed, "lower it, or change cluster.gpus.traces")]
    used = [models.student] if stage == "sft" else [models.student, *models.teachers]
    beside = any(arch.experts for arch in models.teachers)
    errors = [
        error for arch in used for error in architecture.check_layout(
            arch, config.parallel, gpus, beside_experts=beside, trained=arch is models.student
        )
    ]  # fmt: skip
    if stage != "sft":
        errors += _engine_findings(config, models, gpus)
        sections = ("teacher", *(f"teachers.{name}" for name in config.teachers))
        for section, arch in zip(sections, models.teachers, strict=False):  # without a KL there are none
            errors += precision_findings(config, section, arch)
    return errors


def _engine_findings(config: Config, models: Models, gpus: int) -> list[ConfigError]:
    """What vLLM would refuse at its start."""
    if config.rollout.engine != "vllm":
        return []
    vllm, arch = config.rollout.vllm, models.student
    tensor, errors = vllm.tensor_parallel, []
    if gpus % tensor or arch.heads % tensor:
        allowed = f"a divisor of the {gpus} GPUs of stage 2 and of the student's {arch.heads} heads"
        errors.append(ConfigError("rollout.vllm.tensor_parallel", tensor, allowed, "lower it, or change cluster.gpus.vold"))
    engine = decoding.of_rollouts(config, arch, models.vision)
    room, longest = engine.room(memory.capacity(config)), engine.cache_bytes(vllm.max_length or arch.max_positions)
    if room is not None and room < longest:
        key, value = "rollout.vllm.memory_share", vllm.memory_share
        if vllm.cache_bytes is not None:
            key, value = "rollout.vllm.cache_bytes", vllm.cache_bytes
        allowed = f"{(longest - room) / GIB:.1f} GiB of cache more, for one sequence of rollout.vllm.max_length tokens"
        mend = "raise it, lower rollout.vllm.max_length, or raise rollout.vllm.tensor_parallel"
        errors.append(ConfigError(key, value, allowed, mend))
    return errors


def places(config: Config, models: Models, gpus: int) -> list[str]:
    """Which ranks hold what: megatron-core numbers tensor fastest, then context, then data, then pipeline."""
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    each, lines = gpus // pipeline, []
    named = [("student", models.student), *zip(("teacher", *config.teachers), models.teachers, strict=False)]
    for stage in range(pipeline):
        held = []
        for name, arch in named:
            chunks = arch.chunks(pipeline, arch.virtual(pipeline, config.parallel.virtual))[stage::pipeline]
            held.append(f"{name} layers {' and '.join(f'{chunk.start}-{chunk.stop - 1}' for chunk in chunks)}")
        ends = ["embeddings"] * (stage == 0) + ["final norms, LM heads, objective"] * (stage == pipeline - 1)
        ranks = f"ranks {stage * each}-{(stage + 1) * each - 1}" if each > 1 else f"rank {stage * each}"
        copies = "1 copy" if each == tensor else f"{each // tensor} copies"
        split = f", {config.parallel.context} of them share each sequence" if config.parallel.context > 1 else ""
        if config.parallel.expert > 1:
            split += f"; a rank has 1/{config.parallel.expert} of the experts of its layers, whole ones"
        lines.append(f"{ranks}: 1/{tensor} of {', '.join([*held, *ends])}; {copies}{split}")
    return lines
