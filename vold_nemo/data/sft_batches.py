"""Stage 1 batches: a global batch of traces becomes micro-batches of the data-parallel ranks.

Eq. 4 averaged over the batch: with ``n_i`` response tokens in trace i of the global batch,

    loss = sum_i sum_t w * nll_it,      w = 1 / sum_j n_j

``w`` is one number, known before anything is cut, so neither the number of ranks nor the size or order of micro-batches
changes a gradient: ranks and micro-batches only add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vold_nemo.data.micro_batch import MicroBatch, collate
from vold_nemo.data.traces import SFTExample


@dataclass(frozen=True)
class SFTBatch:
    """One data-parallel rank's share of a global batch."""

    micro_batches: list[MicroBatch]  # as many as on every other rank; ``rows`` index the examples
    weight: float  # w of every response token
    response_tokens: int  # of the global batch
    tokens: int  # of the global batch, prompts included
    padded_tokens: int  # of the global batch, dummies included: what the ranks compute


def sft_batch(
    examples: Sequence[SFTExample],
    indices: Sequence[int],
    *,
    data_rank: int,
    data_ranks: int,
    micro_batch: int,
    pad_multiple: int = 1,
    pad_id: int = 0,
) -> SFTBatch:
    """Cut the global batch ``indices`` and collate the share of ``data_rank``; a pure function, no collectives.

    Traces are sorted by length and cut into micro-batches of ``micro_batch``, which are dealt to the ranks in turn: a
    micro-batch holds traces of similar length (little padding), and the ranks work on similar lengths at the same time.
    Where the count does not divide, the last ranks get a dummy (one padding row, no trained token), so that every rank
    runs the same number.
    """
    order = sorted(indices, key=lambda i: (-len(examples[i].ids), i))
    cut = [order[start : start + micro_batch] for start in range(0, len(order), micro_batch)]
    cut += [[]] * (-len(cut) % data_ranks)
    lengths = [_padded(max((len(examples[i].ids) for i in rows), default=1), pad_multiple) for rows in cut]
    tokens = sum(examples[i].response_length for i in indices)
    mine = [
        collate([(examples[i].ids, examples[i].prompt_length) for i in rows], rows=rows, length=length, pad_id=pad_id)
        for rows, length in list(zip(cut, lengths, strict=True))[data_rank::data_ranks]
    ]
    padded = sum(max(1, len(rows)) * length for rows, length in zip(cut, lengths, strict=True))
    return SFTBatch(mine, 1.0 / max(1, tokens), tokens, sum(len(examples[i].ids) for i in indices), padded)


def _padded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
