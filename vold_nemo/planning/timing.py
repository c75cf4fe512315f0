"""Seconds of each phase from FLOPs, bytes and the cluster's rates.  Estimates: nothing here was measured on a GPU.

    matrix products   2 FLOPs a weight and token forward, twice that backward; attention 2·A·context·layers (causal: half of 4)
    decoding          a step reads all weights and the cache once; transformers launches every layer besides (decoding.py)
    tensor parallel   two all-reduces of [n, H] a layer forward, two backward, 2(T-1)/T of their bytes over the node's links
    recomputation     the feed-forward's share of a forward pass, or all of the layers', once more
    context parallel  keys and values travel C - 1 times forward, with their gradients backward; not overlapped
    data parallel     4-byte gradients, 2(D-1)/D of their bytes, over the network as soon as the stage spans nodes
    expert parallel   two all-to-alls of each token's chosen copies a teacher layer, over the network where experts span nodes
    pipeline          bubble (P - 1)/M of the work, M micro-batches; all stages wait for the last, which has the LM head besides
    virtual stages    V of them: bubble (P - 1)/(V M), more where P does not divide M (arXiv 2104.04473, section 2.2), and each
                      micro-batch goes around the stages V - 1 times more, which is not overlapped here
    offload           optimizer state and engine once out and once in a step, the teacher in for each update (what never
                      changes is copied out once in a run); gradients are freed, not copied; read again from a checkpoint,
                      the teacher takes longer than planned here

The linear layers of a teacher whose inputs are FP8 too run at ``cluster.fp8_tflops``, where that is given; its attention and an
emulated FP8 teacher at the bf16 rate.  Where a rehearsal of the configuration lies in ``rehearse.path``, its counts take the
place of these formulas (:func:`counted`).  Of several teachers the costliest counts, as if it scored all.  Rewards (CPU) and
validation are not timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vold_nemo.config import Config
from vold_nemo.megatron.architecture import Architecture, padded_vocabulary
from vold_nemo.megatron.precision import Precision
from vold_nemo.planning import allocation, decoding, exchange, memory
from vold_nemo.planning.allocation import BYTES, Placement
from vold_nemo.planning.decoding import active_weights
from vold_nemo.planning.memory import Models, rollout_tokens
from vold_nemo.planning.rates import bandwidth, rates
from vold_nemo.planning.residency import leaving


@dataclass(frozen=True)
class Duration:
    """One step of a stage by phase, and how many steps there are (traces: one)."""

    stage: str
    gpus: int
    steps: int
    seconds: dict[str, float]
    rehearsed: tuple[str, ...] = ()  # phases whose operations and bytes were counted by a rehearsal

    @property
    def step(self) -> float:
        return sum(self.seconds.values())

    @property
    def total(self) -> float:
        return self.steps * self.step

    @property
    def gpu_hours(self) -> float:
        return self.total * self.gpus / 3600


def duration(config: Config, models: Models, stage: str, gpus: int) -> Duration:
    if stage == "traces":
        return Duration(stage, gpus, 1, {"generate": _trace_seconds(config, models, gpus)})
    if stage == "sft":
        return Duration(stage, gpus, config.sft.steps, _sft(config, models, gpus))
    return Duration(stage, gpus, config.vold.steps, _vold(config, models, gpus))


def counted(time: Duration, config: Config, models: Models, rehearsals: Sequence[Mapping[str, Any]]) -> Duration:
    """``time`` with what ``rehearsals`` (``account.account``) of its stage and world counted: the operations and bytes of each
    phase on the slowest rank among them, at the same rates, and the pipeline's bubble.

    A rehearsal runs the longest micro-batches and is scaled by tokens: of long answers it overstates attention.
    """
    found: dict[str, float] = {}
    known = {"train", "teacher", "sync"}
    if time.stage == "vold" and config.vold.updates_per_step > 1:
        known.remove("train")  # a rehearsal counts one update, and the log-probs before it apart
    for one in rehearsals:
        if one["stage"] != time.stage or one["world"] != time.gpus or one["violations"]:
            continue
        for phase, seconds in one["seconds"].items():
            if phase not in known:
                continue
            waits = 1.0 if phase == "sync" else _bubble(config, models.student, one["micro_batches"]["planned"])
            found[phase] = max(found.get(phase, 0.0), (seconds["work"] + seconds["links"]) * waits)
    if not found:
        return time
    others = {} if time.stage == "sft" else {name: value for name, value in time.seconds.items() if name not in found}
    seconds = {name: value for name, value in (time.seconds | found).items() if name in found or name in others}
    return replace(time, seconds=seconds, rehearsed=tuple(found))


def forward_flops(arch: Architecture, tokens: float, context: float) -> float:
    """FLOPs of ``tokens`` tokens in sequences of ``context`` tokens."""
    return tokens * (2 * active_weights(arch) + 2 * arch.layers * arch.heads * arch.head_dim * context)


def _trace_seconds(config: Config, models: Models, gpus: int) -> float:
    limit = config.data.trace_prompts.limit if config.data.trace_prompts is not None else config.data.prompts.limit
    prompts = min(config.plan.trace_prompts, limit or config.plan.trace_prompts)
    engine = decoding.of_traces(config, models.trace_writer)
    each = -(-prompts * config.traces.samples_per_prompt // max(1, gpus // engine.tensor))
    prefill = forward_flops(models.trace_writer, each * config.plan.prompt_tokens, config.plan.prompt_tokens)
    return decoding.seconds(config, engine, each, config.plan.trace_tokens, config.traces.max_tokens, prefill)


def _sft(config: Config, models: Models, gpus: int) -> dict[str, float]:
    length = min(config.plan.prompt_tokens + config.plan.trace_tokens, config.sft.max_length)
    tokens = config.sft.batch * length
    count = memory.sft_micro_batches(config, gpus // config.parallel.model_ranks)
    return _training(config, models.student, gpus, tokens, length, count, config.sft.optimizer.distributed)


def _training(
    config: Config, arch: Architecture, gpus: int, tokens: float, context: float, micro_batches: int, distributed: bool,
    updates: int = 1,
) -> dict[str, float]:  # fmt: skip
    """Forward and backward of ``tokens`` over the world, and ``updates`` reductions of the gradients."""
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    data = gpus // (tensor * pipeline)  # all that share weights and tokens: context ranks, too
    # The last stage has the LM head besides its layers, and the others wait for it.
    head, weights = arch.vocabulary * arch.hidden, active_weights(arch)
    bubble = _bubble(config, arch, micro_batches) * (((weights - head) / pipeline + head) * pipeline / weights)
    passes = 3 + _again(config, arch, context)
    rate = gpus * rates(config).bf16_tflops * 1e12 * config.plan.train_efficiency
    compute = passes * forward_flops(arch, tokens, context) / rate
    found = {"compute": compute * bubble, "tensor parallel": _tensor_seconds(config, arch, tokens / data, 4) * bubble}
    found["context parallel"] = _context_seconds(config, arch, tokens / data)
    found["virtual stages"] = 2 * _crossings(config, arch, tokens / data)
    held = max(
        allocation.frozen(arch, Placement(tensor, pipeline, data, stage), arch.vocabulary // tensor * tensor, "fp32").elements
        for stage in {0, pipeline - 1}
    )
    volume = (4 if not distributed else 2 + BYTES[config.precision] / 2) * held  # reduce-scatter fp32 + gather of weights
    found["data parallel"] = updates * 2 * (data - 1) / data * volume / bandwidth(config, gpus)
    return {name: seconds for name, seconds in found.items() if seconds}


def _again(config: Config, arch: Architecture, context: float) -> float:
    """Share of a forward pass that recomputation adds."""
    layers = forward_flops(arch, 1, context) - 2 * arch.vocabulary * arch.hidden
    again = {"none": 0.0, "selective": 6.0 * arch.layers * arch.ffn * arch.hidden, "full": layers}[config.parallel.recompute]
    return again / forward_flops(arch, 1, context)


def _context_seconds(config: Config, arch: Architecture, tokens: float) -> float:
    """Keys and values of ``tokens`` tokens a rank on their way around the ring, in the backward pass with their gradients."""
    ring, width = config.parallel.context - 1, 2 * arch.kv_groups * arch.head_dim // config.parallel.tensor
    size = BYTES[config.precision] * tokens * width * arch.layers / config.parallel.pipeline
    return 3 * ring * size / bandwidth(config, config.parallel.tensor * config.parallel.context)


def _tensor_seconds(config: Config, arch: Architecture, tokens: float, reductions: int) -> float:
    tensor = config.parallel.tensor
    size = BYTES[config.precision] * tokens * arch.hidden * arch.layers / config.parallel.pipeline
    link = rates(config).link_gbs * 1e9 * config.plan.network_efficiency
    return reductions * size * 2 * (tensor - 1) / tensor / link


def _bubble(config: Config, arch: Architecture, micro_batches: int) -> float:
    """Time of a pass of M micro-batches over that of their work: 1 + idle / M.

    With P stages of V chunks a stage idles for ((P - 1) + (V - 1) d) / V micro-batches, where d dummies fill up the last group
    of P: its micro-batches wait for their own first chunks instead of others'.
    """
    pipeline, count = config.parallel.pipeline, max(1, micro_batches)
    virtual = arch.virtual(pipeline, config.parallel.virtual)
    return 1 + (pipeline - 1 + (virtual - 1) * (-count % pipeline)) / virtual / count


def _crossings(config: Config, arch: Architecture, tokens: float) -> float:
    """What virtual stages add to the way of ``tokens`` tokens a rank through the pipeline, in one direction."""
    parallel = config.parallel
    times = arch.virtual(parallel.pipeline, parallel.virtual) - 1
    size = BYTES[config.precision] * tokens * arch.hidden / (parallel.tensor if parallel.sequence else 1)
    each = parallel.tensor * parallel.context
    return times * size / bandwidth(config, each * parallel.pipeline) if times else 0.0


def shares(config: Config, rate: float) -> tuple[float, float]:
    """(scored, trained on): shares of the rollouts at mean reward ``rate``, supposing that rollouts of a group are independent.

    Under the reward mask 1 - r are scored; a group leaves training when nothing in it can move a gradient: all right, or,
    without a KL, all wrong too.
    """
    kl, samples = config.objective.kl, config.rollout.samples_per_prompt
    if not config.objective.skip:
        return (1.0 if kl.enabled else 0.0), 1.0
    all_right, all_wrong = rate**samples, (1 - rate) ** samples
    scored = 0.0
    if kl.enabled:
        scored = {"none": 1.0, "all_wrong_group": all_wrong}.get(kl.mask, 1 - rate)
    if not config.objective.policy.enabled:
        return scored, scored
    if kl.enabled:
        return scored, 1.0 if kl.mask == "none" else 1 - all_right
    return scored, 1 - all_right - all_wrong


def _vold(config: Config, models: Models, gpus: int) -> dict[str, float]:
    plan, vold, student = config.plan, config.vold, models.student
    sampled = vold.prompts_per_step * config.rollout.samples_per_prompt
    engine = decoding.of_rollouts(config, student, models.vision)
    each = -(-sampled // max(1, gpus // engine.tensor))
    prefill = forward_flops(student, each * plan.prompt_tokens, plan.prompt_tokens)
    found = {"generate": decoding.seconds(config, engine, each, plan.response_tokens, config.rollout.max_tokens, prefill)}
    tokens = rollout_tokens(config)
    context = tokens / sampled
    scored, trained = shares(config, plan.reward_rate)
    if models.teacher is not None and scored:
        found["teacher"] = max(
            _scoring(config, arch, held, gpus, scored * tokens, context) for _, arch, held in memory.scorers(config, models)
        )
    data = gpus // config.parallel.model_ranks
    count = max(1, int(trained * tokens / (data * vold.micro_batch_tokens * vold.updates_per_step)))
    train = _training(
        config, student, gpus, trained * tokens, context, count, vold.optimizer.distributed, vold.updates_per_step
    )
    if vold.updates_per_step > 1:  # log-probs of the weights that sampled: one forward pass more
        train["compute"] *= 4 / 3
    found["train"] = sum(train.values())
    found["sync"] = exchange.received(config, student) / bandwidth(config, config.parallel.tensor * config.parallel.pipeline)
    if moved := _moved(config, models, gpus):
        found["offload"] = moved / (rates(config).host_gbs * 1e9 * plan.network_efficiency)
    return found


def _scoring(config: Config, teacher: Architecture, held: Precision, gpus: int, tokens: float, context: float) -> float:
    """The teacher's forward pass over ``tokens`` of a step."""
    tflops, fp8_tflops, parallel = rates(config).bf16_tflops, config.cluster.fp8_tflops, config.parallel
    each = tokens / (gpus // (parallel.tensor * parallel.pipeline))  # context ranks share tokens as data ranks do
    count = max(1, int(each * parallel.context / (config.vold.micro_batch_tokens * config.vold.updates_per_step)))
    compute = forward_flops(teacher, tokens, context) / tflops
    if held.backend == "te" and fp8_tflops is not None:
        layers = 2 * tokens * (active_weights(teacher) - teacher.vocabulary * teacher.hidden)
        compute -= layers * (1 / tflops - 1 / fp8_tflops)
    compute /= gpus * 1e12 * config.plan.forward_efficiency
    seconds = compute + _tensor_seconds(config, teacher, each, 2) + _context_seconds(config, teacher, each) / 3
    if teacher.experts and parallel.expert > 1:
        copies = each / parallel.tensor * teacher.experts_per_token * teacher.layers / parallel.pipeline
        size = 2 * copies * teacher.hidden * BYTES["bf16"] * (parallel.expert - 1) / parallel.expert
        seconds += size / bandwidth(config, parallel.expert)
    return seconds * _bubble(config, teacher, count) + _crossings(config, teacher, each)


def _moved(config: Config, models: Models, gpus: int) -> int:
    """Bytes between the fullest rank and its host in a step."""
    away, parallel = leaving(config), config.parallel
    at = Placement(
        parallel.tensor, parallel.pipeline, gpus // (parallel.tensor * parallel.pipeline), parallel.pipeline - 1,
        expert=parallel.expert, virtual=parallel.virtual,
    )  # fmt: skip
    padded = padded_vocabulary(models.padded_rows, at.tensor)
    total = 0
    if "optimizer" in away:
        total += 2 * allocation.trained(
            models.student, at, padded, config.precision, config.vold.optimizer.distributed
        ).optimizer
    if "engine" in away:
        total += 2 * memory.engine_weights(config, models)
    if models.teacher is not None:
        weights = zip(memory.scorers(config, models), memory.teachers_weights(config, models, at, padded), strict=True)
        total += config.vold.updates_per_step * sum(size for (one, *_), size in weights if one.offload)
    return total


def mask_saving(config: Config, models: Models, gpus: int) -> list[tuple[float, float, float]]:
    """(reward rate, seconds of a step, seconds of a step in which all is scored and trained on)."""
    found = []
    for rate in (0.0, 0.25, 0.5, 0.75, 0.9):
        at = replace(config, plan=replace(config.plan, reward_rate=rate))
        whole = replace(at, objective=replace(at.objective, skip=False))
        found.append((rate, duration(at, models, "vold", gpus).step, duration(whole, models, "vold", gpus).step))
    return found
