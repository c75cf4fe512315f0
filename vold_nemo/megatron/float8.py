"""FP8 arithmetic on plain torch: values become float8_e4m3fn codes times scales, block by block, and back.

    scale of a block = max|x| / 448,   code = x / scale rounded to e4m3,   x ~ code * scale

Blockwise and mxfp8 scales are rounded up to a power of two, as Transformer Engine rounds them, so that no code overflows and
scaling itself is exact.  448 is e4m3's largest value; a code has 3 bits of mantissa, so that a value keeps 4 significant bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 448.0
AT_A_TIME = 1 << 18  # values worked on together: temporaries stay small beside the tensor
Block = tuple[int, int] | None  # rows x columns that share a scale; None = the whole tensor


def scale_shape(shape: tuple[int, int], block: Block) -> tuple[int, ...]:
    return () if block is None else (-(-shape[0] // block[0]), -(-shape[1] // block[1]))


def quantise(values: Tensor, block: Block, codes: Tensor, scales: Tensor) -> None:
    """Write float8_e4m3fn ``codes`` [r, c] and ``scales`` (:func:`scale_shape`; fp32, or float8_e8m0fnu) of ``values`` [r, c].

    A band of rows at a time; the last blocks of a ragged shape hold what is left.
    """
    step = block[0] if block else 1
    rows = max(1, AT_A_TIME // values.shape[1] // step) * step
    if block is None:
        low, high = torch.aminmax(values)
        scales.copy_(_scale(torch.maximum(-low, high).float(), power_of_two=False))
    for start in range(0, len(values), rows):
        part = values[start : start + rows].to(torch.float32, copy=True)  # worked on in place
        if block is not None:
            here = slice(start // block[0], start // block[0] + -(-len(part) // block[0]))
            scales[here] = _scale(_largest(part, block), power_of_two=True).to(scales.dtype)
            part = _by_block(part, scales[here].float().reciprocal(), block)
        else:
            part.div_(scales)
        codes[start : start + rows] = part.clamp_(-LARGEST, LARGEST).to(codes.dtype)


def dequantise(codes: Tensor, scales: Tensor, block: Block) -> Tensor:
    """float32 [r, c]: codes x scales; one temporary of its own size where blocks are ragged, none where they are not."""
    values = codes.float()
    return values.mul_(scales) if block is None else _by_block(values, scales.float(), block)


def round_trip(values: Tensor, block: Block) -> Tensor:
    """``values`` [..., c] as FP8 matrix units read them, in float32."""
    flat = values.reshape(-1, values.shape[-1])
    codes = torch.empty_like(flat, dtype=torch.float8_e4m3fn)
    scales = torch.empty(scale_shape(flat.shape, block), device=flat.device)
    quantise(flat, block, codes, scales)
    return dequantise(codes, scales, block).view(values.shape)


def _scale(largest: Tensor, power_of_two: bool) -> Tensor:
    """Scale of a block from its largest magnitude; 1 where the block is all zeros."""
    scale = largest / LARGEST
    if power_of_two:
        mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2^exponent, mantissa in [1/2, 1)
        exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(min=-126)
        scale = torch.ldexp(torch.ones_like(scale), exponent)
    return torch.where(largest > 0, scale.clamp(min=torch.finfo(torch.float32).tiny), 1.0)


def _largest(values: Tensor, block: tuple[int, int]) -> Tensor:
    rows, columns = scale_shape(values.shape, block)
    short = (rows * block[0] - values.shape[0], columns * block[1] - values.shape[1])
    if any(short):
        values = F.pad(values, (0, short[1], 0, short[0]))
    return values.view(rows, block[0], columns, block[1]).abs().amax(dim=(1, 3))


def _by_block(values: Tensor, factors: Tensor, block: tuple[int, int]) -> Tensor:
    """``values`` times its block's factor, in place."""
    rows, columns = values.shape
    if rows % block[0] == 0 and columns % block[1] == 0:
        values.view(factors.shape[0], block[0], factors.shape[1], block[1]).mul_(factors[:, None, :, None])
        return values
    spread = factors.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return values.mul_(spread)
