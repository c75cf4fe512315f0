"""The three matrix products of an LM head, a chunk of tokens at a time.

Logits, and the sums behind both gradients, are formed in float32 (float64 for float64 inputs) whatever the inputs' type.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 8192  # vocabulary rows converted, or summed into a gradient, at a time: what bounds the temporaries


def working_type(hidden: Tensor) -> torch.dtype:
    """float64 for float64 hidden states, float32 for everything else."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def project(hidden: Tensor, head: Tensor, out: Tensor) -> Tensor:
    """Logits ``out`` [c, v] = ``hidden`` [c, H] · ``head``ᵀ [H, v] in ``out``'s type."""
    if hidden.dtype == head.dtype == out.dtype:
        return torch.mm(hidden, head.t(), out=out)
    if out.is_cuda and hidden.dtype == head.dtype:  # bf16 x bf16 -> fp32 straight from the accumulators
        return torch.mm(hidden, head.t(), out_dtype=out.dtype, out=out)
    hidden = hidden.to(out.dtype)
    for start in range(0, head.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        out[:, rows] = hidden @ head[rows].to(out.dtype).t()
    return out


def hidden_gradient(dlogits: Tensor, head: Tensor) -> Tensor:
    """[c, H] = ``dlogits`` [c, v] · ``head`` [v, H]: this rank's partial sum over its vocabulary rows."""
    if head.dtype == dlogits.dtype:
        return dlogits @ head
    if dlogits.is_cuda:
        return torch.mm(dlogits.to(head.dtype), head, out_dtype=dlogits.dtype)
    total = dlogits.new_zeros(dlogits.shape[0], head.shape[1])
    for start in range(0, head.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        total.addmm_(dlogits[:, rows], head[rows].to(dlogits.dtype))
    return total


def add_head_gradient(total: Tensor, dlogits: Tensor, hidden: Tensor, first: bool) -> None:
    """``total`` [v, H] (+)= ``dlogits``ᵀ · ``hidden``; the first chunk overwrites uninitialised memory (beta = 0)."""
    if dlogits.is_cuda and hidden.dtype != dlogits.dtype:
        for start in range(0, total.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            product = torch.mm(dlogits[:, rows].to(hidden.dtype).t(), hidden, out_dtype=total.dtype)
            total[rows].copy_(product) if first else total[rows].add_(product)
        return
    total.addmm_(dlogits.t(), hidden.to(dlogits.dtype), beta=0.0 if first else 1.0)
