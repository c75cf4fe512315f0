"""What can be known to be wrong before a process group is made; every finding at once.

Choices and bounds of single keys are the schema's (:mod:`vold_nemo.config.check`); what two keys, or a key and a checkpoint's
``config.json``, decide together (layouts, schedules, batches) is found here.  No torch, no device, no launch: a login node
finds the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vold_nemo.checkpoint import hub
from vold_nemo.config import BetaConfig, Config, ConfigError, OptimizerConfig
from vold_nemo.config.check import check
from vold_nemo.config.launcher import launched_world
from vold_nemo.config.sections.objective import ESTIMATORS, EXACT
from vold_nemo.config.sources import local_folder
from vold_nemo.config.tree import value_at
from vold_nemo.data.traces import trace_files
from vold_nemo.megatron import architecture, precision
from vold_nemo.planning import profiling, published, site


class Pending(ConfigError):
    """Something that is not here yet: a checkpoint or data to fetch, a feature to build.  Stops a run; a plan warns of it."""

    @classmethod
    def of(cls, error: ConfigError) -> Pending:
        return cls(error.key, error.value, error.allowed, error.mend)


class Unbuilt(Pending):
    """Of these, the features: nothing can be planned that rests on them."""


# Which stages a verb runs; a verb that is not here runs neither.
STAGES = {"sft": ("sft",), "vold": ("vold",), "teacher_drift": ("vold",), "plan": ("sft", "vold")}


def findings(config: Config, verb: str, world: int | None = None) -> list[ConfigError]:
    """Every error in ``config`` for ``recipes/<verb>.py`` on ``world`` ranks (None = see :func:`planned_world`).

    Keys of single values are checked for every verb; layouts and checkpoints only for the stages that the verb runs.
    """
    errors = list(check(config))
    wrong = {error.key for error in errors}
    ranks = planned_world(config, verb) if world is None else world
    stages = STAGES.get(verb, ()) if verb != "rehearse" else _rehearsed(config)
    errors += [error for error in _find(config, stages, ranks, wrong) if error.key not in wrong]
    if verb == "rehearse":
        errors += _shapes(config, stages)
    if verb in ("vold", "teacher_drift") and not Path(config.vold.start).is_dir():
        mend = "run recipes/sft.py and recipes/export_hf.py first, or give vold.start=CHECKPOINT"
        errors.append(Pending("vold.start", config.vold.start, "a checkpoint folder", mend))
    if verb == "sft":
        try:
            trace_files(config.traces.path)
        except ConfigError as error:
            errors.append(Pending.of(error))
    if verb == "export_hf" and config.export.push is not None:
        errors += _push(config.export.push)
    return errors


def _push(repo: str) -> Iterator[ConfigError]:
    try:
        hub.check_name(repo)
    except ConfigError as error:
        yield error
    try:
        hub.token()
    except ConfigError as error:
        yield Pending.of(error)


def _rehearsed(config: Config) -> tuple[str, ...]:
    """Stages that must be able to run: an export reads what a run has written, wherever that was."""
    if config.rehearse.all:
        return ("sft", "vold")
    return () if config.rehearse.stage == "export" else (config.rehearse.stage,)


def _shapes(config: Config, stages: tuple[str, ...]) -> Iterator[ConfigError]:
    """Models that are neither here nor published."""
    named = ["student.path"]
    if "vold" in stages and config.objective.kl.enabled:
        named += ["teacher.path", *(f"teachers.{name}.path" for name in config.teachers)]
    for key in named:
        path = value_at(config, key)
        if not Path(path).is_dir() and not published.is_published(path):
            known = ", ".join(sorted(file.stem for file in architecture.PUBLISHED.glob("*.json")))
            allowed = f"a checkpoint folder, or a hub id ORGANISATION/NAME with a NAME whose shapes are known: {known}"
            mend = "give a folder with its config.json and safetensors, or one of these"
            missing = _read(key, path, config.miniature.path)
            if isinstance(missing, Pending) and Path(path).is_relative_to(config.miniature.path):
                mend = missing.mend
            yield ConfigError(key, path, allowed, mend)


def pending(config: Config) -> list[ConfigError]:
    """What a plan warns of: models and data that are not fetched, features that are not built."""
    found: list[ConfigError] = [error for error in findings(config, "plan") if isinstance(error, Pending)]
    for key in ("data.prompts", "data.trace_prompts"):
        dataset = value_at(config, key)
        if dataset is not None and not Path(local_folder(dataset.path, dataset.revision, "dataset")).exists():
            mend = "fetch it (README, a real run), or give another path"
            found.append(Pending(f"{key}.path", dataset.path, "a file, a folder, or a hub id in the local cache", mend))
    return found


def planned_world(config: Config, verb: str) -> int:
    """Ranks to check the layout against: those launched, 1 without a launcher; for a plan or dry run, those submitted; for
    a rehearsal those of its world."""
    world = launched_world()
    if verb == "rehearse":
        return config.rehearse.world or submitted_world(config, (_rehearsed(config) or ("vold",))[-1])
    if world is not None:
        return world
    return submitted_world(config, STAGES.get(verb, ("",))[-1]) if config.dry_run or verb == "plan" else 1


def submitted_world(config: Config, stage: str) -> int:
    """Ranks that ``stage`` is submitted with, ``cluster.gpus.<stage>``; unset, one model copy."""
    return getattr(config.cluster.gpus, stage, None) or max(1, config.parallel.model_ranks)


def _folders(config: Config) -> Iterator[ConfigError]:
    """Names that become folders below ``outputs``, and nowhere else."""
    if not re.fullmatch(r"\w[\w.+=-]*", config.name):
        yield ConfigError("name", config.name, "letters, digits and _ . + = -", "it names a folder: give one word")
    if not config.outputs.strip():
        yield ConfigError("outputs", config.outputs, "a folder", "name one; `.` is the working directory")
    for key in ("sft.run", "vold.run"):
        run = value_at(config, key)
        if run.startswith("/") or {".", ".."} & set(run.split("/")) or not run.strip("/ "):
            yield ConfigError(key, run, "a folder below `outputs`", f"give {key}=NAME or {key}=EXPERIMENT/NAME")


def _find(config: Config, stages: tuple[str, ...], world: int, wrong: set[str]) -> Iterator[ConfigError]:
    """What follows from several keys; nothing is concluded from the values of the keys in ``wrong``."""
    yield from _folders(config)
    yield from site.findings(config.cluster.launch)
    for key, part in (("traces.shard", config.traces), ("evaluate.shard", config.evaluate)):
        if part.shard >= part.shards and f"{key}s" not in wrong:
            yield ConfigError(key, part.shard, f"0 to {part.shards - 1}", "count shards from 0")
    judge = config.evaluate.judge
    if judge.url is not None and judge.model is None:
        yield ConfigError("evaluate.judge.model", None, "a model's name", "say which model the endpoint is to ask")
    if config.traces.engine == "dataset" and config.traces.verify:
        mend = "set traces.verify=false, or an engine with a teacher"
        yield ConfigError("traces.verify", True, "false with traces.engine=dataset: no teacher answers", mend)
    if config.traces.tensor_parallel > 1 and config.traces.engine != "vllm":
        mend = "set traces.engine=vllm, or leave it at 1"
        yield ConfigError("traces.tensor_parallel", config.traces.tensor_parallel, "1 without vllm", mend)
    if config.cluster.gpus_per_node % max(1, config.traces.tensor_parallel) and config.cluster.name != "local":
        allowed = f"a divisor of cluster.gpus_per_node = {config.cluster.gpus_per_node}"
        yield ConfigError("traces.tensor_parallel", config.traces.tensor_parallel, allowed, "an engine stays on one node")
    for stage in stages:
        if f"{stage}.optimizer.learning_rate" not in wrong:
            steps = value_at(config, f"{stage}.steps")
            yield from _optimizer(value_at(config, f"{stage}.optimizer"), f"{stage}.optimizer", steps)
    yield from profiling.of_run(config, stages, world, wrong)
    if "sft" in stages:
        yield from _packing(config)
    if "vold" in stages:
        if config.data.prompts.fields.image is not None:
            allowed = "null: stage 2 trains on text only"
            mend = "leave it out; images belong to vold.validation.data and evaluate.image"
            yield ConfigError("data.prompts.fields.image", config.data.prompts.fields.image, allowed, mend)
        yield from _objective(config, wrong)
        size = config.rollout.vllm.tensor_parallel
        if config.rollout.engine == "vllm" and world % max(1, size):
            mend = "one engine takes whole ranks: lower it"
            yield ConfigError("rollout.vllm.tensor_parallel", size, f"a divisor of the {world} ranks", mend)
        yield from _beta(config.objective.kl.beta, config.vold.steps)
        yield from _teachers(config)
    if config.tokenizer.adopt_teacher_tokens and "sft" in stages:
        teacher = _read("teacher.path", config.teacher.path, config.miniature.path)
        if isinstance(teacher, ConfigError) and "vold" not in stages:  # stage 2 names it anyway
            yield teacher
    if stages:
        yield from _layouts(config, stages, world, wrong)


def _optimizer(optimizer: OptimizerConfig, key: str, steps: int) -> Iterator[ConfigError]:
    if optimizer.min_learning_rate > optimizer.learning_rate:
        allowed = f"at most {key}.learning_rate = {optimizer.learning_rate}"
        yield ConfigError(f"{key}.min_learning_rate", optimizer.min_learning_rate, allowed, "lower it")
    if optimizer.warmup_steps > steps > 0:
        allowed = f"at most the run's {steps} steps"
        yield ConfigError(f"{key}.warmup_steps", optimizer.warmup_steps, allowed, "warm up for fewer steps")


def _packing(config: Config) -> Iterator[ConfigError]:
    sft = config.sft
    if not sft.packing:
        if sft.pack_length is not None:
            yield ConfigError("sft.pack_length", sft.pack_length, "null without packing", "set sft.packing=true")
        return
    if sft.micro_batch != 1:
        mend = "set sft.micro_batch=1, and sft.pack_length for longer rows"
        yield ConfigError("sft.micro_batch", sft.micro_batch, "1 with packing: a packed row is a micro-batch", mend)
    if sft.pack_length is not None and sft.pack_length < sft.max_length:
        allowed = f"at least sft.max_length = {sft.max_length}: a trace is never cut"
        yield ConfigError("sft.pack_length", sft.pack_length, allowed, "raise it, or lower sft.max_length")


def _objective(config: Config, wrong: set[str]) -> Iterator[ConfigError]:
    policy, kl, samples = config.objective.policy, config.objective.kl, config.rollout.samples_per_prompt
    if not policy.enabled and not kl.enabled:
        allowed = "true, or objective.kl.enabled=true"
        yield ConfigError("objective.policy.enabled", False, allowed, "enable one of the two terms")
    if policy.enabled and samples < 2:
        allowed = "2 or more: an advantage compares the rollouts of a group"
        mend = "raise it, or set objective=distillation_only"
        yield ConfigError("rollout.samples_per_prompt", samples, allowed, mend)
    if kl.enabled and kl.estimator == "k1_reward" and not policy.enabled:
        own = (name for name in ESTIMATORS if name != "k1_reward")
        allowed = f"an estimator with a gradient of its own: {' | '.join(own)}"
        mend = "k1_reward shapes rewards: enable objective.policy"
        yield ConfigError("objective.kl.estimator", kl.estimator, allowed, mend)
    for name, plain in (("reward_placement", "after"), ("reward_horizon", "immediate")):
        value = getattr(kl, name)
        if kl.enabled and kl.estimator != "k1_reward" and value != plain:
            mend = "set objective.kl.estimator=k1_reward, or leave the key alone"
            yield ConfigError(f"objective.kl.{name}", value, f"{plain} with estimator {kl.estimator}", mend)
    if kl.enabled and not kl.mask_one_sided and (kl.estimator not in EXACT or kl.mask == "perplexity"):
        allowed = f"true, or an estimator of {' | '.join(EXACT)} with a mask other than perplexity"
        mend = "log-probs of a sampled id need an id that the teacher has: leave the key alone, or change the estimator"
        yield ConfigError("objective.kl.mask_one_sided", False, allowed, mend)
    if kl.reward_placement == "before" and kl.reward_horizon == "return_to_go":
        allowed = "immediate: a KL inside the reward of a rollout has no position any more"
        mend = "set objective.kl.reward_placement=after for returns-to-go"
        yield ConfigError("objective.kl.reward_horizon", kl.reward_horizon, allowed, mend)
    if config.vold.updates_per_step > config.vold.prompts_per_step and "vold.prompts_per_step" not in wrong:
        allowed = f"at most vold.prompts_per_step = {config.vold.prompts_per_step}: an update takes whole groups"
        yield ConfigError("vold.updates_per_step", config.vold.updates_per_step, allowed, "lower it")
    yield from _sampling(config)


def _sampling(config: Config) -> Iterator[ConfigError]:
    rollout, validation = config.rollout, config.vold.validation
    sampled = config.vold.prompts_per_step * rollout.samples_per_prompt
    if rollout.token_budget is not None and rollout.token_budget < sampled:
        allowed = f"at least one token for each of a step's {sampled} rollouts, or null"
        yield ConfigError("rollout.token_budget", rollout.token_budget, allowed, "raise it, or ask fewer prompts a step")
    if rollout.token_budget is not None and rollout.stop:
        allowed = "null with rollout.stop: a text may be cut in two where an answer is continued"
        yield ConfigError("rollout.token_budget", rollout.token_budget, allowed, "leave one of the two out")
    if "" in rollout.stop:
        yield ConfigError("rollout.stop", rollout.stop, "texts of at least one character", "take the empty one out")
    if validation.every > 0 and not (validation.data or validation.text or validation.hold_out):
        mend = "give vold.validation.data.path or text.path, set hold_out, or set every=0"
        yield ConfigError("vold.validation.data", None, "a dataset", mend)
    if validation.text is not None and validation.hold_out:
        allowed = "0 beside vold.validation.text, which is held-out text already"
        yield ConfigError("vold.validation.hold_out", validation.hold_out, allowed, "leave one of the two out")


def _beta(beta: BetaConfig, steps: int) -> Iterator[ConfigError]:
    key, anneals = "objective.kl.beta", beta.schedule in ("linear", "exponential")
    if anneals != (beta.final is not None):
        allowed = "set with schedule linear or exponential, null with constant"
        yield ConfigError(f"{key}.final", beta.final, allowed, f"change {key}.final or {key}.schedule")
    if beta.schedule == "exponential" and not (beta.value > 0 and (beta.final or 0) > 0):
        allowed = "value and final above 0 with schedule exponential"
        yield ConfigError(f"{key}.final", beta.final, allowed, f"set {key}.schedule=linear to reach 0")
    length = steps if beta.steps is None else beta.steps
    if anneals and length <= beta.warmup_steps:
        allowed = f"above {key}.warmup_steps = {beta.warmup_steps}"
        yield ConfigError(f"{key}.steps", length, allowed, "warm up for fewer steps")


def _layouts(config: Config, stages: tuple[str, ...], world: int, wrong: set[str]) -> Iterator[ConfigError]:
    """Student and teacher share one layout and read the same tokens: both must fit."""
    with_teacher = "vold" in stages and config.objective.kl.enabled
    found: dict[str, ConfigError] = {}
    # The stages share a configuration: what only the teacher's experts need does not trouble stage 1.
    scorers = [config.teacher, *config.teachers.values()] if config.objective.kl.enabled else []
    beside = config.parallel.expert > 1 and any(_may_have_experts(one.path) for one in scorers)
    named = ("teacher.path", *(f"teachers.{name}.path" for name in config.teachers)) if with_teacher else ()
    for key in ("student.path", *named):
        path = value_at(config, key)
        model = _read(key, path, config.miniature.path)
        errors = [model] if isinstance(model, ConfigError) else []
        if isinstance(model, Pending) and published.is_published(path):  # its shapes are known all the same
            try:
                model = architecture.read(path)
            except ConfigError as error:
                model = Unbuilt.of(error)
                errors.append(model)
        if not isinstance(model, ConfigError):
            student = key == "student.path"
            errors += architecture.check_layout(model, config.parallel, world, beside_experts=beside, trained=student)
            errors += _lengths(config, stages, key, model)
            if key in named and "cluster.compute_capability" not in wrong:
                errors += precision_findings(config, key.removesuffix(".path"), model)
        found.update((str(error), error) for error in errors)  # what both models say the same is said once
    yield from found.values()


def _lengths(config: Config, stages: tuple[str, ...], key: str, arch: architecture.Architecture) -> Iterator[ConfigError]:
    """Sequences that the model at ``key`` has no positions for; a rollout also has a prompt, of one token at least."""
    longest = {}
    if "sft" in stages and key == "student.path":
        longest["sft.max_length"] = (config.sft.max_length, arch.max_positions)
    if "vold" in stages:
        longest["rollout.max_tokens"] = (config.rollout.max_tokens, arch.max_positions - 1)
    for name, (length, most) in longest.items():
        if length > most:
            yield ConfigError(name, length, f"at most {most}: {key} has {arch.max_positions} positions", f"lower {name}")


def _teachers(config: Config) -> Iterator[ConfigError]:
    """Named teachers and the column that names them come together."""
    column = config.data.prompts.fields.teacher
    if config.teachers and column is None:
        mend = "name the column, or remove `teachers`"
        yield ConfigError("data.prompts.fields.teacher", None, "the column that names a row's teacher", mend)
    if column is not None and not config.teachers and config.objective.kl.enabled:
        mend = "add teachers.NAME.path=CHECKPOINT, or leave the column out"
        yield ConfigError("teachers", {}, "the teachers that data.prompts.fields.teacher names", mend)


def _may_have_experts(path: str) -> bool:
    """Whether the model at ``path`` has experts; True, too, where that cannot be known here."""
    try:
        return bool(architecture.read(path).experts)
    except ConfigError:
        return True


def precision_findings(config: Config, section: str, arch: architecture.Architecture) -> list[ConfigError]:
    """Why the teacher of ``section`` (``teacher``, ``teachers.NAME``) cannot be held as it asks, here and in this layout."""
    hardware, asked = precision.of_cluster(config.device, config.cluster.compute_capability), value_at(config, section)
    try:
        precision.choose(asked, config.precision, hardware, arch, max(1, config.parallel.tensor))
    except ConfigError as error:
        key = error.key.replace("teacher.", f"{section}.", 1)
        return [ConfigError(key, error.value, error.allowed, error.mend)]
    return []


def _read(key: str, path: str, miniature: str) -> architecture.Architecture | ConfigError:
    if not Path(path).is_dir():
        mend = f"correct the path, or fetch it where there is a network: hf download {path}"
        if Path(path).is_relative_to(miniature):
            mend = "make it: recipes/prepare_miniature.py with the same experiment"
        kind = ConfigError if Path(path).is_absolute() and not Path(path).is_relative_to(miniature) else Pending
        return kind(key, path, "a checkpoint folder, or a hub id that is in the local cache", mend)
    try:
        return architecture.read(path)
    except ConfigError as error:
        return ConfigError(f"{key}: {error.key}", error.value, error.allowed, error.mend)

