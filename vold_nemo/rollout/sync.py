"""Proof that the engine samples from the weights the trainer holds: fingerprints and a log-prob probe.

The fingerprints cover every bit of every language tensor, after the cast to the engine's dtype, in whatever order tensors
arrive.  The probe compares what the engine reported for the tokens it sampled with what the trainer computes for them: it sees
what a fingerprint cannot (a wrong scale, a stale cache, another temperature).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vold_nemo.rollout.fingerprints import WHOLE, Fingerprints, Part


class FingerprintedStream:
    """Casts a stream of (name, tensor) to ``dtype`` and keeps the fingerprints of what passed.

    Usage::

        stream = FingerprintedStream(weights, engine.dtype)
        stream.confirm(engine.load(stream, version).fingerprints)
    """

    def __init__(self, named_tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, part: Part = WHOLE):
        self._source, self._dtype = named_tensors, dtype
        self.sent = Fingerprints(part)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        source = iter(self._source)
        for name, tensor in source:
            try:
                cast = tensor.to(self._dtype)
                self.sent.add(name, cast)
            except Exception as error:
                for _ in source:  # its gathers are collective: the other ranks are in them
                    pass
                raise RuntimeError(f"weight load: {name} could not be read: {type(error).__name__}: {error}") from error
            yield name, cast

    def confirm(self, live: Fingerprints) -> None:
        """RuntimeError, naming the first that differs, unless the engine's live weights are bit for bit those sent."""
        wrong = self.sent.differences(live)
        if wrong:
            raise RuntimeError(
                f"the engine holds other weights than those sent: {len(wrong)} of {len(self.sent)} tensors differ "
                f"(sent as {self._dtype}), the first is {wrong[0]}"
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
    """``bytes``: of the language model, what this rank's engine keeps.  ``seconds``: from the first tensor to the proof."""

    bytes: int
    seconds: float

    def metrics(self) -> dict[str, float]:
        return {"bytes": self.bytes, "seconds": self.seconds, "bytes_per_second": self.bytes / self.seconds}


def deliver(named_tensors: Iterable[tuple[str, Tensor]], engine: Any, version: int, parts: int = 1) -> SyncReport:
    """Feed the trainer's weights to ``engine`` and prove that they are what it holds now.  Collective over the world.

    ``named_tensors``: of each language tensor the part that this rank's engine keeps (``engine.keeps``).

    The proof reads the ``version``-th of ``parts`` parts of every tensor, on both sides (``rollout.checksum_parts``).

    Raises:
        RuntimeError: on every rank, naming rank and tensor, when one rank's load or proof fails; no engine then holds a
            version that could be sampled from.
    """
    began, failure, size = time.perf_counter(), None, 0
    try:
        part = Part(version % parts, parts)
        stream = FingerprintedStream(named_tensors, engine.dtype, part)
        report = engine.load(stream, version, part)
        size = report.bytes
        stream.confirm(report.fingerprints)
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
