"""The decode loop: a left-padded batch of prompts, read once, continued K times each, until every row has ended.

Why not ``model.generate``: it reads a prompt again for each of its K samples, draws from the process's random numbers, keeps
finished rows in the batch to the end, and hands back logits [rows, T, V] if log-probs are wanted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_COMPACT = 0.75  # finished rows leave the batch when fewer than this share of its rows is still running


class GrowingLayer(DynamicLayer):
    """Keys and values [rows, heads, T, d] in a buffer that grows by half: ``DynamicLayer`` copies all T tokens at each one."""

    def __init__(self):
        super().__init__()
        self._length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        if self.keys is None or end > self.keys.shape[-2]:
            room = max(end + 64, end * 3 // 2)
            self.keys, self.values = (
                self._grown(self.keys, key_states, room),
                self._grown(self.values, value_states, room),
            )
        self.keys[:, :, self._length : end] = key_states
        self.values[:, :, self._length : end] = value_states
        self._length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, old: Tensor | None, like: Tensor, room: int) -> Tensor:
        new = like.new_zeros(*like.shape[:2], room, like.shape[-1])
        if old is not None:
            new[:, :, : self._length] = old[:, :, : self._length]
        return new

    def get_seq_length(self) -> int:
        return self._length

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized, self._length = False, 0


@dataclass
class Batch:
    """P left-padded prompts of length T0, each continued K times; row p·K + k is sample k of prompt p.

    ids, mask [P, T0]; positions [P, T0], or [3, P, T0] for mrope; next_position [P] is the position of the first new token;
    ``extra`` goes to the first forward pass (pixels).
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    next_position: Tensor
    repeats: int
    extra: dict[str, Any]


class StopTexts:
    """Whether the last tokens of a row complete one of ``texts``.

    Only a window of tokens is decoded: each of them stands for at least a byte, so a text of n bytes lies within the last n.
    """

    def __init__(self, texts: Sequence[str], tokenizer):
        self.texts, self._tokenizer = tuple(texts), tokenizer
        self.window = max(len(text.encode()) for text in texts)

    def complete(self, tails: Tensor) -> Tensor:
        """tails [rows, at most ``window``] -> bool [rows], on the same device."""
        decoded = self._tokenizer.batch_decode(tails.tolist(), skip_special_tokens=False)
        return torch.tensor([any(text in tail for text in self.texts) for tail in decoded], device=tails.device)


def uniforms(seed: int, key: int, sample: int, count: int) -> Tensor:
    """``count`` numbers in [0, 1), float64, that hang on nothing but (seed, prompt key, sample).

    A row's numbers do not depend on the batch it is answered in, nor on how many rows ended before it; torch's global
    generator is neither read nor moved.
    """
    digest = hashlib.blake2b(f"{seed}/{key}/{sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def draw(logits: Tensor, temperature: float, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """Next ids and their log-probs: logits [rows, V] -> ids [rows], log-probs [rows] (float32).

    ``uniform`` None is greedy.  Otherwise the id is the first i with cdf_i > u, cdf the running sum of softmax(logits / T) in
    float64: one number a row decides, where the usual exponential race takes V.
    """
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if uniform is None:
        ids = logprobs.argmax(-1)
    else:
        cdf = logprobs.double().exp().cumsum(-1)
        total = cdf[:, -1]
        u = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))  # some cdf_i > u for sure
        ids = torch.searchsorted(cdf, u.unsqueeze(-1), right=True).squeeze(-1)
    return ids, logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


@torch.inference_mode()
def decode(
    model: Any, batch: Batch, layers: int, max_tokens: int, temperature: float, uniform: Tensor | None, stop_ids: Tensor,
    stop_texts: StopTexts | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Continue every row until a stop id, a stop text or ``max_tokens``.  ``uniform`` [rows, max_tokens] or None (greedy).

    Returns ids [rows, n], log-probs [rows, n], lengths [rows] and whether each was stopped, bool [rows], on the CPU; what lies
    behind a row's length means nothing.
    """
    cache = Cache(layers=[GrowingLayer() for _ in range(layers)])
    logits = model(
        input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, past_key_values=cache,
        use_cache=True, logits_to_keep=1, **batch.extra,
    ).logits[:, -1]  # fmt: skip
    prompts, device = len(batch.ids), batch.ids.device
    rows = prompts * batch.repeats
    spread = torch.arange(prompts, device=device).repeat_interleave(batch.repeats)
    logits, position = logits[spread], batch.next_position[spread]
    if batch.repeats > 1:
        cache.batch_select_indices(spread)
    padded = not bool(batch.mask.all())
    visible = batch.mask[spread].bool() if padded else None  # [rows, T so far]; None: nothing is padded

    ids = torch.zeros(rows, max_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, max_tokens, dtype=torch.float32, device=device)
    lengths = torch.full((rows,), max_tokens, dtype=torch.long, device=device)
    stopped = torch.zeros(rows, dtype=torch.bool, device=device)
    row = torch.arange(rows, device=device)  # the original row of each row still in the batch
    running = torch.ones(rows, dtype=torch.bool, device=device)
    for step in range(max_tokens):
        token, logprob = draw(logits, temperature, None if uniform is None else uniform[row, step])
        ids[row, step], logprobs[row, step] = token, logprob
        ended = running & torch.isin(token, stop_ids)
        if stop_texts is not None:
            ended |= running & stop_texts.complete(ids[row, max(0, step + 1 - stop_texts.window) : step + 1])
        lengths[row[ended]] = step + 1
        stopped[row[ended]] = True
        running = running & ~ended
        left = int(running.sum())
        if left == 0 or step + 1 == max_tokens:
            ids, logprobs = ids[:, : step + 1], logprobs[:, : step + 1]
            break
        if left < _COMPACT * len(row):
            kept = running.nonzero().squeeze(-1)
            cache.batch_select_indices(kept)
            row, token, position, running = row[kept], token[kept], position[kept], running[kept]
            visible = visible[kept] if padded else None
        if padded:
            visible = torch.nn.functional.pad(visible, (0, 1), value=True)
        positions = position.unsqueeze(-1) + step
        logits = model(
            input_ids=token.unsqueeze(-1),
            attention_mask=None if visible is None else visible[:, None, None],  # [rows, 1, 1, T]: taken as it is
            position_ids=positions if batch.positions.ndim == 2 else positions.expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return ids.cpu(), logprobs.cpu(), lengths.cpu(), stopped.cpu()
