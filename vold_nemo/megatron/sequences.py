"""How the rows of a micro-batch lie on the ranks and in the attention: slices of context parallelism, packed sequences.

Context parallelism of size C cuts every sequence into 2C equal pieces and gives rank c pieces c and 2C - 1 - c (*zig-zag*), so
that under causal attention all ranks have the same work: the order in which megatron-core slices rotary tables and
Transformer Engine's attention expects its queries.  One index slices ids, positions, targets and masks; hidden states of
student and teacher come out sliced as their ids went in, so the objective meets the same tokens on both sides.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from vold_nemo.megatron import training
from vold_nemo.megatron.heads import meet_head
from vold_nemo.megatron.training import ForwardStep, Summed
from vold_nemo.step import MicroBatch
from vold_nemo.step.batches import sent


def zigzag(bounds: Sequence[int], rank: int, size: int) -> Tensor:
    """Positions of a row that context rank ``rank`` of ``size`` holds, int64 [S / size]; sequence after sequence.

    Args:
        bounds: where the row's sequences begin, and its end; each length a multiple of ``2 * size``.

    Raises:
        ValueError: a length that cannot be cut.
    """
    pieces = []
    for start, end in itertools.pairwise(bounds):
        width, rest = divmod(end - start, 2 * size)
        if rest:
            raise ValueError(f"a sequence of {end - start} tokens cannot be cut into 2 x {size} equal pieces")
        for piece in (rank, 2 * size - 1 - rank):
            pieces.append(torch.arange(start + piece * width, start + (piece + 1) * width))
    return torch.cat(pieces)


def on_this_rank(batch: MicroBatch, layout) -> MicroBatch:
    """``batch`` as this context-parallel rank holds it: [B, S / C], with the predictions made there."""
    if layout.context == 1:
        return batch
    return batch.sliced(zigzag(batch.bounds or (0, batch.ids.shape[1]), layout.context_rank, layout.context))


def packed_parameters(bounds: Sequence[int] | None, device: torch.device, context: int = 1):
    """megatron-core's ``PackedSeqParams`` of a packed row (whole lengths, also under context parallelism); None otherwise.

    ``max_seqlen`` is the longest sequence's: megatron-core takes rotary tables as long as the whole row for positions that
    do not restart.

    Over ``context`` ranks Transformer Engine cuts the row at the padded starts and has no default for them with its
    flash-attention backend.  Sequences are padded to what can be cut already, so both are the same: the same tensor, by which
    it knows that nothing lies between them.  Older versions compare values instead, and stall the device in each layer, so
    both are left away where nobody needs them.
    """
    from megatron.core.packed_seq_params import PackedSeqParams

    if bounds is None:
        return None
    starts = sent(torch.tensor(bounds, dtype=torch.int32), device)
    longest = max(end - start for start, end in itertools.pairwise(bounds))
    padded = starts if context > 1 else None
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=starts, cu_seqlens_kv=starts, max_seqlen_q=longest, max_seqlen_kv=longest,
        cu_seqlens_q_padded=padded, cu_seqlens_kv_padded=padded,
    )  # fmt: skip


def run(model, batch: MicroBatch, context: int = 1) -> Tensor:
    """``model`` (a pipeline stage) over ``batch``, which is sliced and on the device: the stage's output.

    Where sequences begin goes where it is read: to fused kernels on the device, else to layers that go by numbers, which would
    have to wait for the device in each layer.
    """
    device = batch.ids.device
    if batch.bounds is not None and not training.unwrap(model).config.apply_rope_fusion:
        device = torch.device("cpu")
    packed = packed_parameters(batch.bounds, device, context)
    return model(batch.ids, batch.position_ids, None, packed_seq_params=packed)


def through(finish: Callable[..., Summed], layout) -> ForwardStep:
    """A step of :func:`training.forward_backward` over micro-batches, numbered in the order they come.

    ``finish(output, batch=, index=)`` gets the last stage's output, and ``batch`` on the device; returns `training.summed`.
    """
    numbers = defaultdict(itertools.count)  # each of a rank's virtual stages runs all of them, in order

    def step(model, batch: MicroBatch):
        batch = batch.to(layout.device)
        return run(model, batch, layout.context), partial(finish, batch=batch, index=next(numbers[id(model)]))

    return step


def predicting(output: Tensor, batch: MicroBatch, layout) -> Tensor:
    """Hidden states [n, H] at the predictions of ``batch``, behind the LM head's collective (:func:`heads.meet_head`)."""
    return meet_head(output, layout).index_select(0, batch.at)
