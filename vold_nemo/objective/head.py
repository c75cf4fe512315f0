"""The three matrix products of an LM head, a chunk of tokens at a time.

Logits, and the sums behind both gradients, are formed in float32 (float64 for float64 inputs) whatever the inputs' type.
On a CPU ``torch.mm`` is MKL's, which leaves half of an AMD core's rate unused; large float32 products go to oneDNN instead, by
way of ``linear`` on a tensor in its layout, which is as fast on either make.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear

_ROWS = 8192  # vocabulary rows converted, or summed into a gradient, at a time: what bounds the temporaries
_ONEDNN_ROWS = 512  # the same for oneDNN: a block's product is still in the cache when it goes where it belongs
_ONEDNN_FROM = 1 << 30  # multiply-adds from which it pays: it makes code for every new shape, which takes milliseconds


def working_type(hidden: Tensor) -> torch.dtype:
    """float64 for float64 hidden states, float32 for everything else."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def project(hidden: Tensor, head: Tensor, out: Tensor) -> Tensor:
    """Logits ``out`` [c, v] = ``hidden`` [c, H] · ``head``ᵀ [H, v] in ``out``'s type."""
    if _by_onednn(out, hidden, head):
        packed = hidden.to(out.dtype).to_mkldnn()
        for rows in _blocks(head, _ONEDNN_ROWS):
            out[:, rows] = linear(packed, head[rows].to(out.dtype)).to_dense()
        return out
    if hidden.dtype == head.dtype == out.dtype:
        return torch.mm(hidden, head.t(), out=out)
    if out.is_cuda and hidden.dtype == head.dtype:  # bf16 x bf16 -> fp32 straight from the accumulators
        return torch.mm(hidden, head.t(), out_dtype=out.dtype, out=out)
    hidden = hidden.to(out.dtype)
    for rows in _blocks(head, _ROWS):
        out[:, rows] = hidden @ head[rows].to(out.dtype).t()
    return out


def operand(dlogits: Tensor, head: Tensor) -> Tensor:
    """``dlogits`` as both gradients' products read it: on a GPU in the heads' type, whose matrix units sum in float32."""
    return dlogits.to(head.dtype) if _has_matrix_units(dlogits) else dlogits


def hidden_gradient(dlogits: Tensor, head: Tensor) -> Tensor:
    """[c, H] = ``dlogits`` [c, v] · ``head`` [v, H]: this rank's partial sum over its vocabulary rows."""
    if _has_matrix_units(dlogits) and dlogits.dtype == head.dtype:
        return torch.mm(dlogits, head, out_dtype=working_type(dlogits))
    total = dlogits.new_zeros(dlogits.shape[0], head.shape[1])
    if _by_onednn(dlogits, total, head):
        for rows in _blocks(head, _ONEDNN_ROWS):
            packed = dlogits[:, rows].contiguous().to_mkldnn()
            total += linear(packed, head[rows].to(dlogits.dtype).t()).to_dense()
        return total
    if head.dtype == dlogits.dtype:
        return torch.mm(dlogits, head, out=total)
    for rows in _blocks(head, _ROWS):
        total.addmm_(dlogits[:, rows], head[rows].to(dlogits.dtype))
    return total


def add_head_gradient(total: Tensor, dlogits: Tensor, hidden: Tensor, first: bool) -> None:
    """``total`` [v, H] (+)= ``dlogits``ᵀ · ``hidden``; the first chunk overwrites uninitialised memory (beta = 0).

    On a GPU the product of bf16 is added to the float32 ``total`` as it leaves the accumulators: no buffer of its own.
    """
    beta = 0.0 if first else 1.0
    if _has_matrix_units(dlogits) and dlogits.dtype == hidden.dtype != total.dtype:
        torch.addmm(total, dlogits.t(), hidden, beta=beta, out_dtype=total.dtype, out=total)
        return
    hidden = hidden.to(dlogits.dtype)
    if _by_onednn(dlogits, hidden, total):
        transposed = hidden.t().contiguous()
        for rows in _blocks(total, _ONEDNN_ROWS):
            product = linear(dlogits[:, rows].t().contiguous().to_mkldnn(), transposed).to_dense()
            total[rows].copy_(product) if first else total[rows].add_(product)
        return
    total.addmm_(dlogits.t(), hidden, beta=beta)


def _has_matrix_units(tensor: Tensor) -> bool:
    """Whether products of bf16 are formed on a GPU, in float32."""
    return tensor.is_cuda


def _blocks(head: Tensor, size: int) -> Iterator[slice]:
    for start in range(0, head.shape[0], size):
        yield slice(start, start + size)


def _by_onednn(logits: Tensor, hidden: Tensor, head: Tensor) -> bool:
    """Whether the product of [c, v], [c, H] and [v, H] is oneDNN's: large, float32, on a CPU."""
    return (
        logits.dtype == torch.float32
        and logits.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and math.prod((*hidden.shape, head.shape[0])) >= _ONEDNN_FROM
    )
