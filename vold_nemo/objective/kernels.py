"""Triton kernels for the two walks over a chunk's logits: normalising both models, and writing the gradient.

For the exact reverse KL torch's operations read or write a buffer of the size [c, v] about forty times.  Here it is nine:
:func:`normalise` reads both models' logits twice and writes them once, :func:`gradient` reads both and writes one.
Never required (``objective.kernels``).  Equal to the torch path in Triton's interpreter on a CPU
(tests/objective/test_kernels.py); not yet run on a GPU, and so not measured.

Needs the ``triton`` package; float32 only.  jsd and topk form their gradients by torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vold_nemo.objective.vocabulary import FILL, FLOOR

_BLOCK, _WARPS = 4096, 8  # ids a program handles at a time
_FILL, _FLOOR = tl.constexpr(FILL), tl.constexpr(FLOOR)
_DIRECTIONS = {None: 0, "reverse": 1, "forward": 2}


@triton.jit
def _load(row, ids, v, scale):
    """Scaled logits; FILL stays FILL at every temperature, and stands beyond the last id."""
    raw = tl.load(row + ids, mask=ids < v, other=_FILL)
    return tl.where(raw < _FLOOR, _FILL, raw * scale)


@triton.jit
def _normalise(
    z, u, out, v, rows, scale, scale_q, TEACHER: tl.constexpr, DIRECTION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row: largest logits, then sums of exponentials; ``out`` [6, rows], in the order that :func:`normalise` returns."""
    row = tl.program_id(0).to(tl.int64)
    z, u = z + row * v, u + row * v
    block = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], _FLOOR, tl.float32)
    top_q = tl.full([BLOCK], _FLOOR, tl.float32)
    for start in range(0, v, BLOCK):
        top = tl.maximum(top, _load(z, start + block, v, scale))
        if TEACHER:
            top_q = tl.maximum(top_q, _load(u, start + block, v, scale_q))
    centre, centre_q = tl.max(top, axis=0), tl.max(top_q, axis=0)
    total, moment = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    total_q, cross = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, v, BLOCK):
        ids = start + block
        x = _load(z, ids, v, scale) - centre
        p = tl.exp(x)
        total += p
        moment += p * x
        tl.store(z + ids, x, mask=ids < v)
        if TEACHER:
            y = _load(u, ids, v, scale_q) - centre_q
            q = tl.exp(y)
            total_q += q
            if DIRECTION == 1:
                cross += p * (x - y)
            if DIRECTION == 2:
                cross += q * (y - x)
            tl.store(u + ids, y, mask=ids < v)
    tl.store(out + row, tl.sum(total, axis=0))
    tl.store(out + rows + row, tl.sum(moment, axis=0))
    tl.store(out + 2 * rows + row, centre)
    if TEACHER:
        tl.store(out + 3 * rows + row, tl.sum(total_q, axis=0))
        tl.store(out + 4 * rows + row, tl.sum(cross, axis=0))
        tl.store(out + 5 * rows + row, centre_q)


@triton.jit
def _gradient(z, u, norm, norm_q, mean, weight, column, v, DIRECTION: tl.constexpr, BLOCK: tl.constexpr):
    """One block of one row; the result lies where the student's logits were, or the teacher's where a direction is given."""
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < v
    x = tl.load(z + row * v + ids, mask=inside, other=_FILL) - tl.load(norm + row)
    p = tl.exp(x)
    gradient = p * tl.load(column + row)
    if DIRECTION == 0:
        tl.store(z + row * v + ids, gradient, mask=inside)
    else:
        y = tl.load(u + row * v + ids, mask=inside, other=_FILL) - tl.load(norm_q + row)
        if DIRECTION == 1:
            gradient += tl.load(weight + row) * p * (x - y - tl.load(mean + row))
        else:
            gradient += tl.load(weight + row) * (p - tl.exp(y))
        tl.store(u + row * v + ids, gradient, mask=inside)


def normalise(
    logits: Tensor, teacher_logits: Tensor | None, scale: float, teacher_scale: float, unshared: Tensor, divergence: str | None
) -> Tensor:
    """As `softmax.normalise`: both [c, v] are scaled, filled and centred in place; sums [6, c]."""
    teacher = teacher_logits is not None
    for table in (logits,) if teacher_logits is None else (logits, teacher_logits):
        _check(table)
        if len(unshared):
            table.index_fill_(1, unshared, FILL)
    rows, columns = logits.shape
    out = logits.new_zeros(6, rows)
    _normalise[(rows,)](
        logits, teacher_logits if teacher else logits, out, columns, rows, scale, teacher_scale, teacher,
        _DIRECTIONS[divergence], _BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return out


def gradient(student, teacher, column: Tensor, weight: Tensor | None = None, divergence=None) -> Tensor:
    """``column``·p + ``weight``·∂KL on the logits of a chunk, [c, v]: what `walk.Walk` forms block by block.

    Args:
        student, teacher: `softmax.Distribution`; the teacher is not read without a ``divergence`` (reverse or forward).
    """
    direction = 0 if divergence is None else _DIRECTIONS[divergence.estimator]
    other, mean = (teacher, divergence.mean) if direction else (student, column)
    weight = weight if direction else column
    assert weight is not None, "a divergence comes with its weights"
    _check(student.logits)
    rows, columns = student.logits.shape
    _gradient[(rows, triton.cdiv(columns, _BLOCK))](
        student.logits, other.logits, student.norm, other.norm, mean.contiguous(), weight.contiguous(), column.contiguous(),
        columns, direction, _BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return other.logits


def _check(table: Tensor) -> None:
    if table.dtype != torch.float32 or not table.is_contiguous():
        raise ValueError(f"objective.kernels = triton: logits are {table.dtype}; float32 in one piece is needed")
