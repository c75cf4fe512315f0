"""Other layouts and settings: all legal ones ranked, the fewest GPUs that fit, the cheapest changes that make a plan fit.

What is tried is what the code can run: tensor x pipeline x sequence parallelism x micro-batch x distributed optimizer x
decoding batch, and recomputation where it does not fit without.  Offload, context and expert parallelism are not tried.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vold_nemo.config import Config
from vold_nemo.planning.memory import GIB, Models
from vold_nemo.planning.plan import STAGES, Plan, StagePlan, layout_findings, make_plan, plan_stage, stage_gpus

_POWERS = (1, 2, 4, 8, 16)
_MOST_GPUS = 1024


def assign(config, key: str, value):
    """``config`` with ``key`` (dotted) set to ``value``; dataclasses on the way are copied."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(config, **{name: assign(getattr(config, name), rest, value) if rest else value})


@dataclass(frozen=True)
class Layout:
    """One candidate of :func:`ranked`: what to write on the command line, and what comes of it."""

    overrides: tuple[str, ...]
    plan: StagePlan

    @property
    def reason(self) -> str:
        """What decides its place."""
        if not self.plan.fits:
            return f"{(self.plan.peak.total - self.plan.capacity) / GIB:.0f} GiB too much in {self.plan.peak.name}"
        if self.plan.time is None:
            return f"fits, {self.plan.peak.total / GIB:.0f} GiB"
        name, seconds = max(self.plan.time.seconds.items(), key=lambda item: item[1])
        return f"{name} takes {seconds / self.plan.time.step:.0%} of a step; {self.plan.peak.total / GIB:.0f} GiB"


def candidates(config: Config, models: Models, stage: str, gpus: int) -> Iterator[tuple[tuple[str, ...], Config]]:
    """Every legal layout of ``stage`` on ``gpus`` ranks, with the overrides that name it."""
    sizes: dict[str, tuple] = {}
    if stage == "traces":
        sizes = {"traces.batch": tuple(sorted({max(1, config.traces.batch // n) for n in _POWERS}))}
    else:
        sizes["parallel.tensor"] = tuple(n for n in _POWERS if n <= min(gpus, config.cluster.gpus_per_node))
        sizes["parallel.pipeline"] = tuple(n for n in _POWERS if n <= gpus)
        sizes["parallel.sequence"] = (False, True)
        sizes[f"{stage}.optimizer.distributed"] = (False, True)
    if stage == "sft":
        sizes["sft.micro_batch"] = (1, 2, 4)
    if stage == "vold":
        sizes["vold.micro_batch_tokens"] = (8192, 16384, 32768)
        sizes["rollout.batch"] = tuple(sorted({max(1, config.rollout.batch // n) for n in (1, 2, 4)}))
    for values in itertools.product(*sizes.values()):
        chosen = dict(zip(sizes, values, strict=True))
        changed = config
        for key, value in chosen.items():
            changed = assign(changed, key, value)
        if not layout_findings(changed, models, stage, gpus):
            yield tuple(_override(key, value) for key, value in chosen.items()), changed


def ranked(config: Config, models: Models, stage: str, gpus: int) -> list[Layout]:
    """Layouts that fit, fastest first (without rates: emptiest first), then those that do not, nearest first."""
    found = [
        _least_recomputed(Layout(names, plan_stage(changed, models, stage, gpus)), changed, models)
        for names, changed in candidates(config, models, stage, gpus)
    ]

    def order(layout: Layout):
        time = layout.plan.time.step if layout.plan.time is not None else 0.0
        return (not layout.plan.fits, time if layout.plan.fits else 0.0, layout.plan.peak.total)

    return sorted(found, key=order)


def _least_recomputed(layout: Layout, config: Config, models: Models) -> Layout:
    """``layout``, or the same with as much recomputation as it takes to fit (all of it, where even that does not)."""
    stage, gpus = layout.plan.stage, layout.plan.gpus
    if stage == "traces" or config.parallel.recompute != "none":
        return layout
    names = layout.overrides
    for value in ("selective", "full"):
        if layout.plan.fits:
            break
        changed = assign(config, "parallel.recompute", value)
        layout = Layout((*names, f"parallel.recompute={value}"), plan_stage(changed, models, stage, gpus))
    return layout


def fewest_gpus(config: Config, models: Models, stage: str) -> Layout | None:
    """The fastest layout on the smallest power of two of GPUs on which any layout fits; None beyond 1024."""
    gpus = 1
    while gpus <= _MOST_GPUS:
        best = ranked(config, models, stage, gpus)[:1]
        if best and best[0].plan.fits:
            return best[0]
        gpus *= 2
    return None


_CHANGES: dict[str, Callable] = {
    "sft.optimizer.distributed": lambda now: [True],
    "vold.optimizer.distributed": lambda now: [True],
    "parallel.sequence": lambda now: [True],
    "parallel.recompute": lambda now: ["selective", "full"] if now == "none" else ["full"],
    "sft.micro_batch": lambda now: [now // 2, 1],
    "vold.micro_batch_tokens": lambda now: [now // 2, now // 4],
    "rollout.batch": lambda now: [now // 2, now // 4, now // 8],
    "traces.batch": lambda now: [now // 2, now // 4, now // 8],
    "objective.chunk_tokens": lambda now: [now // 2, now // 4],
    "parallel.tensor": lambda now: [now * 2, now * 4, now * 8],
    "parallel.pipeline": lambda now: [now * 2, now * 4],
    "cluster.gpus.sft": lambda now: [now * 2, now * 4],
    "cluster.gpus.vold": lambda now: [now * 2, now * 4],
}


def cheapest_changes(config: Config, models: Models, wanted: int = 3) -> list[tuple[tuple[str, ...], Plan]]:
    """Up to ``wanted`` sets of at most three changes after which every stage fits: fewest changes, then fewest GPU hours.

    A set that holds another found set is left out.
    """
    start = config
    for stage in STAGES[1:]:
        start = assign(start, f"cluster.gpus.{stage}", stage_gpus(config, stage))
    steps = [
        (key, value)
        for key, values in _CHANGES.items()
        for value in dict.fromkeys(values(_get(start, key)))
        if value != _get(start, key) and (isinstance(value, str) or value >= 1)
    ]
    found: list[tuple[tuple[str, ...], Plan]] = []
    sets: list[set[str]] = []
    for count in (1, 2, 3):
        new = []
        for chosen in itertools.combinations(steps, count):
            names = tuple(_override(key, value) for key, value in chosen)
            if len({key for key, _ in chosen}) < count or any(old <= set(names) for old in sets):
                continue
            changed = start
            for key, value in chosen:
                changed = assign(changed, key, value)
            if any(layout_findings(changed, models, stage, stage_gpus(changed, stage)) for stage in STAGES):
                continue
            plan = make_plan(changed, models)
            if plan.fits:
                new.append((names, plan))
        new.sort(key=lambda item: (item[1].gpu_hours or 0.0, item[0]))
        found += new
        sets += [set(names) for names, _ in new]
        if len(found) >= wanted:
            break
    return found[:wanted]


def _get(config, key: str):
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _override(key: str, value) -> str:
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"
