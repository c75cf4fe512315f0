"""Checkpoints that are drawn: :class:`vold_nemo.megatron.weights.Source` without files, network or transformers."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vold_nemo.megatron.architecture import Architecture, read
from vold_nemo.megatron.names import placements
from vold_nemo.megatron.tensors import LISTED, Entry

_QWEN = dict(max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1e6)
# Dimensions are multiples of 128 and of what Transformer Engine's attention takes.
TEACHER = dict(
    _QWEN, model_type="qwen3", hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
    intermediate_size=1024, vocab_size=4096, tie_word_embeddings=False,
)  # fmt: skip
STUDENT = dict(
    _QWEN, model_type="qwen2", hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
    intermediate_size=1024, vocab_size=4096, tie_word_embeddings=True,
)  # fmt: skip


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint folder whose tensors are listed and not there."""
    arch = Architecture.from_hf(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    listed = {name: [entry.dtype, list(entry.shape)] for name, entry in entries(arch, folder).items()}
    (folder / LISTED).write_text(json.dumps(listed))
    return folder


class Drawn:
    """bf16 weights of an architecture, each tensor drawn from a generator of its own name, the same on every machine.

    Matrices are N(0, 1/columns), so that activations keep their size and every layer matters; embeddings N(0, 1); biases
    N(0, 0.01); norm weights 1 + N(0, 0.01), so that one that is lost is seen.
    """

    def __init__(self, path: str | Path, seed: int = 0):
        self.architecture, self.folder, self._seed = read(str(path)), Path(path), seed
        self.entries = entries(self.architecture, self.folder)

    def slice(self, name: str, axis: int, start: int, size: int) -> Tensor:
        return self._whole(name).narrow(axis, start, size)

    def expert(self, name: str, expert: int, transposed: bool) -> Tensor:
        raise NotImplementedError("mixtures of experts are not drawn")

    def _whole(self, name: str) -> Tensor:
        shape = self.entries[name].shape
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            values = 0.1 * values + (0.0 if name.endswith("bias") else 1.0)
        elif "embed_tokens" not in name:
            values = values / math.sqrt(shape[1])
        elif self.architecture.tied:  # it is the head, too: logits of a few nats
            values = values * 2 / math.sqrt(shape[1])
        return values.to(torch.bfloat16)


class Bank(Drawn):
    """Weights of any size at once: rows are windows into one bank of N(0, 0.02²) numbers on ``device``.

    For memory and time alone: rows resemble each other, and what such a model says means nothing.
    """

    SIZE = 1 << 26  # elements; no power of two steps through it, so that rows differ

    def __init__(self, path: str | Path, device: torch.device, seed: int = 0):
        super().__init__(path, seed)
        self._bank = 0.02 * torch.randn(self.SIZE, device=device, dtype=torch.bfloat16)
        self._ones = torch.ones(1 << 16, device=device, dtype=torch.bfloat16)

    def _whole(self, name: str) -> Tensor:
        shape = self.entries[name].shape
        if len(shape) == 1:
            return (self._bank if name.endswith("bias") else self._ones)[: shape[0]]
        step = max(1, min(shape[1] + 1, (self.SIZE - shape[1]) // shape[0]))
        return self._bank.as_strided(shape, (step, 1))


def entries(arch: Architecture, folder: Path) -> dict[str, Entry]:
    found = {}
    for place in placements(arch, 1, arch.vocabulary):
        for name, shape in zip(place.hf, place.shapes, strict=True):
            found[name] = Entry(folder, "BF16", tuple(shape), 0, 2 * math.prod(shape))
    return found
