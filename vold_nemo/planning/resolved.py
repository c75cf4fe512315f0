"""The resolved plan in words: what ``dry_run=true`` and ``recipes/plan.py`` print.  No torch, no device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vold_nemo.config import Config, ConfigError, OptimizerConfig
from vold_nemo.config.launcher import launched_world
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.megatron.architecture import read as architecture_of
from vold_nemo.planning.allocation import parameter_count
from vold_nemo.planning.memory import teacher_precision
from vold_nemo.planning.validity import STAGES, planned_world, submitted_world

ABSENT = "not here yet, its shapes are not known"


def describe(config: Config, verb: str) -> str:
    """Lines on the models, the layout and the stages that ``recipes/<verb>.py`` runs; empty if it runs none.

    The configuration must be free of findings (:func:`vold_nemo.planning.validity.findings`).
    """
    stages = STAGES.get(verb, ())
    if not stages:
        return ""
    student = _known(config.student.path)
    lines = [f"student  {config.student.path}: {_model(student) if student is not None else ABSENT}"]
    if "vold" in stages:
        if not config.objective.kl.enabled:
            lines.append("teacher  none (objective.kl.enabled=false)")
        for name, one in {"": config.teacher, **config.teachers}.items() if config.objective.kl.enabled else ():
            arch = _known(one.path)
            said = f"{one.path}: {_model(arch) if arch is not None else ABSENT}, frozen"
            said += f", for prompts that name {name}" if name else ""
            lines.append(f"teacher  {said}" + (f", in turn on the device (else {one.offload_to})" if one.offload else ""))
            if arch is not None:
                lines.append(f"         {teacher_precision(config, one, arch).describe()}")
    for stage, described in (("sft", _sft), ("vold", _vold)):
        if stage in stages:
            world = submitted_world(config, stage) if verb == "plan" else planned_world(config, verb)
            lines.extend(_layout(config, student, world))
            lines.extend(described(config, world // config.parallel.model_ranks))
    return "\n".join(lines)


def _known(path: str) -> Architecture | None:
    """None where the shapes are not known: a dry run is made before anything is fetched or trained."""
    try:
        return architecture_of(path)
    except ConfigError:
        if Path(path).is_dir():
            raise
        return None


def _model(arch: Architecture) -> str:
    head = "tied" if arch.tied else "own"
    return (
        f"{arch.family}, {_amount(parameter_count(arch))} parameters of text backbone ({arch.layers} layers x "
        f"{arch.hidden}, {arch.heads} heads / {arch.kv_groups} KV, {arch.vocabulary} rows, {head} LM head)"
    )


def _layout(config: Config, student: Architecture | None, world: int) -> Iterator[str]:
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    context = f" x context {config.parallel.context}" if config.parallel.context > 1 else ""
    data = world // config.parallel.model_ranks
    launched = "launched" if launched_world() is not None else "not launched"
    yield f"layout   {world} ranks = tensor {tensor} x pipeline {pipeline}{context} x data {data} ({launched})"
    split = ", activations split along the sequence" if config.parallel.sequence else ""
    if student is not None:
        layers = " or ".join(map(str, sorted(set(student.stages(pipeline)))))
        yield f"         {layers} student layers and {student.heads // tensor} heads on a rank{split}"
    if config.parallel.virtual > 1:
        yield f"         {config.parallel.virtual} virtual stages on a rank: micro-batches in groups of {pipeline}"
    if config.parallel.recompute != "none":
        yield f"         activations made again in the backward pass: {config.parallel.recompute}"
    if config.parallel.expert > 1:
        yield f"         experts spread over {config.parallel.expert} ranks of a stage"


def _sft(config: Config, data: int) -> Iterator[str]:
    sft = config.sft
    if sft.packing:
        yield (
            f"stage 1  {sft.steps} steps of {sft.batch} traces up to {sft.max_length} tokens, packed into rows of at most "
            f"{sft.pack_length or sft.max_length}, dealt to {data} data-parallel ranks"
        )
        yield f"         {_rate(sft.optimizer)}; run {config.outputs}/{sft.run}"
        return
    micro_batches = -(-sft.batch // sft.micro_batch)
    each = -(-micro_batches // data)
    dummies = each * data - micro_batches
    yield (
        f"stage 1  {sft.steps} steps of {sft.batch} traces up to {sft.max_length} tokens; {each} micro-batches of "
        f"{sft.micro_batch} on each of {data} data-parallel ranks" + (f", {dummies} of them empty" if dummies else "")
    )
    yield f"         {_rate(sft.optimizer)}; run {config.outputs}/{sft.run}"


def _vold(config: Config, data: int) -> Iterator[str]:
    vold, objective, rollout = config.vold, config.objective, config.rollout
    samples, prompts = rollout.samples_per_prompt, vold.prompts_per_step
    yield (
        f"stage 2  {vold.steps} steps of {prompts} prompts x {samples} rollouts = {prompts * samples}, up to "
        f"{rollout.max_tokens} tokens at temperature {rollout.temperature:g}; {vold.updates_per_step} update(s) a step"
    )
    terms = []
    if objective.policy.enabled:
        policy = objective.policy
        clip = f"[1-{policy.clip_low:g}, 1+{policy.clip_high:g}]"
        terms.append(f"{policy.loss} clipped to {clip}, {policy.advantage} advantages")
    if objective.kl.enabled:
        terms.append(f"beta {_beta(config)} x KL ({objective.kl.estimator}, mask {objective.kl.mask})")
    yield f"         {objective.arm}: {' + '.join(terms)}"
    yield f"         {_rate(vold.optimizer)}; starts from {vold.start}"
    yield f"         run {config.outputs}/{vold.run}"


def _beta(config: Config) -> str:
    beta = config.objective.kl.beta
    text = f"{beta.value:g}"
    if beta.final is not None:
        text += f" to {beta.final:g} ({beta.schedule}, {beta.steps or config.vold.steps} steps)"
    return text + (f", 0 from step {beta.off_step}" if beta.off_step is not None else "")


def _rate(optimizer: OptimizerConfig) -> str:
    return (
        f"AdamW, learning rate {optimizer.learning_rate:g} ({optimizer.schedule} to {optimizer.min_learning_rate:g}, "
        f"{optimizer.warmup_steps} steps of warm-up)"
    )


def _amount(number: int) -> str:
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)
