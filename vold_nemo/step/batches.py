"""Micro-batches: what student and teacher both read, and where in the table each of their predictions belongs.

Frame: position ``t`` of a row predicts token ``t + 1``; a prompt of ``p`` tokens has its first prediction that counts at
position ``p - 1``.  Sequences are padded on the right: under causal attention padding can never reach a real token, and no
mask is needed.  A row holds one sequence, or several one after the other (*packed*, :func:`pack`).

What is predicted is listed once, flat, when a batch is made: the objective, the table and the ranks of context parallelism
(:meth:`MicroBatch.sliced`) all speak of these n predictions, in Megatron's [S, B] order.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vold_nemo.objective import TokenBatch
from vold_nemo.step.plan import PlannedBatch
from vold_nemo.step.table import Step

Ids = Sequence[int] | Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, which nobody waits for: from locked pages a GPU fetches it when its turn comes."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass
class MicroBatch:
    """B rows of S tokens with J sequences in them, and n predictions of response tokens.

    A batch without any (a dummy, a context rank whose slices are all prompt) still has one, so that its ranks join every
    collective; it does not count.
    """

    ids: Tensor  # [B, S] int64
    position_ids: Tensor  # [B, S] int64, from 0 in every sequence
    predictions: Tensor  # [6, n] int64: at, targets, sequence, place, row, token
    counts: Tensor  # [n] bool
    rows: tuple[int, ...]  # [J] rows of the table
    lengths: tuple[int, ...]  # [J] real tokens of each whole sequence
    scored: bool = False
    teacher: int = 0  # whose, if it is scored
    bounds: tuple[int, ...] | None = None  # packed: where in the whole row each sequence begins, and the row's end

    @property
    def at(self) -> Tensor:
        """[n]: where in the flattened [S * B] hidden states a prediction is made."""
        return self.predictions[0]

    @property
    def targets(self) -> Tensor:
        """[n]: the id to predict."""
        return self.predictions[1]

    @property
    def sequence(self) -> Tensor:
        """[n]: which of the J sequences it belongs to."""
        return self.predictions[2]

    @property
    def place(self) -> Tensor:
        """[n]: position in that sequence."""
        return self.predictions[3]

    @property
    def row(self) -> Tensor:
        """[n]: that sequence's row in the table."""
        return self.predictions[4]

    @property
    def token(self) -> Tensor:
        """[n]: where the target stands in a token column."""
        return self.predictions[5]

    def to(self, device: torch.device) -> MicroBatch:
        ids, position_ids = sent(self.ids, device), sent(self.position_ids, device)
        predictions, counts = sent(self.predictions, device), sent(self.counts, device)
        return replace(self, ids=ids, position_ids=position_ids, predictions=predictions, counts=counts)

    def sliced(self, kept: Tensor) -> MicroBatch:
        """The positions ``kept`` [s] of every row, in that order, and the predictions made there."""
        height, length = self.ids.shape
        now = torch.full((length,), -1, dtype=torch.int64)
        now[kept] = torch.arange(len(kept))
        found = self.predictions[:, self.counts]
        found = found[:, now[found[0] // height] >= 0]
        found[0] = now[found[0] // height] * height + found[0] % height
        predictions, counts = _in_order([found])
        return replace(
            self, ids=self.ids[:, kept], position_ids=self.position_ids[:, kept], predictions=predictions, counts=counts
        )


def _in_order(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``predictions`` and ``counts`` from parts [6, m] in any order."""
    found = torch.cat([torch.zeros(6, 0, dtype=torch.int64), *parts], dim=1)
    found = found[:, found[0].argsort()]
    if found.shape[1]:
        return found, torch.ones(found.shape[1], dtype=torch.bool)
    return torch.zeros(6, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)


def collate(
    sequences: Sequence[tuple[Ids, int]],
    *,
    rows: Sequence[int],
    length: int,
    starts: Sequence[int] | None = None,
    scored: bool = False,
    teacher: int = 0,
) -> MicroBatch:
    """Pad ``(ids, prompt_length)`` pairs to ``length`` tokens, one a row.  No sequences = a dummy of one padding row.

    ``starts``: where in a token column each sequence's response begins; None = one response after the other.

    Raises:
        ValueError: a sequence longer than ``length``, or a prompt of no tokens (nothing would predict its first token).
    """
    places = [(b, 0, length) for b in range(len(sequences))]
    whole = _laid_out(sequences, places, (max(1, len(sequences)), length), rows, starts)
    return replace(whole, scored=scored, teacher=teacher)


def pack(
    sequences: Sequence[tuple[Ids, int]], *, rows: Sequence[int], multiple: int, length: int
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
    return replace(_laid_out(sequences, places, (1, length), rows, None), bounds=bounds)


def _laid_out(
    sequences: Sequence[tuple[Ids, int]], places: Sequence[tuple[int, int, int]], shape: tuple[int, int], rows: Sequence[int],
    starts: Sequence[int] | None,
) -> MicroBatch:  # fmt: skip
    """``places[j]``: row, first position and room of sequence j; 0 pads."""
    ids = torch.zeros(shape, dtype=torch.int64)
    position_ids = torch.arange(shape[1]).repeat(shape[0], 1)
    found, begin = [], 0
    for j, ((tokens, prompt), (b, start, room)) in enumerate(zip(sequences, places, strict=True)):
        if len(tokens) > room:
            raise ValueError(f"sequence {rows[j]} has {len(tokens)} tokens, its place in the micro-batch only {room}")
        if prompt < 1:
            raise ValueError(f"sequence {rows[j]} has no prompt: nothing predicts its first token")
        tokens = torch.as_tensor(tokens, dtype=torch.int64)
        ids[b, start : start + len(tokens)] = tokens
        position_ids[b, start : start + room] = torch.arange(room)
        place = torch.arange(prompt - 1, len(tokens) - 1)
        token = place - place[:1] + (begin if starts is None else starts[j])
        begin += len(place)
        alike = torch.ones_like(place)
        found.append(torch.stack([(start + place) * shape[0] + b, tokens[prompt:], j * alike, place, rows[j] * alike, token]))
    predictions, counts = _in_order(found)
    lengths = tuple(len(tokens) for tokens, _ in sequences)
    return MicroBatch(ids, position_ids, predictions, counts, tuple(rows), lengths)


def batch_of(step: Step, planned: PlannedBatch) -> MicroBatch:
    """The rollouts of a planned micro-batch, collated."""
    return collate(
        [(step.sequence(row), len(step.prompts[row // step.samples])) for row in planned.rows],
        rows=planned.rows, starts=[int(step.responses.offsets[row]) for row in planned.rows], length=planned.length,
        scored=planned.scored, teacher=planned.teacher,
    )  # fmt: skip


def token_batch(step: Step, batch: MicroBatch, beta: float) -> TokenBatch:
    """What :func:`vold_nemo.objective.vold_loss` asks of ``batch``; old log-probs where the step has them.

    ``beta`` 0: no token of the batch has a KL.
    """
    return TokenBatch(
        targets=batch.targets,
        sequence=batch.sequence,
        policy_weight=step.take(batch, "policy_weight"),
        kl_weight=beta * step.take(batch, "kl_weight") * step.take(batch, "carries"),
        advantages=step.take(batch, "advantage"),
        old_logprobs=step.take(batch, "old") if "old" in step else None,
        rollout_logprobs=step.take(batch, "engine"),
        response=batch.counts,
        position=batch.place,
    )


def fingerprint(batches: Sequence[MicroBatch]) -> str:
    """Hash of everything that model-parallel peers must agree on."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr((tuple(batch.ids.shape), batch.rows, batch.scored, batch.teacher, batch.bounds)).encode())
        for tensor in (batch.ids, batch.predictions):
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
