"""Memory of the trainer that other phases may have: gradient buffers, and what the optimizer alone owns.

Both are freed storage by storage (``resize_(0)``) and come back into the same storages, so that every view of them stays
what it was.  megatron-core's own ``optimizer.offload_to_cpu`` binds ``p.data`` of everything in its parameter groups
anew: fp32 parameters there are views of the model (and of the distributed optimizer's buffers), and would part from it.
Here those are left alone; what moves are fp32 master weights of bf16 parameters and the moments of Adam.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vold_nemo.megatron import device as devices
from vold_nemo.megatron.chunks import chunks_of
from vold_nemo.megatron.pinned import Slab, whole_storage


class GradientBuffers:
    """DDP's gradient buffers (4 bytes a parameter of this rank).  They hold nothing between two updates: freed, not copied.

    Args:
        ddp: of ``training.wrap_ddp``; a pass over it starts with zeroed buffers in any case.
    """

    def __init__(self, ddp):
        self._chunks = chunks_of(ddp)

    def leave(self) -> None:
        for chunk in self._chunks:
            chunk.offload_grad_buffers()

    def come_back(self) -> None:
        """Zeros, in the same storages: ``main_grad`` and every bucket are views of them."""
        for chunk in self._chunks:
            chunk.restore_grad_buffers()

    def device_bytes(self) -> int:
        buffers = (buffer for chunk in self._chunks for buffer in chunk.buffers + chunk.expert_parallel_buffers)
        return storage_bytes(buffer.grad_data for buffer in buffers)


class OptimizerState:
    """Master weights and moments (12 bytes a bf16 parameter, 8 a fp32 one; a share of that with ``distributed``).

    Bit for bit the same after :meth:`leave` and :meth:`come_back`.  Host memory (a :class:`pinned.Slab`) is allocated once
    and kept.

    Args:
        optimizer: megatron-core's, with its state filled (``optimizer.fill_state``).
        model: whose parameters stay on the device, whatever the optimizer calls its own.
    """

    def __init__(self, optimizer, model: torch.nn.Module):
        self._optimizer, self._model = optimizer, model
        self._device = next(model.parameters()).device
        self._host = Slab({}, self._device)  # by place in the order of _tensors

    def leave(self) -> None:
        here = {place: tensor for place, tensor in enumerate(self._tensors()) if tensor.untyped_storage().nbytes()}
        if not here:
            return
        sizes = {place: tensor.untyped_storage().nbytes() for place, tensor in here.items()}
        if sizes != self._host.sizes:
            self._host = Slab(sizes, self._device)
        for place, tensor in here.items():
            self._host[place].copy_(whole_storage(tensor))  # blocks: the storage is freed next
            tensor.untyped_storage().resize_(0)
        devices.empty_cache(self._device)

    def come_back(self) -> None:
        for place, tensor in enumerate(self._tensors()):
            storage = tensor.untyped_storage()
            if storage.nbytes() == 0 and place in self._host:
                storage.resize_(self._host.sizes[place])
                whole_storage(tensor).copy_(self._host[place], non_blocking=True)
        devices.synchronize(self._device)

    def device_bytes(self) -> int:
        return storage_bytes(self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        """One tensor of each storage that the optimizer alone owns, in a fixed order."""
        taken = {_address(parameter) for parameter in self._model.parameters()}
        for part in self._optimizer.chained_optimizers:
            for tensor in _own_tensors(part):
                if _address(tensor) not in taken:
                    taken.add(_address(tensor))
                    yield tensor


def _own_tensors(part) -> Iterator[Tensor]:
    """Master weights and moments of one megatron-core optimizer; the counter ``step``, a scalar on the host, is none."""
    if part.optimizer is None:  # a rank without a share of these parameters
        return
    for name in ("fp32_from_float16_groups", "shard_fp32_from_float16_groups"):
        for group in getattr(part, name, ()):
            yield from (tensor for tensor in group if tensor is not None)
    for state in part.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor) and value.dim() > 0)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that the storages under ``tensors`` take now, each counted once."""
    storages = {_address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
