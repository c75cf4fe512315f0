"""Before the first step: does FP8 leave the teacher's predictions where they were?

The teacher scores a probe batch twice: as it is, and with a few layers of every pipeline stage computed in bf16, from
weights read again for the purpose.  So a broken scale, a kernel that gives NaN under one layout only, or a checkpoint that
FP8 does not suit, is found for the price of two forward passes and of a few layers' bf16 weights, which are then freed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.config import ConfigError
from vold_nemo.megatron import build, sequences, weights
from vold_nemo.megatron.chunks import chunks_of
from vold_nemo.megatron.precision import pad_multiple
from vold_nemo.models.drift import token_drift, vocabulary_shard
from vold_nemo.step import MicroBatch, collate


class OutsideFP8(torch.nn.Module):
    """A bf16 layer inside an FP8 model: Transformer Engine would quantise its inputs and weights on the fly."""

    def __init__(self, layer: torch.nn.Module, engine: bool):
        super().__init__()
        self.layer, self.engine, self.layer_number = layer, engine, layer.layer_number

    def forward(self, *args, **kwargs):
        if not self.engine:
            return self.layer(*args, **kwargs)
        from transformer_engine.pytorch import fp8_autocast

        with fp8_autocast(enabled=False):
            return self.layer(*args, **kwargs)


def places(teacher) -> list[tuple[int, int]]:
    """(chunk, layer in it), both from 0, of every layer on this stage, first layer first."""
    chunks = chunks_of(teacher.model)
    return [(chunk, number) for chunk, part in enumerate(chunks) for number in range(len(part.decoder.layers))]


@contextlib.contextmanager
def in_bf16(teacher, numbers: Sequence[int]) -> Iterator[None]:
    """``teacher`` with its layers ``numbers`` (of :func:`places`) in bf16; their weights live as long as the context."""
    chunks, all_places = chunks_of(teacher.model), places(teacher)
    chosen = [all_places[number] for number in numbers]
    kept = [chunks[chunk].decoder.layers[number] for chunk, number in chosen]
    try:
        for chunk, number in chosen:
            layer = build.build_layer(teacher.architecture, teacher.layout, number, torch.bfloat16, chunk=chunk)
            weights.load_layer(layer, number, teacher.architecture, teacher.layout, teacher.source(), chunk=chunk)
            chunks[chunk].decoder.layers[number] = OutsideFP8(layer, teacher.precision.backend == "te")
        yield
    finally:
        for (chunk, number), layer in zip(chosen, kept, strict=True):
            chunks[chunk].decoder.layers[number] = layer


def probe_batch(texts: Sequence[Sequence[int]], tokens: int, multiple: int) -> MicroBatch:
    """The first ``tokens`` tokens of ``texts`` as one scored micro-batch; every next token is predicted.

    :raises ValueError: no sequence of two tokens or more.
    """
    chosen, left = [], tokens
    for ids in texts:
        part = list(ids[: min(left, 512)])
        if len(part) >= 2:
            chosen.append((part, 1))
            left -= len(part)
        if left < 2:
            break
    if not chosen:
        raise ValueError("the probe needs a sequence of at least two tokens")
    longest = max(len(part) for part, _ in chosen)
    length = -(-longest // multiple) * multiple
    return collate(chosen, rows=range(len(chosen)), length=length, scored=True)


def probe(teacher, texts: Sequence[Sequence[int]]) -> str:
    """Mean KL(bf16 layers || fp8) and first-choice agreement on the probe, in words.  Collective over the world.

    :raises ConfigError: numbers that are not finite, or a mean KL above ``teacher.fp8.max_drift``.
    """
    asked, layout = teacher.config.fp8, teacher.layout
    multiple = pad_multiple(teacher.precision, layout.pad_multiple)
    whole = probe_batch(texts, asked.probe_tokens, multiple)
    batch = sequences.on_this_rank(whole, layout)
    here = len(places(teacher))
    numbers = sorted({round(i * (here - 1) / max(1, asked.probe_layers - 1)) for i in range(min(here, asked.probe_layers))})
    fp8 = _scored(teacher, batch)
    with in_bf16(teacher, numbers):
        bf16 = _scored(teacher, batch)
    found = torch.zeros(3, dtype=torch.float64, device=layout.device)  # mean KL, largest KL, 1 - agreement
    if layout.is_last_stage:
        head = teacher.head
        shard = vocabulary_shard(layout, teacher.architecture.vocabulary, len(head) * layout.tensor)
        drift = token_drift(fp8, bf16, head, batch.targets.to(layout.device), shard)
        found[:] = torch.stack([drift.kl.mean(), drift.kl.max(), 1 - drift.same_top.float().mean()])
        found.nan_to_num_(nan=torch.inf)  # a maximum over ranks may pass a NaN by
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    mean, largest, moved = found.tolist()
    said = (
        f"mean KL(bf16 || fp8) {mean:.3g} nats a token (largest {largest:.3g}), first choice the same in {1 - moved:.1%} of "
        f"{sum(whole.lengths) - len(whole.rows)} tokens; {len(numbers)} of {here} layers of each stage compared in bf16"
    )
    if not mean <= asked.max_drift:
        raise ConfigError(
            "teacher.precision", f"{teacher.precision.describe()}; {said}",
            f"a mean KL of at most teacher.fp8.max_drift = {asked.max_drift}",
            "set teacher.precision=bf16, or another teacher.fp8.recipe; recipes/teacher_drift.py shows where it comes from",
        )  # fmt: skip
    return said


def _scored(teacher, batch: MicroBatch) -> Tensor | None:
    """Final hidden states [n, H] at the predicted positions, on the last stage.

    :raises ConfigError: hidden states that are not finite.
    """
    try:
        hidden, *_ = teacher.hidden_states([batch] * teacher.layout.micro_batch_multiple)
    except RuntimeError as error:
        if "not finite" not in str(error):
            raise
        raise ConfigError("teacher.precision", str(error), "finite hidden states", "set teacher.precision=bf16") from error
    return None if hidden is None else teacher.selected(hidden, batch)
