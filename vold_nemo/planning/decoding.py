"""The two engines that decode, by memory and by time: transformers (a batch at a time) and vLLM (a stream).

    transformers    a key-value cache for ``batch`` sequences; a step launches every layer; a batch lasts as long as its longest
                    answer, and reads weights and cache once a step
    vLLM            weights split over ``tensor`` GPUs; of each GPU's memory it takes ``share``, and what weights and reserve
                    leave of that is cache; as many sequences decode at a time as the cache or ``batch`` allows; no launches
                    (CUDA graphs), no waiting for the longest; two all-reduces a layer where it is split
"""

from __future__ import annotations

from dataclasses import dataclass

from vold_nemo.config import Config
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.planning import activations
from vold_nemo.planning.allocation import BYTES, parameter_count
from vold_nemo.planning.rates import rates

GIB = 1 << 30


@dataclass(frozen=True)
class Decoder:
    """One engine.  ``share`` None: transformers, which takes what it needs.  ``weights``: elements read in a step."""

    arch: Architecture
    weights: int
    size: int  # bytes an element
    batch: int
    tensor: int = 1
    share: float | None = None
    vision: int = 0  # elements that it holds besides
    given: int | None = None  # bytes of vLLM's cache, where they are named
    besides: int = 0  # bytes that vLLM counts into its share beside weights and cache

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights on one GPU."""
        return self.size * (self.weights + self.vision) // self.tensor

    def room(self, capacity: int | None) -> int | None:
        """Bytes of vLLM's cache on one GPU; None where nothing says what it may take."""
        if self.given is not None or self.share is None or capacity is None:
            return self.given
        return int(self.share * capacity) - self.weight_bytes - self.besides

    def cache_bytes(self, tokens: float) -> float:
        """Keys and values of ``tokens`` tokens on one GPU; fewer key-value heads than GPUs are repeated."""
        groups = -(-self.arch.kv_groups // self.tensor)
        return tokens * 2 * self.arch.layers * groups * self.arch.head_dim * self.size


def of_traces(config: Config, trace_writer: Architecture) -> Decoder:
    size, vllm = BYTES[trace_precision(config)], config.traces.engine == "vllm"
    return Decoder(
        trace_writer, parameter_count(trace_writer), size, config.traces.batch, config.traces.tensor_parallel if vllm else 1,
        config.traces.memory_share if vllm else None, besides=int(config.plan.reserve_gib * GIB),
    )  # fmt: skip


def of_rollouts(config: Config, student: Architecture, vision: int = 0) -> Decoder:
    vllm, batch = config.rollout.vllm, config.rollout.batch
    weights, size = parameter_count(student), BYTES[config.precision]
    if config.rollout.engine != "vllm":
        return Decoder(student, weights, size, batch, vision=vision)
    tensor = vllm.tensor_parallel  # ranks in a row bring their batches together
    return Decoder(student, weights, size, batch * tensor, tensor, vllm.memory_share, vision, vllm.cache_bytes)


def trace_precision(config: Config) -> str:
    """In which the rollout engine writes the teacher's traces: FP8 is the training engine's alone."""
    return {"auto": config.precision, "fp8": "bf16"}.get(config.teacher.precision, config.teacher.precision)


def memory(decoder: Decoder, rows: int, length: int, capacity: int | None, reserve: dict[str, int]) -> dict[str, int]:
    """Bytes of an engine that has the GPU to itself, for ``rows`` sequences of at most ``length`` tokens."""
    engine = decoder.weight_bytes
    if decoder.share is None:
        cache = activations.decoding(decoder.arch, min(rows, decoder.batch), length, decoder.size)
        return {"engine": engine, "cache": cache, **reserve}
    longest = int(decoder.cache_bytes(length))
    left = decoder.room(capacity)
    if left is None or capacity is None:
        return {"engine": engine, "cache": longest * min(rows, decoder.batch), **reserve}
    if left >= longest:
        return {"engine": engine, "cache": left, **reserve}
    # vLLM refuses to start where its share does not hold one sequence: what it may not touch counts as taken.
    beyond = capacity - int(decoder.share * capacity)
    return {"engine": engine, "cache": longest, "reserve": sum(reserve.values()) + beyond}


def seconds(config: Config, decoder: Decoder, sequences: int, tokens: float, limit: int, prefill: float) -> float:
    """One engine answers ``sequences`` prompts with ``tokens`` tokens on average; ``prefill``: FLOPs of all prompts."""
    plan, speed = config.plan, rates(config)
    mean = min(tokens, limit)
    rate = decoder.tensor * speed.bf16_tflops * 1e12 * plan.forward_efficiency
    rows = min(decoder.batch, sequences)
    if decoder.share is not None:
        gib = config.cluster.memory_gib
        left = decoder.room(int(gib * GIB) if gib is not None else None)
        if left is not None:
            rows = max(1, min(rows, int(left / decoder.cache_bytes(plan.prompt_tokens + mean))))
    cache = decoder.cache_bytes(rows * (plan.prompt_tokens + mean / 2))
    reading = (decoder.size * decoder.weights / decoder.tensor + cache) / (speed.memory_gbs * 1e9 * plan.memory_efficiency)
    if decoder.share is None:
        step = max(reading, decoder.arch.layers * plan.layer_ms / 1e3)
        steps = -(-sequences // decoder.batch) * min(limit, plan.straggler * mean)
    else:
        volume = 2 * rows * decoder.arch.hidden * decoder.size * decoder.arch.layers * 2 * (decoder.tensor - 1) / decoder.tensor
        step = max(reading, 2 * rows * active_weights(decoder.arch) / rate)
        step += volume / (speed.link_gbs * 1e9 * plan.network_efficiency)
        steps = sequences * mean / rows
    return steps * step + prefill / rate


def active_weights(arch: Architecture) -> int:
    """Weights that every token is multiplied with, the LM head included."""
    heads = arch.heads * arch.head_dim
    ffn = arch.experts_per_token * arch.expert_ffn + arch.experts / 3 if arch.experts else arch.ffn  # with the router
    layer = arch.hidden * (2 * heads + 2 * arch.kv_groups * arch.head_dim) + int(3 * ffn * arch.hidden)
    return arch.layers * layer + arch.vocabulary * arch.hidden
