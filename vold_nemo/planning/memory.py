"""Bytes on every kind of rank in every phase of a stage, by what they are for.

Who holds the device (all of it stays resident, but for what the keys send away: ``residency.py``, teachers with ``offload``):

    sft train       student weights, gradients, optimizer, activations of the micro-batches in flight, the loss
    vold generate   all of stage 2's residents (student with gradients and optimizer, teacher, the engine's own copy of the
                    student, vision tower included) + key-value cache
    vold teacher    residents + teacher hidden states of the update + one teacher layer's work
    vold train      residents + those hidden states + activations + the objective
    vold sync       residents + what one round of the exchange sends and receives, and a tensor that arrives in pieces
    checkpoint      of both: residents; each rank writes its own share from where it lies, and nothing is gathered
    traces          the teacher in an engine + key-value cache (``decoding.py``)
    export          one process: a decoder layer, the embedding or the LM head, whichever needs most (:func:`export`);
                    with ``export.verify`` the student whole, twice (as trained, and the export read by transformers)

Longest sequences are supposed everywhere, padded as FP8 matrix units ask, but for the hidden states of an update, where mean
lengths add up; at the start of a run no rollout is right and all are scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vold_nemo.config import Config, TeacherConfig
from vold_nemo.config.sections.objective import EXACT
from vold_nemo.megatron import precision
from vold_nemo.megatron.architecture import Architecture, padded_vocabulary
from vold_nemo.megatron.precision import Precision
from vold_nemo.planning import activations, allocation, decoding, exchange
from vold_nemo.planning.activations import Heads, Numerics, Tokens
from vold_nemo.planning.allocation import BYTES, Placement
from vold_nemo.planning.decoding import GIB
from vold_nemo.planning.residency import here

SUMMING = (*EXACT, "vopd")  # estimators that sum over the vocabulary; vopd only to centre its coefficient


@dataclass(frozen=True)
class Models:
    """Shapes of the two models; ``teacher`` None where no KL is asked for."""

    student: Architecture
    teacher: Architecture | None
    vision: int  # parameters of the student's vision tower
    trace_writer: Architecture  # the teacher, with or without a KL
    more: tuple[Architecture, ...] = ()  # the named teachers, where there are several

    @property
    def teachers(self) -> tuple[Architecture, ...]:
        """All that score rollouts."""
        return () if self.teacher is None else (self.teacher, *self.more)

    @property
    def padded_rows(self) -> list[int]:
        return [arch.vocabulary for arch in (self.student, *self.teachers)]


@dataclass(frozen=True)
class Phase:
    """Bytes of one rank while it does one thing; ``parts`` in the order of the bar."""

    stage: str
    name: str
    at: Placement
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def on_cuda(config: Config) -> bool:
    return config.device != "cpu" and config.cluster.memory_gib is not None


def numerics(config: Config) -> Numerics:
    return Numerics(BYTES[config.precision], on_cuda(config))


def teacher_precision(config: Config, one: TeacherConfig, arch: Architecture) -> Precision:
    """How stage 2 holds a teacher on the cluster's GPUs."""
    hardware = precision.of_cluster(config.device, config.cluster.compute_capability)
    return precision.choose(one, config.precision, hardware, arch, config.parallel.tensor)


def reserve(config: Config) -> dict[str, int]:
    return {"reserve": int(config.plan.reserve_gib * GIB)} if on_cuda(config) else {}


def capacity(config: Config) -> int | None:
    """Bytes of one GPU; None where there is none, or none is named."""
    gib = config.cluster.memory_gib
    return int(gib * GIB) if gib is not None and on_cuda(config) else None


@dataclass(frozen=True)
class Met:
    """Of one data rank's update, where it is known and not supposed: tokens with padding that the teacher scored, and
    micro-batches.  ``data_rank``: which, among all that hold the same weights."""

    scored: int
    micro_batches: int
    data_rank: int


def phases(config: Config, models: Models, stage: str, gpus: int, met: Met | None = None) -> Iterator[Phase]:
    """Every phase of ``stage`` on ``gpus`` ranks, on each pipeline stage: of data rank 0, whose shard is never the smaller, or
    of the one ``met``."""
    if stage == "traces":
        yield _traces(config, models)
        return
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    for number in range(pipeline):
        at = Placement(
            tensor, pipeline, gpus // (tensor * pipeline), number, met.data_rank if met else 0, config.parallel.expert,
            config.parallel.virtual,
        )  # fmt: skip
        yield from _sft(config, models, at, met) if stage == "sft" else _vold(config, models, at, gpus, met)
    yield export(config, models, stage)


def _traces(config: Config, models: Models) -> Phase:
    engine = decoding.of_traces(config, models.trace_writer)
    prompt = config.plan.prompt_tokens if engine.share is None else config.traces.max_prompt_tokens
    rows = config.traces.batch * config.traces.samples_per_prompt
    parts = decoding.memory(engine, rows, prompt + config.traces.max_tokens, capacity(config), reserve(config))
    return Phase("traces", "decode", Placement(engine.tensor, 1, 1, 0), parts)


def export(config: Config, models: Models, stage: str) -> Phase:
    """The student alone, in one process; the vision tower goes from file to file.

    ``export.verify`` makes the student whole after the last file is written, and then transformers' model of the export.
    """
    student, size = models.student, BYTES[config.precision]
    at = Placement(1, 1, 1, 0)
    held, gathered = streamed(student, size, on_cuda(config))
    parts = {"parameters": held, "gathered": gathered}
    if config.export.verify:
        whole = allocation.frozen(student, at, padded_vocabulary([student.vocabulary], 1), config.precision)
        parts = {"parameters": whole.parameters, "engine": size * (allocation.parameter_count(student) + models.vision)}
    return Phase(stage, "export", at, parts | reserve(config))


def streamed(arch: Architecture, size: int, cuda: bool) -> tuple[int, int]:
    """(held, beside it) bytes where an export needs most, streaming sharded weights (``checkpoint/shard_stream.py``).

    Embedding and LM head are sent as they lie; of a layer, the query's rows are cut out of the fused qkv matrix.  What is
    read from a file stands in host memory first: on a CPU beside what it fills, the last one until the next is read (the two
    largest follow each other in megatron-core 0.16.1's order, and need not in 0.19.2's).  Gate and up
    projection are read one by one.
    """
    table = size * arch.vocabulary * arch.hidden
    parameters = dict(allocation.layer_parameters(arch, 1))
    layer = size * sum(parameters.values())
    if cuda:
        return max((table, 0), (layer, size * arch.heads * arch.head_dim * arch.hidden), key=sum)
    parameters["mlp.linear_fc1.weight"] //= 2
    reads = sorted([*parameters.values(), parameters["mlp.linear_fc1.weight"]])[-2:]
    return max((table, table), (layer, size * sum(reads)), key=sum)


def _sft(config: Config, models: Models, at: Placement, met: Met | None) -> Iterator[Phase]:
    """Stage 1: no teacher stands beside the student, so the vocabulary is padded to the student's rows alone."""
    student, how = models.student, numerics(config)
    padded = padded_vocabulary([student.vocabulary], at.tensor)
    held = allocation.trained(student, at, padded, config.precision, config.sft.optimizer.distributed)
    tokens = _slice(config, sft_tokens(config), config.sft.max_length)
    count = met.micro_batches if met else sft_micro_batches(config, at.data // config.parallel.context)
    work = _work(config, student, at, tokens, count, Heads(padded // at.tensor, student.hidden), how)
    yield Phase("sft", "train", at, {**_student(held), **work, **reserve(config)})
    yield Phase("sft", "checkpoint", at, {**_student(held), **reserve(config)})


def _vold(config: Config, models: Models, at: Placement, gpus: int, met: Met | None) -> Iterator[Phase]:
    student, teacher, how = models.student, models.teacher, numerics(config)
    padded = padded_vocabulary(models.padded_rows, at.tensor)
    held = allocation.trained(student, at, padded, config.precision, config.vold.optimizer.distributed)
    resident = _student(held)
    lends = {}
    if teacher is not None:
        scoring, lending, resident["teacher"] = teachers_bytes(config, models, at, padded)
        lends = {"teacher": lending}
    resident["engine"] = engine_weights(config, models)
    resident |= reserve(config)

    longest = config.plan.prompt_tokens + config.rollout.max_tokens
    sampled = config.vold.prompts_per_step * config.rollout.samples_per_prompt
    rows = min(config.rollout.batch, -(-sampled // gpus))
    cache = rollout_cache(config, models, rows, longest)
    # vLLM's cache stands all the time, unless the engine sleeps; then it comes back only to generate.
    stays = {"cache": cache} if config.rollout.engine == "vllm" and not config.rollout.sleep else {}
    # The engine is built first, awake and alone: vLLM looks at what is free.
    first = {"cache": cache} if config.rollout.engine == "vllm" else {}
    yield Phase("vold", "engine", at, {"engine": resident["engine"]} | reserve(config) | first)
    yield Phase("vold", "generate", at, here(config, "generate", resident) | {"cache": cache})

    padded_length = -(-longest // (multiple := pad_multiple(config, models))) * multiple
    tokens = _slice(config, max(config.vold.micro_batch_tokens, padded_length), padded_length)
    update = rollout_tokens(config) // (config.vold.updates_per_step * at.data)  # context ranks share tokens as data ranks do
    count = met.micro_batches if met else max(1, -(-update // tokens.count))
    scored = met.scored // config.parallel.context if met else update
    stash, width = {}, 0
    if teacher is not None:
        width = max(arch.hidden for arch in models.teachers)
        size = BYTES[teacher_precision(config, config.teacher, teacher).dtype]
        if at.is_last:
            split = at.tensor if config.parallel.sequence else 1
            stash = {"hidden states": size * scored * width // split}
        layers = size * tokens.count * max(_scoring_width(arch, at) for arch in models.teachers)
        parts = here(config, "teacher", resident) | {"teacher": scoring} | stash | stays | {"activations": layers}
        yield Phase("vold", "teacher", at, parts)
    work = _work(config, student, at, tokens, count, Heads(padded // at.tensor, student.hidden, width), how)
    yield Phase("vold", "train", at, here(config, "train", resident) | lends | stash | work | stays)
    gathered = exchange.beside(config, student)
    yield Phase("vold", "sync", at, here(config, "sync", resident) | {"gathered": gathered} | stays)
    yield Phase("vold", "checkpoint", at, here(config, "checkpoint", resident) | stays)


def pad_multiple(config: Config, models: Models) -> int:
    """What the length of a micro-batch of stage 2 is padded to: slices of the layout, and what FP8 matrix units ask for."""
    parallel = config.parallel
    split = (2 * parallel.context if parallel.context > 1 else 1) * (parallel.tensor if parallel.sequence else 1)
    held = [one for *_, one in scorers(config, models)] if models.teachers else []
    return math.lcm(split, *(precision.pad_multiple(one, split) for one in held))


def engine_weights(config: Config, models: Models) -> int:
    """Bytes of the rollout engine's own copy of the student on a rank, vision tower included."""
    return _rollouts(config, models).weight_bytes


def _rollouts(config: Config, models: Models) -> decoding.Decoder:
    return decoding.of_rollouts(config, models.student, models.vision)


def rollout_cache(config: Config, models: Models, rows: int, length: int) -> int:
    """Bytes of key-value cache on a rank, for ``rows`` sequences of it."""
    engine = _rollouts(config, models)
    if engine.share is None:
        return activations.decoding(models.student, rows, length, engine.size)
    room = engine.room(capacity(config))
    return int(engine.cache_bytes(rows * engine.tensor * length)) if room is None else room


def _scoring_width(teacher: Architecture, at: Placement) -> int:
    """Elements a token that one layer of a forward pass holds: five feed-forward and two hidden widths.

    An expert-parallel rank is supposed to get its share of the copies that tokens send to experts, not more.
    """
    wide = teacher.experts_per_token * teacher.expert_ffn if teacher.experts else teacher.ffn // at.tensor
    return 5 * wide + 2 * teacher.hidden


def scorers(config: Config, models: Models) -> Iterator[tuple[TeacherConfig, Architecture, Precision]]:
    """Each teacher that scores rollouts, with its shape and how it is held."""
    for one, arch in zip((config.teacher, *config.teachers.values()), models.teachers, strict=True):
        yield one, arch, teacher_precision(config, one, arch)


def teachers_weights(config: Config, models: Models, at: Placement, padded: int) -> list[int]:
    """Bytes of each scorer's weights on a rank."""
    return [
        allocation.frozen(arch, at, padded, held.weights, held.recipe).parameters for _, arch, held in scorers(config, models)
    ]


def teachers_bytes(config: Config, models: Models, at: Placement, padded: int) -> tuple[int, int, int]:
    """Weights of all teachers while one scores (the largest one does), while the loss meets their LM heads, and else.

    With ``teacher.offload`` a teacher is whole while it scores, its LM head stays for the loss, and then nothing of it.
    """
    comes, heads, stay = [], [], 0
    weights = teachers_weights(config, models, at, padded)
    for (one, arch, held), size in zip(scorers(config, models), weights, strict=True):
        if one.offload:
            comes.append(size)
            heads.append(BYTES[held.dtype] * padded // at.tensor * arch.hidden if at.is_last else 0)
        else:
            stay += size
    most = max((size + sum(heads) - head for size, head in zip(comes, heads, strict=True)), default=0)
    return stay + most, stay + sum(heads), stay


def rollout_tokens(config: Config) -> int:
    """Mean tokens of all rollouts of a step, prompts included."""
    response = min(config.plan.response_tokens, config.rollout.max_tokens)
    sampled = config.vold.prompts_per_step * config.rollout.samples_per_prompt
    return sampled * (config.plan.prompt_tokens + response)


def sft_tokens(config: Config) -> int:
    """Tokens of one micro-batch of stage 1, at most."""
    return (config.sft.pack_length or config.sft.max_length) if config.sft.packing else (
        config.sft.micro_batch * config.sft.max_length
    )  # fmt: skip


def sft_micro_batches(config: Config, data: int) -> int:
    """Micro-batches of a step of stage 1 on each of ``data`` ranks; packed rows are supposed to be full."""
    if not config.sft.packing:
        return -(-config.sft.batch // (config.sft.micro_batch * data))
    mean = min(config.plan.prompt_tokens + config.plan.trace_tokens, config.sft.max_length)
    return -(-config.sft.batch * mean // (sft_tokens(config) * data))


def _slice(config: Config, count: int, length: int) -> Tokens:
    """A context-parallel rank's part of a micro-batch."""
    context = config.parallel.context
    return Tokens(-(-count // context), -(-length // context))


def _student(held: allocation.Allocation) -> dict[str, int]:
    return {"parameters": held.parameters, "gradients": held.gradients, "optimizer": held.optimizer}


def _work(
    config: Config, arch: Architecture, at: Placement, tokens: Tokens, count: int, heads: Heads, how: Numerics
) -> dict[str, int]:
    """Activations of ``count`` micro-batches as far as they are in flight at once, and what the loss or the backward pass
    adds at their height."""
    parallel = config.parallel
    kept = activations.kept(arch, at, tokens, parallel, how, count)
    added = activations.layer_backward(arch, tokens, at.tensor, how)
    behind = added + activations.recomputed(arch, tokens, parallel, how)
    if at.is_last:
        exact = heads.teacher_hidden > 0 and config.objective.kl.estimator in SUMMING
        loss = activations.objective(
            heads, tokens.count, config.objective.tokens_at_once(how.cuda), how, gathered=parallel.sequence, exact=exact
        )
        added = max(loss.peak, loss.kept + added)  # what the loss keeps is used up before a layer is made again
    added = max(added, behind)
    if at.is_first:
        added = max(added, activations.embedding_backward(arch, heads.rows, how) - kept)
    return {"activations": kept, "objective": added}


def with_layout(config: Config, **changes) -> Config:
    """``config`` with other values of ``parallel.*``."""
    return replace(config, parallel=replace(config.parallel, **changes))
