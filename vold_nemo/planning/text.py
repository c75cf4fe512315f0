"""The plan as lines: memory by phase, time by phase, the mask's saving, who holds what, what was supposed."""

from __future__ import annotations

from collections.abc import Iterator

from vold_nemo.config import Config, ConfigError
from vold_nemo.config.tree import values
from vold_nemo.planning import activations, allocation, decoding, host, memory, rates, residency, start, timing
from vold_nemo.planning.memory import GIB, Models, Phase
from vold_nemo.planning.plan import Plan, StagePlan, figure, places, stage_gpus
from vold_nemo.planning.search import Ranked, cheapest_changes, fewest_gpus, ranked

PARTS = (
    "parameters", "gradients", "optimizer", "teacher", "engine", "hidden states", "activations", "objective", "cache",
    "gathered", "reserve",
)  # fmt: skip


def memory_table(plan: Plan) -> Iterator[str]:
    """GiB on the fullest rank of each phase."""
    yield f"{'memory (GiB)':<18}" + "".join(f"{name.split()[-1]:>12}" for name in PARTS) + f"{'total':>9}{'free':>8}"
    for stage in plan.stages:
        for phase in stage.worst():
            yield _row(phase, stage.capacity)
    for stage in plan.stages:
        peak, where = stage.peak, f" of pipeline stage {stage.peak.at.stage}" if stage.peak.at.pipeline > 1 else ""
        verdict = ""
        if stage.free is not None:
            free = stage.free / GIB
            verdict = f", {free:.1f} GiB free" if stage.fits else f": DOES NOT FIT, {-free:.1f} GiB too much"
        gpus = peak.at.tensor if peak.name == "export" else stage.gpus
        yield f"  {stage.stage}: peak {peak.total / GIB:.2f} GiB in {peak.name}{where} on each of {gpus} GPU(s){verdict}"


def host_table(config: Config, models: Models) -> Iterator[str]:
    """Host memory that ranks of each training stage need, where it is most: while a checkpoint is written."""
    for stage in ("sft", "vold"):
        found, gpus = host.fullest(config, models, stage, stage_gpus(config, stage)), config.cluster.gpus_per_node
        if found:
            named = ", ".join(f"{name} {size / GIB:.2f}" for name, size in found.items())
            each = sum(found.values())
            node = min(gpus, stage_gpus(config, stage))
            yield (
                f"  {stage}: host memory {each / GIB:.2f} GiB on the fullest rank ({named}), "
                f"at most {node * each / GIB:.0f} GiB on a node of {node}"
            )


def _row(phase: Phase, capacity: int | None) -> str:
    cells = "".join(f"{phase.parts[name] / GIB:>12.2f}" if name in phase.parts else f"{'-':>12}" for name in PARTS)
    free = f"{(capacity - phase.total) / GIB:>8.1f}" if capacity is not None else f"{'?':>8}"
    return f"  {phase.stage + ' ' + phase.name:<16}{cells}{phase.total / GIB:>9.2f}{free}"


def time_table(plan: Plan, config: Config) -> Iterator[str]:
    """Seconds of a step and hours of each stage, and what dominates."""
    if plan.gpu_hours is None:
        yield f"time: unknown; not given: {', '.join(f'cluster.{name}' for name in rates.missing(config))}"
        return
    yield "time (planned, not measured)"
    for time in plan.times:
        parts = ", ".join(
            f"{name}{'*' if name in time.rehearsed else ''} {figure(seconds)}" for name, seconds in time.seconds.items()
        )
        yield (
            f"  {time.stage:<7}{time.steps} x {figure(time.step)} s ({parts}) = {figure(time.total / 3600)} h "
            f"on {time.gpus} GPU(s), {figure(time.gpu_hours)} GPU hours"
        )
    hours = {
        f"{time.stage} {name}": seconds * time.steps * time.gpus / 3600
        for time in plan.times
        for name, seconds in time.seconds.items()
    }
    most = max(hours, key=hours.__getitem__)
    if any(time.rehearsed for time in plan.times):
        yield "  * from operations and bytes that a rehearsal of this counted (rehearse.path), at the same rates"
    yield f"  in all {figure(plan.gpu_hours)} GPU hours; {most} takes {hours[most] / plan.gpu_hours:.0%} of them"


def start_table(config: Config, models: Models, plan: Plan) -> Iterator[str]:
    """Seconds of each stage until its first step, and what a node reads."""
    yield "start (planned, not measured): from srun to the first step, in every attempt"
    for stage in plan.stages:
        found = start.start(config, models, stage.stage, stage.gpus)
        parts = ", ".join(f"{name} {figure(seconds)}" for name, seconds in found.seconds.items())
        unknown = "" if config.cluster.storage_gbs is not None else ", reading unknown (cluster.storage_gbs)"
        read, copied, whole = (f"{figure(size / 1e9)} GB" for size in (found.read, found.copied, found.whole))
        staged = f", copied first {copied}" if config.cluster.launch.stage is not None else ""
        yield (
            f"  {stage.stage:<7}{figure(found.total)} s ({parts}{unknown}) on {stage.gpus} GPU(s), "
            f"{figure(found.gpu_hours)} GPU hours; of {whole} each of {found.nodes} node(s) reads up to {read}{staged}"
        )


def saving_table(config: Config, models: Models) -> Iterator[str]:
    if models.teacher is None or rates.missing(config):
        return
    rows = timing.mask_saving(config, models, stage_gpus(config, "vold"))
    yield "the mask: seconds of a stage 2 step at a reward rate, and what skipping saves of it"
    yield "  " + ", ".join(f"{rate:.2f}: {figure(step, 4)} s (-{1 - step / whole:.0%})" for rate, step, whole in rows)


def holding(config: Config, models: Models) -> Iterator[str]:
    gpus = stage_gpus(config, "vold")
    shards = config.rollout.vllm.tensor_parallel if config.rollout.engine == "vllm" else 1
    whole = "whole student" if shards == 1 else f"1/{shards} of a student"
    yield f"stage 2: who holds what (each rank besides: the rollout engine's {whole})"
    yield from (f"  {line}" for line in places(config, models, gpus))


def ranking(config: Config, models: Models, stage: StagePlan) -> Iterator[str]:
    """``search=true``: the best layouts of a stage, and the fewest GPUs."""
    found = ranked(config, models, stage.stage, stage.gpus)
    fitting = sum(layout.plan.fits for layout in found)
    yield f"{stage.stage} on {stage.gpus} GPU(s): {len(found)} legal layouts, {fitting} fit; fastest first"
    yield from (f"  {number}. {_layout(layout)}" for number, layout in enumerate(found[: config.plan.layouts], 1))
    least = fewest_gpus(config, models, stage.stage) if stage.capacity is not None else None
    if least is not None:
        yield f"  fewest: {least.plan.gpus} GPU(s): {_layout(least)}"


def _layout(layout: Ranked) -> str:
    step = f"{figure(layout.plan.time.step, 4)} s: " if layout.plan.time is not None else ""
    return f"{step}{' '.join(layout.overrides)} ({layout.reason})"


def assumptions(config: Config) -> Iterator[str]:
    """``explain=true``: every supposition with its value, every formula with its source."""
    yield "supposed (plan.*):"
    for key, said, value in values(config.plan, "plan."):
        yield f"  {key} = {value}  ({said.help})"
    cluster = config.cluster
    yield f"cluster {cluster.name}: " + ", ".join(
        f"{key} {getattr(cluster, key)}"
        for key in ("gpus_per_node", "memory_gib", "compute_capability", "fp8_tflops", *rates.NAMES, *rates.STORAGE)
    )
    for module in (allocation, activations, memory, decoding, residency, timing, start):
        yield f"\n{module.__name__.rpartition('.')[2]}: {(module.__doc__ or '').strip()}"
    yield (
        "\nheld to account: allocation exactly, activations and objective within 10 % of tracked CPU allocations "
        "(tests/planning), GPU columns (fused norms, GPU temporaries) within 5 % of rehearsals (tests/rehearsal); "
        "reserve and all times were never measured"
    )


def refusal(config: Config, models: Models, plan: Plan) -> ConfigError:
    """The error of a plan that does not fit, with the cheapest changes that make it fit."""
    full = max((stage for stage in plan.stages if not stage.fits), key=lambda stage: stage.peak.total)
    changes = cheapest_changes(config, models)
    offers = "; or ".join(
        " ".join(names) + (f" ({figure(changed.gpu_hours)} GPU hours)" if changed.gpu_hours is not None else "")
        for names, changed in changes
    )
    return ConfigError(
        f"memory of {full.stage} {full.peak.name}", f"{full.peak.total / GIB:.1f} GiB",
        f"at most cluster.memory_gib = {config.cluster.memory_gib:.1f}",
        offers or "no three changes make it fit: search=true, or a cluster with larger GPUs",
    )  # fmt: skip
