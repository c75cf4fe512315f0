"""Host memory for what leaves the device: one slab a holder, of the size it needs.

torch's ``pin_memory`` rounds every tensor up to a power of two, so that a copy may take twice the bytes planned for it, and
keeps what was freed.  Here one ordinary allocation is cut into views, and its pages are locked in place (``cudaHostRegister``)
where a GPU is the other end; they are given back with the slab.  Where pages cannot be locked (``ulimit -l``, say), the slab
stays ordinary memory: copies are then slower and as exact, and it is said once.  On a CPU nothing is locked.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from vold_nemo.megatron import device as devices

logger = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes: a view may become a tensor of any type, and copies begin at a cache line

_alive: weakref.WeakSet[Slab] = weakref.WeakSet()
_warned = False


class Slab:
    """Memory for pieces of ``sizes`` bytes, by key, as uint8 views; its contents are not set.

    Args:
        device: the other end of the copies.
    """

    def __init__(self, sizes: Mapping[Hashable, int], device: torch.device):
        self.sizes = dict(sizes)
        starts, end = {}, 0
        for key, size in self.sizes.items():
            starts[key] = end
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self.bytes = end
        self._memory, unlock = devices.host_memory(end, device)
        self._starts, self.locked = starts, unlock is not None
        if unlock is not None:
            weakref.finalize(self, unlock)  # is called before the memory goes
        elif end and device.type == "cuda":
            _warn(end, device)
        _alive.add(self)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.sizes

    def __getitem__(self, key: Hashable) -> Tensor:
        start = self._starts[key]
        return self._memory[start : start + self.sizes[key]]


class Room:
    """Host memory for copies that come again and again, each time in the same sizes.

    What a GPU copies into stays: locking pages takes about as long as a copy into pages that are not.  For a CPU nothing is
    locked, and memory goes with the copies in it.
    """

    def __init__(self) -> None:
        self._kept: Slab | None = None

    def of(self, sizes: Mapping[Hashable, int], device: torch.device) -> Slab:
        """A slab of ``sizes``; what was copied into the one before is overwritten, where that is kept."""
        if self._kept is not None and self._kept.sizes == dict(sizes):
            return self._kept
        self._kept = None  # before another is made: the two would not have to fit beside each other
        slab = Slab(sizes, device)
        if slab.locked:
            self._kept = slab
        return slab


def whole_storage(tensor: Tensor) -> Tensor:
    """All bytes of the storage that lies under ``tensor``."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _warn(size: int, device: torch.device) -> None:
    global _warned
    if not _warned:
        _warned = True
        logger.warning(
            "%.1f GiB of host memory could not be page-locked: copies to and from %s will be slower (ulimit -l?)",
            size / 2**30, device,
        )  # fmt: skip


def held_bytes() -> int:
    """Host memory in all slabs of this process."""
    return sum(slab.bytes for slab in _alive)
