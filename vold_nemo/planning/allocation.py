"""What megatron-core allocates before the first step, to the byte: parameters, gradients, optimizer state of one rank.

No torch.  The tests build the same models on 1, 2 and 4 ranks and compare; sizes follow from

* ``GPTModel`` with the layers of :mod:`vold_nemo.megatron.layers`, in ``named_parameters`` order (:func:`stage_parameters`);
* ``distributed/param_and_grad_buffer.py`` of megatron-core: one fp32 gradient buffer, and under the distributed
  optimizer one parameter buffer, both padded to 64 elements a parameter and lcm(data, 128) a bucket (:func:`bucket_ranges`);
* ``optimizer/optimizer.py`` and ``distrib_optimizer.py``: fp32 master weights where the model is bf16, two fp32 moments.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from vold_nemo.checkpoint.shares import owners
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.megatron.precision import linear_shapes, weight_bytes

FP32 = 4
BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Placement:
    """Where a rank stands: its pipeline stage and data-parallel number in a layout.

    ``data`` counts the ranks that hold the same weights: context-parallel ranks are among them.
    """

    tensor: int
    pipeline: int
    data: int
    stage: int
    data_rank: int = 0
    expert: int = 1
    virtual: int = 1  # chunks of a trained model's stage, where its layers divide (`Architecture.virtual`)

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.pipeline - 1


@dataclass(frozen=True)
class Parameter:
    name: str
    numel: int
    tied: bool = False  # one of the two copies of a tied embedding, on the first and the last of several stages


@dataclass(frozen=True)
class Allocation:
    """Bytes on one rank.  ``elements``: parameters of this rank's stage and shard."""

    elements: int
    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer


def layer_parameters(arch: Architecture, tensor: int, expert: int = 1) -> list[tuple[str, int]]:
    """(name, elements) of one decoder layer on one tensor-parallel rank.

    Column-parallel rows (query, key, value; gate and up) and row-parallel columns (output projection, down) are divided by
    ``tensor``; norms are on every rank.  With fewer key-value heads than ranks the qkv rows are still divided evenly.  A rank
    has 1 / ``expert`` of the experts, each of them whole (expert tensor parallel size 1).
    """
    hidden, heads = arch.hidden, arch.heads * arch.head_dim
    qkv = (heads + 2 * arch.kv_groups * arch.head_dim) // tensor
    found = [
        ("input_layernorm.weight", hidden),
        ("self_attention.linear_proj.weight", hidden * heads // tensor),
        ("self_attention.linear_qkv.weight", qkv * hidden),
    ]
    if arch.qkv_bias:
        found.append(("self_attention.linear_qkv.bias", qkv))
    if arch.qk_norm:
        found += [("self_attention.q_layernorm.weight", arch.head_dim), ("self_attention.k_layernorm.weight", arch.head_dim)]
    found.append(("pre_mlp_layernorm.weight", hidden))
    if arch.experts:
        found.append(("mlp.router.weight", arch.experts * hidden))
        for number in range(arch.experts // expert):
            name = f"mlp.experts.local_experts.{number}"
            found.append((f"{name}.linear_fc1.weight", 2 * arch.expert_ffn * hidden))
            found.append((f"{name}.linear_fc2.weight", hidden * arch.expert_ffn))
        return found
    return [
        *found,
        ("mlp.linear_fc1.weight", 2 * arch.ffn // tensor * hidden),
        ("mlp.linear_fc2.weight", hidden * arch.ffn // tensor),
    ]


@functools.lru_cache(4096)
def stage_parameters(arch: Architecture, at: Placement, padded: int) -> list[Parameter]:
    """Parameters of one rank in ``named_parameters`` order.

    The first stage holds ``padded / tensor`` embedding rows, the last one the final norm and the LM head: rows of its own,
    none (tied, one stage), or a second copy of the embedding (tied, several stages).
    """
    rows = padded // at.tensor * arch.hidden
    copies = arch.tied and at.pipeline > 1
    found = [Parameter("embedding.word_embeddings.weight", rows, copies)] if at.is_first else []
    per_layer = layer_parameters(arch, at.tensor, at.expert)
    for layer in range(arch.stages(at.pipeline)[at.stage]):
        found += [Parameter(f"decoder.layers.{layer}.{name}", size) for name, size in per_layer]
    if at.is_last:
        found.append(Parameter("decoder.final_layernorm.weight", arch.hidden))
        if copies or not arch.tied:
            found.append(Parameter("output_layer.weight", rows, copies))
    return found


@functools.lru_cache(4096)
def parameter_count(arch: Architecture) -> int:
    """Parameters of the language backbone."""
    return sum(parameter.numel for parameter in stage_parameters(arch, Placement(1, 1, 1, 0), arch.vocabulary))


def bucket_ranges(parameters: list[Parameter], data: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(buckets, parameters) as element ranges of the distributed optimizer's buffer, which runs from the last parameter back.

    ``_ParamAndGradBuffer.__init__``: a parameter starts at a multiple of 64, a bucket ends at a multiple of lcm(data, 128);
    without overlapped reductions there is one bucket, but each copy of a tied embedding has its own.
    """
    step = math.lcm(data, 128)
    buckets: list[tuple[int, int]] = []
    ranges: list[tuple[int, int]] = []
    start = end = first = 0
    filled = False
    for parameter in reversed(parameters):
        start = -(-start // 64) * 64
        if parameter.tied and filled:
            buckets.append((first, -(-start // step) * step))
            start = first = buckets[-1][1]
        end = start + parameter.numel
        ranges.append((start, end))
        filled = True
        if parameter.tied:
            buckets.append((first, -(-end // step) * step))
            end = first = buckets[-1][1]
            filled = False
        start = end
    if filled:
        buckets.append((first, -(-end // step) * step))
    return buckets, ranges


@functools.lru_cache(4096)
def trained(arch: Architecture, at: Placement, padded: int, precision: str, distributed: bool) -> Allocation:
    """A rank of a model that is trained.

    Plain: parameters e·P, gradients 4·P, optimizer (4 + 8)·P for bf16 and 8·P for fp32, where the weights are their own
    masters.  Distributed: both buffers with their padding, optimizer state of this rank's share of each bucket.  AdamW's
    counters are host scalars and not counted.
    """
    parameters = stage_parameters(arch, at, padded)
    elements = sum(parameter.numel for parameter in parameters)
    size, state = BYTES[precision], 8 if precision == "fp32" else 12
    if not distributed:
        return Allocation(elements, size * elements, FP32 * elements, state * elements)
    held = length = 0
    for buffer in _buffers(arch, at, parameters):
        buckets, ranges = bucket_ranges(buffer, at.data)
        held += sum(_overlap(buckets, ranges, at))
        length += buckets[-1][1]
    return Allocation(elements, size * length, FP32 * length, state * held)


def checkpoint_copy(arch: Architecture, at: Placement, padded: int, precision: str, distributed: bool) -> int:
    """Host memory of a checkpoint that a thread writes (``checkpoint.asynchronous``), from when it is copied until written.

    These are the rank's own pieces of weights and optimizer state, and nothing stands beside them.  Of those who hold the
    same, data-parallel ranks share weights out (``checkpoint/shares.py``), and with them the state of a plain optimizer; of
    what tensor-parallel ranks hold alike, the first has it.  A distributed optimizer's share (parameters among it, in fp32)
    is each rank's own.
    """
    parameters = stage_parameters(arch, at, padded)
    ours = [not (p.tied and at.is_last) for p in parameters]  # a tied head is the first stage's to write
    owned = _owned(tuple(p.numel for p, own in zip(parameters, ours, strict=True) if own), at.data)[at.data_rank]
    if not distributed:
        return (BYTES[precision] + (12 if precision == "bf16" else 8)) * owned
    held = 0
    for buffer in _buffers(arch, at, parameters):
        buckets, ranges = bucket_ranges(buffer, at.data)
        own = [one for one, p in zip(ranges, reversed(buffer), strict=True) if not (p.tied and at.is_last)]
        held += sum(_overlap(buckets, own, at))
    return BYTES[precision] * owned + 12 * held


def _buffers(arch: Architecture, at: Placement, parameters: list[Parameter]) -> Iterator[list[Parameter]]:
    """``parameters`` of a stage as the distributed optimizer divides them: a buffer of its own for each virtual stage."""
    virtual = arch.virtual(at.pipeline, at.virtual)
    each = arch.stages(at.pipeline)[at.stage] // virtual * len(layer_parameters(arch, at.tensor, at.expert))
    ends = [int(at.is_first) + number * each for number in range(1, virtual)]  # the embedding stands before the layers
    for start, end in itertools.pairwise([0, *ends, len(parameters)]):
        yield parameters[start:end]


@functools.lru_cache(256)
def _owned(sizes: tuple[int, ...], ranks: int) -> list[int]:
    """What each of ``ranks`` writes of parameters that all of them hold."""
    found = [0] * ranks
    for size, owner in zip(sizes, owners(sizes, ranks), strict=True):
        found[owner] += size
    return found


def _overlap(buckets: list[tuple[int, int]], ranges: list[tuple[int, int]], at: Placement) -> Iterator[int]:
    for first, last in buckets:
        share = (last - first) // at.data
        low = first + share * at.data_rank
        for start, end in ranges:
            yield max(0, min(end, low + share) - max(start, low))


@functools.lru_cache(4096)
def frozen(arch: Architecture, at: Placement, padded: int, precision: str, recipe: str | None = None) -> Allocation:
    """A rank of the teacher: weights alone.

    With an FP8 ``recipe`` (``precision`` fp8) linear layers take a byte a weight and their scales, the rest is bf16.
    """
    parameters = stage_parameters(arch, at, padded)
    elements = sum(parameter.numel for parameter in parameters)
    if recipe is None:
        return Allocation(elements, BYTES[precision] * elements, 0, 0)
    held = {kind: weight_bytes(*shape, recipe) for kind, shape in linear_shapes(arch, at.tensor).items()}
    size = sum(held.get(".".join(p.name.split(".")[-2:]), BYTES["bf16"] * p.numel) for p in parameters)
    return Allocation(elements, size, 0, 0)
