"""Weights that never change, off the device while nobody needs them.

Storages are freed in place (``resize_(0)``) and filled again, so that every parameter, view and tied copy stays the object it
was, FP8 codes and scales inside Transformer Engine's tensors included.  As nothing is ever written to the weights, the device
is read once: from then on leaving costs no copy.

On a CPU both ends are host memory: the move is the same and saves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vold_nemo.megatron import device as devices
from vold_nemo.megatron import fp8
from vold_nemo.megatron.pinned import Slab, whole_storage


class HostCopy:
    """The parameters and buffers of a frozen ``model``.

    Args:
        reload: fills every parameter of the model from where it came from.  Then the host keeps no copy, and coming back
            takes as long as loading did; None = a copy in host memory.
    """

    def __init__(self, model: torch.nn.Module, reload: Callable[[], None] | None = None):
        self._model, self._reload = model, reload
        self._device = next(model.parameters()).device
        self._host: dict[int, Slab] = {}  # by storage; one for all that there are when the first of them leaves
        self._copied: set[int] = set()
        self._sizes: dict[int, int] = {}  # bytes of the storages that are away
        self._moved = 0  # bytes between host and device, both ways
        self._seconds = 0.0

    def leave(self, keep: Sequence[Tensor] = ()) -> None:
        """Free the device's memory, but for the tensors ``keep``."""
        kept = {_key(part) for tensor in keep for part in _plain(tensor)}
        with self._timed():
            sizes = {key: tensor.untyped_storage().nbytes() for key, tensor in self._storages().items()}
            new = {key: size for key, size in sizes.items() if size and key not in self._host}
            if new and self._reload is None:
                self._host |= dict.fromkeys(new, Slab(new, self._device))
            for key, tensor in self._storages().items():
                storage = tensor.untyped_storage()
                if key in kept or key in self._sizes or not storage.nbytes():
                    continue
                if key in self._host and key not in self._copied:
                    self._host[key][key].copy_(whole_storage(tensor))  # blocks: the storage is freed next
                    self._copied.add(key)
                    self._moved += storage.nbytes()
                self._sizes[key] = storage.nbytes()
                storage.resize_(0)
            devices.empty_cache(self._device)

    def come_back(self) -> None:
        """All of it on the device again, bit for bit."""
        if not self._sizes:
            return
        with self._timed():
            for key, tensor in self._storages().items():
                if key in self._sizes:
                    storage = tensor.untyped_storage()
                    storage.resize_(self._sizes[key])
                    self._moved += self._sizes[key]
                    if key in self._host:
                        whole_storage(tensor).copy_(self._host[key][key], non_blocking=True)
            self._sizes = {}
            if self._reload is not None:
                self._reload()

    def said(self) -> dict[str, float]:
        """Bytes moved and seconds taken since the last call."""
        moved = {"bytes": self._moved, "seconds": self._seconds}
        self._moved, self._seconds = 0, 0.0
        return moved

    def device_bytes(self) -> int:
        """Bytes on the device now, each storage counted once."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._storages().values())

    def _storages(self) -> dict[int, Tensor]:
        tensors = (*self._model.parameters(), *self._model.buffers())
        return {_key(part): part for tensor in tensors for part in _plain(tensor)}

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        devices.synchronize(self._device)
        self._seconds += time.perf_counter() - began


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """``tensor`` itself, or the tensors inside one that only wraps them (Transformer Engine's quantised parameters)."""
    if fp8.is_quantised(tensor):
        yield from (part for part in vars(tensor).values() if isinstance(part, Tensor))
    else:
        yield tensor


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
