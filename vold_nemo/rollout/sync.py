"""Proof that the engine samples from the weights the trainer holds: a checksum and a log-prob probe.

The checksum covers every bit of every language tensor, after the cast to the engine's dtype, and does not depend on the order
in which tensors arrive.  The probe compares what the engine reported for the tokens it sampled with what the trainer
computes for them: it sees what a checksum cannot (a wrong scale, a stale cache, another temperature).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 24  # elements widened to int64 at a time


def tensor_digest(name: str, tensor: Tensor) -> bytes:
    """16 bytes that change when a bit of ``tensor``, its place, its shape, its dtype or its name changes.

    With b_i the element's bits as an integer: s_1 = sum b_i and s_2 = sum b_i (1 + i mod p), both modulo 2^64, computed
    where the tensor lives, so that no weight crosses to the host.  Integer sums have no rounding: every device gives the
    same digest.
    """
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(-1).view(integers)
    plain = weighted = 0
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        place = torch.arange(start, start + part.numel(), device=part.device) % 2147483629 + 1
        plain += int(part.sum())
        weighted += int((part * place).sum())
    text = f"{name} {tuple(tensor.shape)} {tensor.dtype} {plain % 2**64:x} {weighted % 2**64:x}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def combine(digests: dict[str, bytes]) -> str:
    """One checksum for a set of named tensors, in whatever order they came."""
    return hashlib.blake2b(b"".join(digests[name] for name in sorted(digests)), digest_size=16).hexdigest()


class ChecksummedStream:
    """Passes a stream of (name, tensor) through and keeps the checksum of what passed, as if cast to ``dtype``.

    Usage: ``stream = ChecksummedStream(weights, engine_dtype); report = engine.load(stream, version); stream.confirm(report)``.
    """

    def __init__(self, named_tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype):
        self._source, self._dtype = named_tensors, dtype
        self._digests: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._source:
            self._digests[name] = tensor_digest(name, tensor.to(self._dtype))
            yield name, tensor

    @property
    def checksum(self) -> str:
        return combine(self._digests)

    def confirm(self, checksum: str) -> None:
        """RuntimeError unless the engine's live weights are bit for bit those that were sent."""
        if checksum != self.checksum:
            raise RuntimeError(
                f"the engine holds other weights than those sent: checksum {checksum}, sent {self.checksum} "
                f"({len(self._digests)} tensors as {self._dtype})"
            )


@dataclass(frozen=True)
class ProbeReport:
    """|engine log-prob - trainer log-prob| over the tokens of a probe."""

    mean: float
    max: float
    tokens: int


def compare_logprobs(engine: Any, trainer: Any, tolerance: float) -> ProbeReport:
    """Mean and largest absolute difference of two equally long rows of log-probs (tensors, arrays or lists).

    Raises RuntimeError if the mean exceeds ``tolerance`` (``rollout.probe_tolerance``), for a non-finite value, for no token at
    all: then rollouts are not from the policy being trained, and every later number would be wrong.  The mean is judged and
    not the largest: in bf16 single improbable tokens differ by tenths between two correct engines.
    """
    engine, trainer = (torch.as_tensor(row, dtype=torch.float64).flatten().cpu() for row in (engine, trainer))
    if engine.numel() != trainer.numel() or engine.numel() == 0:
        raise RuntimeError(f"log-prob probe: engine gave {engine.numel()} tokens, trainer {trainer.numel()}")
    difference = (engine - trainer).abs()
    worst = int(difference.nan_to_num(nan=float("inf")).argmax())
    if not float(difference.mean()) <= tolerance:  # also true of NaN
        raise RuntimeError(
            f"log-prob probe: engine and trainer differ by {float(difference.mean()):.6g} a token in the mean, allowed are "
            f"{tolerance:g} (rollout.probe_tolerance); worst is token {worst} of {engine.numel()}: {float(engine[worst]):.6g} "
            f"in the engine, {float(trainer[worst]):.6g} in the trainer. "
            "Compare the dtypes of engine and trainer, the temperature, and the last weight load."
        )
    return ProbeReport(float(difference.mean()), float(difference.max()), engine.numel())
