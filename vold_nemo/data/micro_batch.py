"""The one structure that student and teacher both read: ids, positions, and which predictions are trained on.

Frame: position ``t`` of a sequence predicts token ``t + 1``.  ``targets[b, t] = ids[b, t + 1]`` and ``predicts[b, t]`` is true
where that token belongs to the response, so a prompt of ``p`` tokens has its first trained prediction at position ``p - 1``.
Sequences are padded on the right: under causal attention padding can never reach a real token, and no mask is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MicroBatch:
    """B sequences padded to S tokens.  ``rows[b]`` is the sequence's index in whatever list it came from."""

    ids: Tensor  # [B, S] int64
    position_ids: Tensor  # [B, S] int64
    targets: Tensor  # [B, S] int64
    predicts: Tensor  # [B, S] bool
    rows: tuple[int, ...]
    lengths: tuple[int, ...]  # real tokens of each sequence
    scored: bool = False

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(
            self.ids.to(device), self.position_ids.to(device), self.targets.to(device), self.predicts.to(device),
            self.rows, self.lengths, self.scored,
        )  # fmt: skip

    def selection(self) -> tuple[Tensor, Tensor]:
        """Where the objective looks, in Megatron's [S, B] order.

        Returns:
            positions: [n] int64, indices into the flattened [S * B] hidden states; sequence: [n] int64, the row b of each.
            A micro-batch without a trained token still selects one position, so that its ranks join every collective;
            its weight is zero (``predicts`` is false there).
        """
        flat = self.predicts.t().reshape(-1)
        positions = flat.nonzero().squeeze(1)
        if positions.numel() == 0:
            positions = torch.zeros(1, dtype=torch.int64, device=flat.device)
        return positions, positions % self.ids.shape[0]

    def predictions(self) -> tuple[Tensor, Tensor, Tensor]:
        """At the positions of :meth:`selection`: targets [n], row b of each [n], and whether it counts, bool [n]."""
        positions, sequence = self.selection()
        return self.targets.t().reshape(-1)[positions], sequence, self.predicts.t().reshape(-1)[positions]

    def by_response(self, values: Tensor) -> dict[int, list[float]]:
        """Values [n] of the selected positions -> those of each sequence's response, in order, by ``rows``."""
        _, sequence, predicts = self.predictions()
        return {row: values[(sequence == b) & predicts].tolist() for b, row in enumerate(self.rows)}

    def by_token(self, values: Mapping[int, Sequence[float]]) -> Tensor:
        """Inverse of :meth:`by_response`: float32 [n], 0 where nothing counts.

        Raises:
            ValueError: a sequence's values are not as many as its response's tokens.
        """
        targets, sequence, predicts = self.predictions()
        out = torch.zeros(len(targets), dtype=torch.float32, device=targets.device)
        for b, row in enumerate(self.rows):
            mine = (sequence == b) & predicts
            if len(values[row]) != int(mine.sum()):
                raise ValueError(f"sequence {row} has {len(values[row])} values for {int(mine.sum())} response tokens")
            out[mine] = torch.as_tensor(values[row], dtype=torch.float32, device=targets.device)
        return out


def collate(
    sequences: Sequence[tuple[Sequence[int], int]],
    *,
    rows: Sequence[int],
    length: int,
    pad_id: int = 0,
    scored: bool = False,
) -> MicroBatch:
    """Pad ``(ids, prompt_length)`` pairs to ``length`` tokens.  No sequences = a dummy of one padding row.

    Raises:
        ValueError: a sequence longer than ``length``, or a prompt of no tokens (nothing would predict its first token).
    """
    count = max(1, len(sequences))
    ids = torch.full((count, length), pad_id, dtype=torch.int64)
    predicts = torch.zeros((count, length), dtype=torch.bool)
    for b, (tokens, prompt_length) in enumerate(sequences):
        if len(tokens) > length:
            raise ValueError(f"sequence {rows[b]} has {len(tokens)} tokens, the micro-batch only {length}")
        if prompt_length < 1:
            raise ValueError(f"sequence {rows[b]} has no prompt: nothing predicts its first token")
        ids[b, : len(tokens)] = torch.as_tensor(tokens, dtype=torch.int64)
        predicts[b, prompt_length - 1 : len(tokens) - 1] = True
    targets = torch.full_like(ids, pad_id)
    targets[:, :-1] = ids[:, 1:]
    positions = torch.arange(length).expand(count, length).contiguous()
    return MicroBatch(
        ids, positions, targets, predicts, tuple(rows), tuple(len(tokens) for tokens, _ in sequences), scored
    )


def fingerprint(batches: Sequence[MicroBatch]) -> str:
    """Hash of everything that model-parallel peers must agree on."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr((tuple(batch.ids.shape), batch.rows, batch.scored)).encode())
        digest.update(batch.ids.cpu().numpy().tobytes())
        digest.update(batch.predicts.cpu().numpy().tobytes())
    return digest.hexdigest()
