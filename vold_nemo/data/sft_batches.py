"""Stage 1 batches: a global batch of traces becomes micro-batches of the data-parallel ranks, packed or padded.

Eq. 4 averaged over the batch: with ``n_i`` response tokens in trace i of the global batch,

    loss = sum_i sum_t w * nll_it,      w = 1 / sum_j n_j

``w`` is one number, known before anything is cut, so neither the number of ranks nor the size or order of micro-batches
changes a gradient: ranks and micro-batches only add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vold_nemo.data.packing import first_fit_decreasing
from vold_nemo.data.traces import SFTExample
from vold_nemo.step import MicroBatch, collate, pack


@dataclass(frozen=True)
class SFTBatch:
    """One data-parallel rank's share of a global batch."""

    micro_batches: list[MicroBatch]  # as many as on every other rank; ``rows`` index the examples
    weight: float  # w of every response token
    response_tokens: int  # of the global batch
    tokens: int  # of the global batch, prompts included
    padded_tokens: int  # of the global batch, dummies included: what the ranks compute
    dummies: int  # micro-batches of the global batch without a trace
    fill: float | None = None  # packed: share of the rows' room for tokens that is used


def sft_batch(
    examples: Sequence[SFTExample],
    indices: Sequence[int],
    *,
    data_rank: int,
    data_ranks: int,
    micro_batch: int,
    pack_length: int | None = None,
    sequence_multiple: int = 1,
    pad_multiple: int = 1,
    micro_batch_multiple: int = 1,
) -> SFTBatch:
    """Cut the global batch ``indices`` and collate the share of ``data_rank``; a pure function, no collectives.

    Without ``pack_length`` traces are sorted by length and cut into micro-batches of ``micro_batch`` rows: a micro-batch holds
    traces of similar length, hence little padding.  With it a micro-batch is one row of whole traces, at most ``pack_length``
    tokens, each padded to ``sequence_multiple``.  Rows end at a multiple of ``pad_multiple``.  Either way the cut knows nothing
    of ranks; micro-batches are dealt to them in turn, longest first, so that they work on similar lengths at the same time.
    Where the count does not divide, the last ranks get a dummy (one padding row, no trained token), so that every rank
    runs the same number, a multiple of ``micro_batch_multiple``.
    """
    if pack_length is None:
        order = sorted(indices, key=lambda i: (-len(examples[i].ids), i))
        cut = [order[start : start + micro_batch] for start in range(0, len(order), micro_batch)]
        widths = [max(len(examples[i].ids) for i in rows) for rows in cut]
    else:
        order = sorted(indices)  # the same bins whatever the order of the batch
        room = [_padded(len(examples[i].ids), sequence_multiple) for i in order]
        bins = first_fit_decreasing(room, pack_length)
        bins.sort(key=lambda members: (-sum(room[m] for m in members), members))
        cut = [[order[m] for m in members] for members in bins]
        widths = [sum(room[m] for m in members) for members in bins]
    dummies = -len(cut) % (data_ranks * micro_batch_multiple)
    planned = [(rows, _padded(width, pad_multiple)) for rows, width in zip(cut, widths, strict=True)]
    planned += [([], _padded(1, pad_multiple))] * dummies

    def collated(rows: list[int], length: int) -> MicroBatch:
        traces = [(examples[i].ids, examples[i].prompt_length) for i in rows]
        if pack_length is None:
            return collate(traces, rows=rows, length=length)
        return pack(traces, rows=rows, multiple=sequence_multiple, length=length)

    trained = sum(examples[i].response_length for i in indices)
    tokens = sum(len(examples[i].ids) for i in indices)
    height = (lambda rows: 1) if pack_length else (lambda rows: max(1, len(rows)))
    return SFTBatch(
        [collated(rows, length) for rows, length in planned[data_rank::data_ranks]], 1.0 / max(1, trained), trained,
        tokens, sum(height(rows) * length for rows, length in planned), dummies,
        fill=tokens / (len(cut) * pack_length) if pack_length else None,
    )  # fmt: skip


def _padded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
