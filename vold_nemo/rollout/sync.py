"""Proof that the engine samples from the weights the trainer holds: a checksum and a log-prob probe.

The checksum covers every bit of every language tensor, after the cast to the engine's dtype, and does not depend on the order
in which tensors arrive.  The probe compares what the engine reported for the tokens it sampled with what the trainer
computes for them: it sees what a checksum cannot (a wrong scale, a stale cache, another temperature).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_ROWS = 64  # rows summed while they are in the processor's cache: a digest costs about what one copy of the tensor does


def tensor_sums(tensor: Tensor) -> Tensor:
    """What :func:`tensor_digest` hashes, int64, where the tensor lives: sums of its bits along its rows and its columns.

    The tensor is a matrix [first dimensions, last] of 64-bit words (of single elements, where a row is no whole number of
    words); r_i = sum_j w_ij and c_j = sum_i w_ij modulo 2^64.  A vector gives its elements themselves.
    """
    tensor = tensor.detach().contiguous()
    if tensor.ndim < 2:
        size = tensor.element_size()
        return tensor.reshape(-1).view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]).to(torch.int64)
    matrix = tensor.view(-1, tensor.shape[-1])
    whole = matrix.shape[1] * matrix.element_size() % 8 == 0 and matrix.data_ptr() % 8 == 0
    words = matrix.view(torch.int64 if whole else {1: torch.uint8, 2: torch.int16, 4: torch.int32}[matrix.element_size()])
    if words.device.type != "cpu":
        return torch.cat([words.sum(1, dtype=torch.int64), words.sum(0, dtype=torch.int64)])
    rows, columns = [], torch.zeros(words.shape[1], dtype=torch.int64)
    for block in words.split(_ROWS):
        rows.append(block.sum(1, dtype=torch.int64))
        columns += block.sum(0, dtype=torch.int64)
    return torch.cat([*rows, columns])


def tensor_digest(name: str, tensor: Tensor, sums: Tensor | None = None) -> bytes:
    """16 bytes that change when a bit of ``tensor``, its place, its shape, its dtype or its name changes.

    A hash of row sums and column sums of the bits (:func:`tensor_sums`, or those given): any one change is seen, and so are
    rows, columns or elements that changed places.  Integer sums have no rounding: every device gives the same digest.
    """
    found = hashlib.blake2b(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), digest_size=16)
    found.update((tensor_sums(tensor) if sums is None else sums).cpu().numpy().tobytes())
    return found.digest()


def combine(digests: dict[str, bytes]) -> str:
    """One checksum for a set of named tensors, in whatever order they came."""
    return hashlib.blake2b(b"".join(digests[name] for name in sorted(digests)), digest_size=16).hexdigest()


class ChecksummedStream:
    """Passes a stream of (name, tensor) through and keeps the checksum of what passed, as if cast to ``dtype``.

    Usage: ``stream = ChecksummedStream(weights, engine_dtype); report = engine.load(stream, version); stream.confirm(report)``.
    """

    def __init__(self, named_tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype):
        self._source, self._dtype = named_tensors, dtype
        self._passed: dict[str, tuple[Tensor, Tensor]] = {}  # shape and dtype (no memory behind), sums of the bits

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._source:
            cast = tensor.to(self._dtype)
            self._passed[name] = torch.empty_like(cast, device="meta"), tensor_sums(cast)
            yield name, tensor

    @property
    def checksum(self) -> str:
        """Hashed here, once all have passed: a GPU is not waited for at every tensor."""
        return combine({name: tensor_digest(name, like, sums) for name, (like, sums) in self._passed.items()})

    def confirm(self, checksum: str) -> None:
        """RuntimeError unless the engine's live weights are bit for bit those that were sent."""
        if checksum != self.checksum:
            raise RuntimeError(
                f"the engine holds other weights than those sent: checksum {checksum}, sent {self.checksum} "
                f"({len(self._passed)} tensors as {self._dtype})"
            )


def agree(error: Exception | None, what: str) -> None:
    """One rank's failure is every rank's: RuntimeError on all that names the first rank with an ``error``, and what it said.

    One object all-gather over the world.
    """
    errors = [None if error is None else f"{error}"]
    if dist.is_initialized() and dist.get_world_size() > 1:
        mine, errors = errors[0], [None] * dist.get_world_size()
        dist.all_gather_object(errors, mine)
    for rank, said in enumerate(errors):
        if said is not None:
            raise RuntimeError(f"{what} failed on rank {rank} of {len(errors)}: {said}") from error


@dataclass(frozen=True)
class SyncReport:
    """``bytes``: of one whole language model as the engine holds it.  ``seconds``: from the first tensor to the proof."""

    bytes: int
    seconds: float

    def metrics(self) -> dict[str, float]:
        return {"bytes": self.bytes, "seconds": self.seconds, "bytes_per_second": self.bytes / self.seconds}


def deliver(named_tensors: Iterable[tuple[str, Tensor]], engine: Any, version: int) -> SyncReport:
    """Feed the trainer's weights to ``engine`` and prove that they are what it holds now.  Collective over the world.

    Raises:
        RuntimeError: on every rank, naming rank and tensor, when one rank's load or proof fails; no engine then holds a
            version that could be sampled from.
    """
    began, failure, size = time.perf_counter(), None, 0
    try:
        stream = ChecksummedStream(named_tensors, engine.dtype)
        report = engine.load(stream, version)
        size = report.bytes
        stream.confirm(report.checksum)
    except Exception as error:
        failure = error
    try:
        agree(failure, f"weight sync to version {version}")
    except RuntimeError:
        engine.version = None
        raise
    return SyncReport(size, time.perf_counter() - began)


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
