"""Values of fake tensors, where they are known: beside small tensors of whole numbers and flags goes a real one on the host.

Control flow hangs on such tensors (which rows a teacher scores, how many tokens an expert gets, whether all is finite), so they
are computed as they would be.  Numbers that come out of a model are not known; where somebody asks for one all the same
(a loss, a norm), it is :data:`UNKNOWN`, and a flag is whatever says that nothing is wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vold_nemo.rehearsal.trees import leaves, mapped

aten = torch.ops.aten

UNKNOWN = 2.0**-10  # of a real number that nobody knows: finite, not 0, below every limit that stops a run
MOST_WHOLE = 1 << 24  # elements of a tensor of whole numbers or flags that are kept
MOST_REAL = 1 << 16  # of real numbers that come from the host: weights of a micro-batch's tokens, say
_FILLED = {
    aten.zeros_like.default: 0, aten.ones_like.default: 1, aten.new_zeros.default: 0, aten.new_ones.default: 1,
    aten.zero_.default: 0, aten.zeros.default: 0, aten.ones.default: 1,
}  # fmt: skip
_NOTHING_YET = (
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default,
)  # fmt: skip
_COMPARES = (aten.eq.Scalar, aten.ne.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar)
_SUMS_UP = {aten.any: False, aten.all: True}  # of flags that nobody knows
_CHOOSES = (aten.topk.default,)


def known(tensor: Tensor) -> Tensor | None:
    """What ``tensor`` holds, as a real tensor on the host; None where nobody knows."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    return getattr(tensor, "_value", None)


def remember(tensor: Tensor, value: Tensor) -> None:
    tensor._value = value


def forget(tensor: Tensor) -> None:
    if hasattr(tensor, "_value"):
        del tensor._value


def worth_keeping(tensor: Tensor) -> bool:
    return tensor.numel() <= (MOST_REAL if tensor.dtype.is_floating_point else MOST_WHOLE)


def on_host(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy as the host would get it: known values, or stand-ins for those that are not."""
    value = known(tensor)
    if value is not None:
        return value.to(dtype or value.dtype, copy=True)
    if tensor.dtype == torch.bool:
        return torch.full(tensor.shape, getattr(tensor, "_guess", True), dtype=dtype or torch.bool)
    number = UNKNOWN if tensor.dtype.is_floating_point or tensor.dtype.is_complex else 1
    return torch.full(tensor.shape, number).to(dtype or tensor.dtype)


def follow(func, args, kwargs, out) -> str | None:
    """Work out the values of ``out`` = ``func(*args, **kwargs)``; returns what went wrong where that failed."""
    if func in _NOTHING_YET:
        return None
    results = [one for one in leaves(out) if isinstance(one, FakeTensor)]
    if not results or not all(worth_keeping(one) or known(one) is not None for one in results):
        for one in results if func._schema.is_mutable else ():
            forget(one)
        return None
    if func in _FILLED and worth_keeping(results[0]):
        (first,) = results
        if func is aten.zero_.default and known(first) is not None:
            known(first).zero_()  # views share it
        else:
            remember(first, torch.full(first.shape, _FILLED[func], dtype=first.dtype))
        return None
    if func._overloadpacket in _SUMS_UP:
        results[0]._guess = _SUMS_UP[func._overloadpacket]
    flat = leaves((args, kwargs))
    if any(isinstance(one, FakeTensor) and known(one) is None for one in flat):
        if compared := _supposed(func, args):
            remember(results[0], torch.full(results[0].shape, compared == "true"))
            return None
        if func in _CHOOSES:  # which of them is largest, nobody knows: all in turn, so that experts get equal shares
            remember(results[1], _in_turn(tuple(results[1].shape), args[0].shape[-1]))
        for one in results if func._schema.is_mutable else ():
            forget(one)
        return None

    def real(one: Any) -> Any:
        return known(one) if isinstance(one, FakeTensor) else one

    given = mapped(real, {key: value for key, value in kwargs.items() if key != "pin_memory"})
    if given.get("device") is not None:
        given["device"] = "cpu"
    try:
        values = func(*mapped(real, args), **given)
    except Exception as error:
        return f"{func}: {error!r}"[:160]
    values = [one for one in leaves(values) if isinstance(one, Tensor)]
    for one, value in zip(results, values, strict=False):
        if one.shape == value.shape:
            remember(one, value)
    return None


def _supposed(func, args) -> str | None:
    """What comes of comparing a real number that nobody knows, :data:`UNKNOWN`, with one that is known, or with itself."""
    first = args[0] if args else None
    if not isinstance(first, Tensor) or not first.dtype.is_floating_point or known(first) is not None:
        return None
    if func is aten.eq.Tensor and args[1] is first:  # as ``isfinite`` does
        return "true"
    if func not in _COMPARES:
        return None
    return "true" if func(torch.tensor(UNKNOWN, dtype=torch.float64), args[1]) else "false"


def _in_turn(shape: tuple[int, ...], size: int) -> Tensor:
    rows, width = torch.Size(shape[:-1]).numel(), shape[-1]
    chosen = torch.arange(rows)[:, None] * width + torch.arange(width)
    return (chosen % size).view(shape)
