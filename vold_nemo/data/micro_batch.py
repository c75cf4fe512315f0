"""The one structure that student and teacher both read: ids, positions, and which predictions are trained on.

Frame: position ``t`` of a row predicts token ``t + 1``.  ``targets[b, t] = ids[b, t + 1]`` and ``predicts[b, t]`` is true
where that token belongs to the response, so a prompt of ``p`` tokens has its first trained prediction at position ``p - 1``.
Sequences are padded on the right: under causal attention padding can never reach a real token, and no mask is needed.

A row holds one sequence, or several one after the other (*packed*, :func:`pack`).  Under context parallelism every tensor
below is sliced along S by the same index (:func:`vold_nemo.megatron.sequences.on_this_rank`), so nothing here counts on a row
being whole: ``sequence`` and ``position_ids`` travel with their tokens and say where in its response each one stands.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class MicroBatch:
    """B rows of S tokens; J sequences in them.  ``rows[j]`` is sequence j's index in whatever list it came from."""

    ids: Tensor  # [B, S] int64
    position_ids: Tensor  # [B, S] int64, from 0 in every sequence
    targets: Tensor  # [B, S] int64
    predicts: Tensor  # [B, S] bool
    sequence: Tensor  # [B, S] int64: the j that a token (or the padding behind it) belongs to
    rows: tuple[int, ...]
    lengths: tuple[int, ...]  # [J] real tokens of each whole sequence
    prompts: tuple[int, ...]  # [J] prompt tokens of each
    scored: bool = False
    teacher: int = 0  # whose, if it is scored
    bounds: tuple[int, ...] | None = None  # packed: where in the whole row each sequence begins, and the row's end

    def with_tensors(self, change) -> MicroBatch:
        """A copy whose every [B, S] tensor has gone through ``change``: what one of them suffers, all do."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def to(self, device: torch.device) -> MicroBatch:
        return self.with_tensors(lambda tensor: tensor.to(device))

    def selection(self) -> tuple[Tensor, Tensor]:
        """Where the objective looks, in Megatron's [S, B] order.

        Returns:
            positions: [n] int64, indices into the flattened [S * B] hidden states; sequence: [n] int64, the j of each.
            A micro-batch without a trained token still selects one position, so that its ranks join every collective;
            its weight is zero (``predicts`` is false there).
        """
        positions = _flat(self.predicts).nonzero().squeeze(1)
        if positions.numel() == 0:
            positions = torch.zeros(1, dtype=torch.int64, device=self.ids.device)
        return positions, _flat(self.sequence)[positions]

    def predictions(self) -> tuple[Tensor, Tensor, Tensor]:
        """At the positions of :meth:`selection`: targets [n], sequence j of each [n], and whether it counts, bool [n]."""
        positions, sequence = self.selection()
        return _flat(self.targets)[positions], sequence, _flat(self.predicts)[positions]

    def places(self) -> Tensor:
        """Where in its sequence each of the selected positions stands, int64 [n]."""
        return _flat(self.position_ids)[self.selection()[0]]

    def by_response(self, values: Tensor) -> dict[int, list[float]]:
        """Values [n] of the selected positions -> those of each sequence's whole response, by ``rows``.

        A token of the response that another context-parallel rank holds gives 0: the ranks' lists add up to the whole.
        """
        (_, sequence, predicts), within = self.predictions(), self.places()
        found = {}
        for j, row in enumerate(self.rows):
            mine = (sequence == j) & predicts
            whole = values.new_zeros(self.lengths[j] - self.prompts[j])
            whole[within[mine] - (self.prompts[j] - 1)] = values[mine]
            found[row] = whole.tolist()
        return found

    def by_token(self, values: Mapping[int, Sequence[float]]) -> Tensor:
        """From values of whole responses to those of the selected positions: float32 [n], 0 where nothing counts.

        Raises:
            ValueError: a sequence's values are not as many as its response's tokens.
        """
        (_, sequence, predicts), within = self.predictions(), self.places()
        out = torch.zeros(len(within), dtype=torch.float32, device=within.device)
        for j, row in enumerate(self.rows):
            count = self.lengths[j] - self.prompts[j]
            if len(values[row]) != count:
                raise ValueError(f"sequence {row} has {len(values[row])} values for {count} response tokens")
            mine = (sequence == j) & predicts
            whole = torch.as_tensor(values[row], dtype=torch.float32, device=within.device)
            out[mine] = whole[within[mine] - (self.prompts[j] - 1)]
        return out


def _flat(tensor: Tensor) -> Tensor:
    """[B, S] -> [S * B], Megatron's order."""
    return tensor.t().reshape(-1)


def collate(
    sequences: Sequence[tuple[Sequence[int], int]],
    *,
    rows: Sequence[int],
    length: int,
    pad_id: int = 0,
    scored: bool = False,
    teacher: int = 0,
) -> MicroBatch:
    """Pad ``(ids, prompt_length)`` pairs to ``length`` tokens, one a row.  No sequences = a dummy of one padding row.

    Raises:
        ValueError: a sequence longer than ``length``, or a prompt of no tokens (nothing would predict its first token).
    """
    places = [(b, 0, length) for b in range(len(sequences))]
    return replace(_laid_out(sequences, places, max(1, len(sequences)), length, rows, pad_id, scored), teacher=teacher)


def pack(
    sequences: Sequence[tuple[Sequence[int], int]], *, rows: Sequence[int], multiple: int, length: int, pad_id: int = 0
) -> MicroBatch:
    """One row of ``length`` tokens with all ``(ids, prompt_length)`` pairs in it, each padded to a multiple of ``multiple``.

    Padding belongs to the sequence in front of it; the last one takes what is left of the row.  No sequences = a dummy.

    Raises:
        ValueError: as :func:`collate`, or the row is too short for its sequences.
    """
    starts = [0]
    for tokens, _ in sequences[:-1]:
        starts.append(starts[-1] - (-len(tokens) // multiple) * multiple)
    bounds = (*starts, length)
    places = [(0, start, end - start) for start, end in itertools.pairwise(bounds)][: len(sequences)]
    return replace(_laid_out(sequences, places, 1, length, rows, pad_id, False), bounds=bounds)


def _laid_out(sequences, places, count: int, length: int, rows, pad_id: int, scored: bool) -> MicroBatch:
    """``places[j]``: row, first position and room of sequence j, in ``count`` rows of ``length`` tokens."""
    ids = torch.full((count, length), pad_id, dtype=torch.int64)
    predicts = torch.zeros((count, length), dtype=torch.bool)
    positions = torch.arange(length).repeat(count, 1)
    sequence = torch.zeros((count, length), dtype=torch.int64)
    for j, ((tokens, prompt), (b, start, room)) in enumerate(zip(sequences, places, strict=True)):
        if len(tokens) > room:
            raise ValueError(f"sequence {rows[j]} has {len(tokens)} tokens, its place in the micro-batch only {room}")
        if prompt < 1:
            raise ValueError(f"sequence {rows[j]} has no prompt: nothing predicts its first token")
        ids[b, start : start + len(tokens)] = torch.as_tensor(tokens, dtype=torch.int64)
        predicts[b, start + prompt - 1 : start + len(tokens) - 1] = True
        positions[b, start : start + room] = torch.arange(room)
        sequence[b, start : start + room] = j
    targets = torch.full_like(ids, pad_id)
    targets[:, :-1] = ids[:, 1:]
    return MicroBatch(
        ids, positions, targets, predicts, sequence, tuple(rows), tuple(len(tokens) for tokens, _ in sequences),
        tuple(prompt for _, prompt in sequences), scored,
    )  # fmt: skip


def fingerprint(batches: Sequence[MicroBatch]) -> str:
    """Hash of everything that model-parallel peers must agree on."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr((tuple(batch.ids.shape), batch.rows, batch.scored, batch.teacher, batch.bounds)).encode())
        digest.update(batch.ids.cpu().numpy().tobytes())
        digest.update(batch.predicts.cpu().numpy().tobytes())
    return digest.hexdigest()
