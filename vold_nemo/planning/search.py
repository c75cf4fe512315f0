"""Other layouts and settings: all legal ones ranked, the fewest GPUs that fit, the cheapest changes that make a plan fit.

Tried are tensor x pipeline x context x expert parallelism x micro-batch x decoding batch (traces: engine, its GPUs, batch),
and, where that does not fit as it is, every recomputation x offload (gradients, optimizer state, rollout engine, teacher): they
cost time and never save any, so a layout that fits is not slowed.  Sequence parallelism stands wherever tensor parallelism
does, and the optimizer is distributed: both hold less and send no more.  Virtual pipeline stages are taken where they make a
step faster and what they hold more fits.  Named teachers stay as they are configured.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vold_nemo.config import Config
from vold_nemo.planning.memory import GIB, Models, on_cuda
from vold_nemo.planning.plan import (
    STAGES,
    Plan,
    StagePlan,
    fits,
    layout_findings,
    make_plan,
    plan_stage,
    planned_stages,
    stage_gpus,
)  # fmt: skip
from vold_nemo.planning.timing import duration

_POWERS = (1, 2, 4, 8, 16)
_MOST_GPUS = 1024
_PLAIN = {  # what takes time and saves memory, left alone
    "parallel.recompute": "none", "vold.offload.gradients": False, "vold.offload.optimizer": False, "rollout.sleep": False,
    "teacher.offload": False,
}  # fmt: skip


def assign(config, key: str, value):
    """``config`` with ``key`` (dotted) set to ``value``; dataclasses on the way are copied."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(config, **{name: assign(getattr(config, name), rest, value) if rest else value})


@dataclass(frozen=True)
class Ranked:
    """One place of :func:`ranked`: what to write on the command line, and what comes of it."""

    overrides: tuple[str, ...]
    plan: StagePlan

    @property
    def reason(self) -> str:
        """What decides its place."""
        if self.plan.free is not None and self.plan.free < 0:
            return f"{-self.plan.free / GIB:.1f} GiB too much in {self.plan.peak.name}"
        if self.plan.time is None:
            return f"fits, {self.plan.peak.total / GIB:.0f} GiB"
        name, seconds = max(self.plan.time.seconds.items(), key=lambda item: item[1])
        return f"{name} takes {seconds / self.plan.time.step:.0%} of a step; {self.plan.peak.total / GIB:.0f} GiB"


def candidates(config: Config, models: Models, stage: str, gpus: int) -> Iterator[Config]:
    """``config`` in every legal layout of ``stage`` on ``gpus`` ranks, with nothing recomputed or offloaded."""
    plain = {key: value for key, value in _PLAIN.items() if _is_of(key, stage)}
    for chosen in _choices(config, models, stage, gpus):
        changed = _with(config, (chosen | plain).items())
        if not layout_findings(changed, models, stage, gpus):
            yield changed


def _choices(config: Config, models: Models, stage: str, gpus: int) -> Iterator[dict]:
    if stage == "traces":
        batches = tuple(sorted({max(1, config.traces.batch // n) for n in _POWERS}))
        for batch in batches:
            yield {"traces.engine": "transformers", "traces.tensor_parallel": 1, "traces.batch": batch}
        for tensor, batch in itertools.product(_upto(min(gpus, config.cluster.gpus_per_node)), (64, 128, 256)):
            yield {"traces.engine": "vllm", "traces.tensor_parallel": tensor, "traces.batch": batch}
        return
    sizes: dict[str, tuple] = {
        "parallel.tensor": _upto(min(gpus, config.cluster.gpus_per_node)),
        "parallel.pipeline": _upto(min(gpus, 16)),
        "parallel.context": _upto(min(gpus, 8)),
    }
    experts = max((arch.experts for arch in (models.teacher, *models.more) if arch is not None), default=0)
    sizes["parallel.expert"] = _upto(min(gpus, experts)) if experts and stage == "vold" else (config.parallel.expert,)
    if stage == "sft":
        sizes["sft.micro_batch"] = (1,) if config.sft.packing else (1, 2, 4)
    else:
        sizes["vold.micro_batch_tokens"] = (8192, 16384, 32768)
        sizes["rollout.batch"] = tuple(sorted({max(1, config.rollout.batch // n) for n in (1, 2, 4)}))
        if config.rollout.engine == "vllm":
            sizes["rollout.vllm.tensor_parallel"] = _upto(min(gpus, config.cluster.gpus_per_node))
            sizes["rollout.batch"] = (config.rollout.batch,)
    for values in itertools.product(*sizes.values()):
        chosen = dict(zip(sizes, values, strict=True))
        if chosen["parallel.tensor"] * chosen["parallel.pipeline"] * chosen["parallel.context"] > gpus:
            continue
        split = chosen["parallel.tensor"] > 1
        yield chosen | {"parallel.virtual": 1, "parallel.sequence": split, f"{stage}.optimizer.distributed": True}


def ranked(config: Config, models: Models, stage: str, gpus: int) -> list[Ranked]:
    """Layouts that fit, fastest first (without rates: emptiest first), then those that do not, nearest first."""
    found = []
    for changed in candidates(config, models, stage, gpus):
        changed, plan = _interleaved(*_fitted(changed, models, stage, gpus), models, stage, gpus)
        found.append(Ranked(_names(config, changed, stage), plan))

    def order(layout: Ranked):
        return (not layout.plan.fits, _seconds(layout.plan) if layout.plan.fits else 0.0, layout.plan.peak.total)

    return sorted(found, key=order)


def _fitted(config: Config, models: Models, stage: str, gpus: int) -> tuple[Config, StagePlan]:
    """This layout as it is, if it fits; else with the recomputation and offload of the least time that make it fit.

    Where nothing does, with all of them.
    """
    if stage == "traces" or fits(config, models, stage, gpus):
        return config, plan_stage(config, models, stage, gpus)
    most, *others = _savings(stage, models.teacher is not None)
    best = _with(config, most)
    found = best, plan_stage(best, models, stage, gpus)
    if not found[1].fits:
        return found
    for chosen in others:
        changed = _with(config, chosen)
        if fits(changed, models, stage, gpus):
            plan = plan_stage(changed, models, stage, gpus)
            if _seconds(plan) <= _seconds(found[1]):  # as fast with fewer changes: those come later
                found = changed, plan
    return found


def _interleaved(
    config: Config, plan: StagePlan, models: Models, stage: str, gpus: int
) -> tuple[Config, StagePlan]:  # fmt: skip
    """With the virtual stages that make a layout that fits fastest; as it is where none do (:mod:`timing`)."""
    found, pipeline = (config, plan), config.parallel.pipeline
    if stage == "traces" or pipeline == 1 or plan.time is None or not plan.fits:
        return found
    for virtual in (2, 3, 4):
        if models.student.virtual(pipeline, virtual) != virtual:
            continue
        changed = assign(config, "parallel.virtual", virtual)
        faster = duration(changed, models, stage, gpus).step < _seconds(found[1])
        if faster and fits(changed, models, stage, gpus):
            found = changed, plan_stage(changed, models, stage, gpus)
    return found


def _with(config: Config, chosen: Iterable[tuple[str, object]]) -> Config:
    for key, value in chosen:
        config = assign(config, key, value)
    return config


def _names(config: Config, changed: Config, stage: str) -> tuple[str, ...]:
    """What turns ``config`` into ``changed``, as overrides; a layout's main sizes are always said."""
    keys = {
        "traces": ("traces.engine", "traces.tensor_parallel", "traces.batch"),
        "sft": ("parallel.tensor", "parallel.pipeline", "sft.micro_batch"),
        "vold": ("parallel.tensor", "parallel.pipeline", "vold.micro_batch_tokens", "rollout.batch"),
    }[stage]
    engine = ("rollout.vllm.tensor_parallel",) if stage == "vold" else ()
    layout = (f"parallel.{name}" for name in ("virtual", "context", "expert", "sequence"))
    more = (*engine, *layout, f"{stage}.optimizer.distributed")
    differing = [
        key
        for key in (*(more if stage != "traces" else ()), *(key for key in _PLAIN if _is_of(key, stage)))
        if _get(config, key) != _get(changed, key)
    ]
    return tuple(_override(key, _get(changed, key)) for key in (*keys, *differing))


def _seconds(plan: StagePlan) -> float:
    return plan.time.step if plan.time is not None else 0.0


@functools.cache
def _savings(stage: str, teacher: bool) -> list[tuple[tuple[str, object], ...]]:
    """Every combination of recomputation and offload but the empty one, most changes first."""
    offload = [key for key in _PLAIN if _is_of(key, stage) and key != "parallel.recompute"]
    offload = [key for key in offload if teacher or not key.startswith("teacher")]
    sets = [
        (*((("parallel.recompute", again),) if again != "none" else ()), *((key, True) for key in keys))
        for again in ("full", "selective", "none")
        for count in range(len(offload), -1, -1)
        for keys in itertools.combinations(offload, count)
    ]
    return [chosen for chosen in sets if chosen]


def _is_of(key: str, stage: str) -> bool:
    return stage == "vold" or (stage == "sft" and key == "parallel.recompute")


def _upto(most: int) -> tuple[int, ...]:
    return tuple(1 << n for n in range(most.bit_length())) if most else ()


def fewest_gpus(config: Config, models: Models, stage: str) -> Ranked | None:
    """The fastest layout on the smallest power of two of GPUs on which any layout fits; None beyond 1024."""
    gpus = 1
    while gpus <= _MOST_GPUS:
        most = _savings(stage, models.teacher is not None)[0] if stage != "traces" else ()
        if any(fits(_with(changed, most), models, stage, gpus) for changed in candidates(config, models, stage, gpus)):
            return ranked(config, models, stage, gpus)[0]
        gpus *= 2
    return None


_CHANGES: dict[str, Callable] = {
    "sft.optimizer.distributed": lambda now: [True],
    "vold.optimizer.distributed": lambda now: [True],
    "vold.offload.gradients": lambda now: [True],
    "vold.offload.optimizer": lambda now: [True],
    "rollout.sleep": lambda now: [True],
    "teacher.offload": lambda now: [True],
    "parallel.sequence": lambda now: [True],
    "parallel.recompute": lambda now: ["selective", "full"] if now == "none" else ["full"],
    "sft.micro_batch": lambda now: [now // 2, 1],
    "vold.micro_batch_tokens": lambda now: [now // 2, now // 4],
    "rollout.batch": lambda now: [now // 2, now // 4, now // 8],
    "traces.batch": lambda now: [now // 2, now // 4, now // 8],
    "traces.engine": lambda now: ["vllm"],
    "traces.tensor_parallel": lambda now: [now * 2, now * 4, now * 8],
    "rollout.engine": lambda now: ["vllm"],
    "rollout.vllm.tensor_parallel": lambda now: [now * 2, now * 4, now * 8],
    "objective.chunk_tokens": lambda now: [now // 2, now // 4],
    "parallel.tensor": lambda now: [now * 2, now * 4, now * 8],
    "parallel.pipeline": lambda now: [now * 2, now * 4],
    "parallel.context": lambda now: [now * 2, now * 4],
    "parallel.expert": lambda now: [now * 2, now * 4],
    "export.verify": lambda now: [False],
    "cluster.gpus.sft": lambda now: [now * 2, now * 4],
    "cluster.gpus.vold": lambda now: [now * 2, now * 4],
}


def cheapest_changes(config: Config, models: Models, wanted: int = 3) -> list[tuple[tuple[str, ...], Plan]]:
    """Up to ``wanted`` sets of at most three changes after which every stage fits: fewest changes, then fewest GPU hours.

    A set that holds another found set is left out.
    """
    start = assign(config, "objective.chunk_tokens", config.objective.tokens_at_once(on_cuda(config)))
    for stage in STAGES[1:]:
        start = assign(start, f"cluster.gpus.{stage}", stage_gpus(config, stage))
    steps = [
        (key, value)
        for key, values in _CHANGES.items()
        for value in dict.fromkeys(values(_get(start, key)))
        if value != _get(start, key) and (isinstance(value, str | bool) or value >= 1)
    ]
    # The stages that do not fit come first: most sets fail there.
    stages = sorted(planned_stages(start), key=lambda stage: plan_stage(start, models, stage, stage_gpus(start, stage)).fits)
    found: list[tuple[tuple[str, ...], Plan]] = []
    sets: list[set[str]] = []
    for count in (1, 2, 3):
        new = []
        for chosen in itertools.combinations(steps, count):
            names = tuple(_override(key, value) for key, value in chosen)
            if len({key for key, _ in chosen}) < count or any(old <= set(names) for old in sets):
                continue
            changed = _with(start, chosen)
            if all(_fits(changed, models, stage) for stage in stages):
                new.append((names, make_plan(changed, models)))
        new.sort(key=lambda item: (item[1].gpu_hours or 0.0, item[0]))
        found += new
        sets += [set(names) for names, _ in new]
        if len(found) >= wanted:
            break
    return found[:wanted]


def _fits(config: Config, models: Models, stage: str) -> bool:
    """Whether ``stage`` is legal, fits and can be submitted in whole nodes."""
    gpus = stage_gpus(config, stage)
    if layout_findings(config, models, stage, gpus) or (gpus > (node := config.cluster.gpus_per_node) and gpus % node):
        return False
    engine = config.traces.tensor_parallel
    if stage == "traces" and engine > 1 and (config.traces.engine != "vllm" or config.cluster.gpus_per_node % engine):
        return False
    return fits(config, models, stage, gpus)


def _get(config, key: str):
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _override(key: str, value) -> str:
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
