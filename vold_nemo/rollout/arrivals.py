"""What a weight stream must bring into an engine: the whole language model, once, and finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vold_nemo.rollout.fingerprints import WHOLE, Fingerprints, Part, fingerprint

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def disk_name(name: str) -> str:
    """transformers keeps Qwen2.5-VL's language model at ``model.language_model``; most checkpoints write ``model``."""
    return name.replace("model.language_model.", "model.", 1)


class Arrivals:
    """Passes (name, tensor) on as sent; a tied head that comes beside its embedding is compared and kept back.

    Args:
        named_tensors: the stream, read once.
        shapes: name on disk -> shape of what this rank's engine keeps of every language parameter; a tied head is not
            among them.
        dtype: of the engine.
        model: what to call the engine's checkpoint in messages.
        part: what is read of a tied head and its embedding to compare them.
    """

    def __init__(
        self, named_tensors: Iterable[tuple[str, Tensor]], shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, model: str,
        part: Part = WHOLE,
    ):  # fmt: skip
        self._source, self._shapes, self._dtype, self._model, self._part = iter(named_tensors), shapes, dtype, model, part
        self._came: set[str] = set()
        self._tied_head: Tensor | None = None  # its fingerprint
        self._at = "the first tensor"
        self.names: dict[str, str] = {}  # as sent: as in `shapes`
        self.bytes = 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._source:
            self._at, held = name, disk_name(name)
            if held == HEAD and HEAD not in self._shapes:
                self._tied_head = fingerprint(tensor.to(self._dtype), self._part)
                self.names[name] = EMBEDDING
                continue
            if held not in self._shapes:
                raise RuntimeError(f"weight load: {self._model} has no language parameter {name!r}")
            if held in self._came:
                raise RuntimeError(f"weight load: {name} came twice")
            if tuple(tensor.shape) != tuple(self._shapes[held]):
                shape = tuple(self._shapes[held])
                raise RuntimeError(f"weight load: {name} is {tuple(tensor.shape)}, the engine's is {shape}")
            self._came.add(held)
            self.names[name] = held
            self.bytes += tensor.numel() * self._dtype.itemsize
            yield name, tensor

    @contextlib.contextmanager
    def draining(self):
        """An error inside comes to name a tensor; the stream is read to its end, since other ranks wait in its collectives."""
        try:
            yield self
        except Exception as error:
            for _ in self._source:
                pass
            if self._at in str(error):
                raise
            raise RuntimeError(f"weight load: failed at {self._at}: {type(error).__name__}: {error}") from error

    def complete(self) -> None:
        """RuntimeError for a parameter that never came."""
        missing = sorted(set(self._shapes) - self._came)
        if missing:
            raise RuntimeError(f"weight load: {len(missing)} parameters never came, the first is {missing[0]}")

    def check_finite(self, live: Fingerprints) -> None:
        """RuntimeError for a value that is not finite in what was read back of the live weights."""
        if wrong := live.not_finite():
            raise RuntimeError(f"weight load: {wrong[0]} is not finite as {self._dtype}")

    def check_tied(self, embedding: Callable[[], Tensor]) -> None:
        """RuntimeError for a tied head that came and is not the live ``embedding``, which is asked for only then."""
        if self._tied_head is not None and not torch.equal(self._tied_head, fingerprint(embedding(), self._part)):
            raise RuntimeError(f"weight load: the head differs from the embedding, and {self._model} ties them")
