"""Kernels over lists of tensors (``csrc/extensions/multi_tensor/``): Adam, norm and scale, in place or into scalars.

``tensor_lists``: lists of equal length; of Adam gradients, parameters, first and second moments, then master parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vold_nemo.rehearsal.engine.report import kernel


def _elements(tensor_lists, position: int = 0) -> int:
    return sum(tensor.numel() for tensor in tensor_lists[position])


def _check_lists(name: str, tensor_lists, lengths: tuple[int, ...]) -> None:
    """``multi_tensor_apply.cuh``: so many lists, equally long, of tensors that are equally large."""
    if len(tensor_lists) not in lengths:
        raise RuntimeError(f"{name} takes {lengths} lists of tensors, not {len(tensor_lists)}")
    for row in zip(*tensor_lists, strict=True):
        if len({tensor.numel() for tensor in row}) != 1:
            raise RuntimeError(f"{name}: tensors of {[tuple(tensor.shape) for tensor in row]} at one place of its lists")


# A step of Adam takes some 15 operations a parameter; they are never what it waits for, the memory is.
_ADAM = 15


def multi_tensor_adam(
    chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, weight_decay
) -> None:
    _check_lists("multi_tensor_adam", tensor_lists, (4, 5))
    kernel("multi_tensor_adam", flops=_ADAM * _elements(tensor_lists), dtype=torch.float32)


def multi_tensor_adam_param_remainder(
    chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, weight_decay
) -> None:
    """The master parameters as the low 16 bits that a bf16 parameter lacks."""
    _check_lists("multi_tensor_adam_param_remainder", tensor_lists, (5,))
    kernel("multi_tensor_adam_param_remainder", flops=_ADAM * _elements(tensor_lists), dtype=torch.float32)


def multi_tensor_scale(chunk_size, noop_flag, tensor_lists, scale) -> None:
    _check_lists("multi_tensor_scale", tensor_lists, (2,))
    kernel("multi_tensor_scale", flops=_elements(tensor_lists), dtype=torch.float32)


def multi_tensor_scale_tensor(chunk_size, is_infinite, tensor_lists, scale) -> None:
    _check_lists("multi_tensor_scale_tensor", tensor_lists, (2,))
    kernel("multi_tensor_scale_tensor", flops=_elements(tensor_lists), dtype=torch.float32)


def multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor_python):
    """(norm of all [1], norms of each [n], or [0]) in fp32 (``l2norm.cpp``)."""
    return _norm("multi_tensor_l2norm", chunk_size, tensor_lists, per_tensor_python)


def multi_tensor_unscale_l2norm(chunk_size, noop_flag, tensor_lists, inv_scale, per_tensor_python):
    return _norm("multi_tensor_unscale_l2norm", chunk_size, tensor_lists, per_tensor_python)


def _norm(name: str, chunk_size: int, tensor_lists, per_tensor: bool | None) -> tuple[Tensor, Tensor]:
    tensors = tensor_lists[0]
    of = dict(dtype=torch.float32, device=tensors[0].device)
    partial = [torch.zeros(320, **of)]
    total, each = torch.empty(1, **of), torch.empty(len(tensors) if per_tensor else 0, **of)
    if per_tensor:
        partial.append(torch.zeros(len(tensors) * max(-(-tensor.numel() // chunk_size) for tensor in tensors), **of))
    kernel(name, flops=2 * _elements(tensor_lists), dtype=torch.float32)
    del partial
    return total, each
