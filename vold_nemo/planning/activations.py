"""What a forward pass keeps for its backward pass, and what the objective adds on top; bytes on one rank.

Counted tensor by tensor from the layers this project builds (on a GPU with fused activation and rotary embedding): the formulas
are what autograd saves, and the tests hold them against a tracker of every allocation.  With ``n`` tokens of a micro-batch,
``e`` bytes an element, ``T`` the tensor-parallel size, H hidden, A = heads·d, K = key-value heads·d, F feed-forward:

    norm        fp32 copy of its input (the input itself in fp32) 4nH, normalised input 4nH, 1/rms 4n, its output enH
                Transformer Engine: input enH, output enH, 1/rms 4n
    attention   qkv e·n(A+2K)/T (Transformer Engine: a copy of v, e·nK/T), rotated q and k e·n(A+K)/T, output e·nA/T,
                log-sum-exp 4n·heads/T, rotary tables 4·s·d·e (Transformer Engine: none)
    qk norms    as a norm without its output: 8nA/T + 8nK/T (Transformer Engine: they add e·n(A+K)/T)
    MLP         gate and up 2F, gate copied F, silu(gate) F, product F:  5·e·nF/T  (fused: gate and up, product: 3·e·nF/T)

Under sequence parallelism n is n/T for the norms, and the gathered input is made again in the backward pass, not kept.
Recomputation keeps less of a layer and holds the rest while that one layer is in its backward pass: ``selective`` all but the
MLP's part, ``full`` its input e·nH and the rotary angles.  Under context parallelism n and s are a rank's slice, as
Transformer Engine's ring leaves them (on a CPU keys and values are kept whole).
"""

from __future__ import annotations

from dataclasses import dataclass

from vold_nemo.config import ParallelConfig
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.planning.allocation import FP32, Placement

# The objective's own, said again because a plan is made without torch; a test keeps them equal.
_CPU_BLOCK, _GPU_BLOCK = 1 << 20, 64 << 20  # objective/softmax.py: logits that one element-wise pass works on
_HEAD_ROWS = 8192  # objective/head.py: head rows converted, or summed into a gradient, at a time


@dataclass(frozen=True)
class Numerics:
    """How layers run: bytes an element, and with Transformer Engine's fused norms (``cuda``) or plain torch's (a CPU)."""

    size: int
    cuda: bool


@dataclass(frozen=True)
class Tokens:
    """Shape of one micro-batch: ``count`` = sequences x ``length`` tokens, padding included."""

    count: int
    length: int


def _norm(tokens: int, width: int, rows: int, how: Numerics, output: bool = True) -> int:
    """Saved by RMSNorm over ``rows`` rows a token of ``width`` elements altogether."""
    if how.cuda:
        return tokens * (width * how.size * (2 if output else 1) + FP32 * rows)
    return tokens * (2 * FP32 * width + FP32 * rows + (how.size * width if output else 0))


def _norm_tokens(tokens: Tokens, parallel: ParallelConfig) -> int:
    """Tokens that a rank norms, and hands from layer to layer."""
    return tokens.count // parallel.tensor if parallel.sequence else tokens.count


def layer(arch: Architecture, tokens: Tokens, parallel: ParallelConfig, how: Numerics) -> int:
    """Saved by one decoder layer where nothing is recomputed."""
    n, e, tensor = tokens.count, how.size, parallel.tensor
    heads, groups = arch.heads // tensor, max(1, arch.kv_groups // tensor)
    query, key, ffn = heads * arch.head_dim, groups * arch.head_dim, arch.ffn // tensor
    total = 2 * _norm(_norm_tokens(tokens, parallel), arch.hidden, 1, how)
    qkv = key if how.cuda else query + 2 * key
    total += e * n * qkv + e * n * (query + key) + e * n * query + FP32 * n * heads
    total += 0 if how.cuda else 4 * e * tokens.length * arch.head_dim
    if arch.qk_norm:
        total += _norm(n, query, heads, how, output=False) + _norm(n, key, groups, how, output=False)
        if how.size == FP32 and not how.cuda:  # in fp32 the key norm's input is the qkv tensor that is kept anyway
            total -= FP32 * n * key
    return total + _feed_forward(n, ffn, how)


def _feed_forward(tokens: int, ffn: int, how: Numerics) -> int:
    return (3 if how.cuda else 5) * how.size * tokens * ffn


def recomputed(arch: Architecture, tokens: Tokens, parallel: ParallelConfig, how: Numerics) -> int:
    """What ``parallel.recompute`` does not keep of one layer, and makes again for its backward pass."""
    if parallel.recompute == "selective":
        return _feed_forward(tokens.count, arch.ffn // parallel.tensor, how)
    if parallel.recompute == "full":
        return layer(arch, tokens, parallel, how) - how.size * _norm_tokens(tokens, parallel) * arch.hidden
    return 0


def saved(arch: Architecture, at: Placement, tokens: Tokens, parallel: ParallelConfig, how: Numerics) -> int:
    """Saved by the stage of ``at`` for one micro-batch; with virtual stages by the one at an end of the model."""
    return chunk(arch, at, tokens, parallel, how) + ends(arch, at, tokens, parallel, how)


def chunk(arch: Architecture, at: Placement, tokens: Tokens, parallel: ParallelConfig, how: Numerics) -> int:
    """Saved by the stage, or each of its virtual stages, for one micro-batch: layers, ids and rotary angles."""
    kept = layer(arch, tokens, parallel, how) - recomputed(arch, tokens, parallel, how)
    layers = arch.stages(at.pipeline)[at.stage] // parallel.virtual
    return layers * kept + 8 * tokens.count + FP32 * tokens.length * arch.head_dim


def ends(arch: Architecture, at: Placement, tokens: Tokens, parallel: ParallelConfig, how: Numerics) -> int:
    """The embedding's output before it is split along the sequence, on the first stage; the final norm, on the last."""
    total = 0
    if at.is_first and parallel.sequence:
        total += how.size * tokens.count * arch.hidden
    if at.is_last:
        total += _norm(_norm_tokens(tokens, parallel), arch.hidden, 1, how)
    return total


def layer_backward(arch: Architecture, tokens: Tokens, tensor: int, how: Numerics) -> int:
    """Most that one layer's backward pass adds: each node frees what it kept, so two gradients of the gated MLP, 2F/T wide.

    Transformer Engine adds a weight's gradient to the buffer itself and hands autograd one that nobody reads, the same for all
    weights of a shape.
    """
    query, key = arch.heads * arch.head_dim, max(tensor, arch.kv_groups) * arch.head_dim
    unread = arch.hidden * (2 * query + 2 * key + 3 * arch.ffn) // tensor if how.cuda else 0
    return how.size * (2 * tokens.count * arch.ffn // tensor + unread)


def embedding_backward(arch: Architecture, rows: int, how: Numerics) -> int:
    """The embedding's dense gradient [v, H]; the LM head's goes into the gradient buffer while the loss is formed."""
    return how.size * rows * arch.hidden


def in_flight(pipeline: int, stage: int, micro_batches: int, virtual: int = 1) -> int:
    """Micro-batches whose activations stage ``stage`` holds at once under 1F1B; of each virtual stage its own.

    Interleaved (Narayanan et al. 2021, arXiv 2104.04473; megatron-core's ``get_pp_rank_microbatches``): forward passes of a
    chunk before the first backward pass, 2 (P - stage - 1) + (V - 1) P, and one more.
    """
    if virtual == 1:
        return min(pipeline - stage, micro_batches)
    return min(2 * (pipeline - stage - 1) + (virtual - 1) * pipeline + 1, virtual * micro_batches)


def kept(arch: Architecture, at: Placement, tokens: Tokens, parallel: ParallelConfig, how: Numerics, micro_batches: int) -> int:
    """Saved by all passes of the stage of ``at`` that are in flight at once; the embedding's chunk, or the last one, has a turn
    in each group of P."""
    flying = in_flight(at.pipeline, at.stage, micro_batches, parallel.virtual)
    turns = max(1, flying - (parallel.virtual - 1) * at.pipeline)
    return flying * chunk(arch, at, tokens, parallel, how) + turns * ends(arch, at, tokens, parallel, how)


@dataclass(frozen=True)
class Objective:
    """Working set of the loss on the last stage.

    ``kept`` lives on into the backward pass (∂hidden [m, H] and the chosen rows of hidden); ``peak`` is the most that the loss
    holds while it runs, ``kept`` included.
    """

    kept: int
    peak: int


@dataclass(frozen=True)
class Heads:
    """The LM heads that the loss meets: ``rows`` (v) of each on this rank, and their widths; no teacher: 0."""

    rows: int
    hidden: int
    teacher_hidden: int = 0


def objective(heads: Heads, tokens: int, chunk: int, how: Numerics, *, gathered: bool, exact: bool) -> Objective:
    """The chunked loss over ``tokens`` predicted tokens; ``exact``: with a KL that sums over the vocabulary.

    Two [c, v] fp32 logit buffers (one without a teacher), ∂hidden, the chosen rows of hidden, the all-gathered hidden under
    sequence parallelism, and the teacher's chosen rows; ∂head is added up in the gradient buffer.  Besides, the temporaries of
    an element-wise pass (two where a KL sums over the vocabulary, else one), in blocks of rows of which two live at once; or,
    with bf16 weights, those of a matrix product: on a GPU the bf16 copy of a chunk's ∂logits, on a CPU at most 8192 head rows
    and what they meet, converted.
    """
    rows, hidden, teacher_hidden = heads.rows, heads.hidden, heads.teacher_hidden
    e, c = how.size, min(chunk, tokens)
    selected = e * tokens * hidden
    held = 2 * selected + (selected if gathered else 0) + e * tokens * teacher_hidden
    chunk_bytes = FP32 * c * rows
    temporaries, converted = 2 if exact else 1, 0
    passes = temporaries * min(chunk_bytes, 2 * (_GPU_BLOCK if how.cuda else _CPU_BLOCK))
    if e != FP32:
        block, wide = min(_HEAD_ROWS, rows), max(hidden, teacher_hidden)
        converted = e * c * rows if how.cuda else FP32 * (block * (wide + c) + c * wide)
    logits = chunk_bytes * (2 if teacher_hidden else 1)
    return Objective(held, held + logits + max(passes, converted))


def decoding(arch: Architecture, rows: int, length: int, size: int) -> int:
    """Key-value cache of the transformers engine and one step's logits, for ``rows`` sequences of ``length`` tokens.

    The cache grows by half, so its buffer is up to 1.5 times as long as the text in it, and while it grows one layer's keys
    exist twice.  Logits: [rows, V] in the model's type, in fp32, as log-probs, and two float64 copies while a token is drawn.
    """
    each = 2 * arch.kv_groups * arch.head_dim * size
    cache = int(1.5 * length) * rows * each * arch.layers + rows * length * each // 2
    return cache + rows * arch.vocabulary * (size + 2 * FP32 + 2 * 8)
