"""FP8 tensors: what the extension's quantisers allocate (``csrc/quantizer.cpp``, ``csrc/extensions/cast.cpp``).

===========  ===================  ======================================  ===========================================
recipe       data                 row-wise scales of [m, k]               column-wise copy
===========  ===================  ======================================  ===========================================
tensorwise   uint8 [m, k]         fp32 [1], shared with the copy          uint8 [k, m]; none from Blackwell on
blockwise    uint8 [m, k]         fp32 [m/128, k/128 to 4] of a weight,   uint8 [k, m], scales of its own
                                  [k/128, m to 4] of an input
mxfp8        uint8 [m, k]         uint8 [m to 128, k/32 to 4]             uint8 [m, k], scales [m/32 to 4, k to 128]
===========  ===================  ======================================  ===========================================

NVFP4 is not written: no recipe of this project asks for it.
"""

from __future__ import annotations

from functools import cache
from math import prod
from types import SimpleNamespace

import torch
from torch import Tensor

from vold_nemo.rehearsal.engine.report import kernel

FP8 = torch.float8_e4m3fn  # reported as the type of the units; the buffers are bytes


@cache
def classes() -> SimpleNamespace:
    """Transformer Engine's own classes, imported at the first use as the extension does (``pybind.cpp: init_extension``)."""
    from transformer_engine.pytorch.tensor.float8_blockwise_tensor import Float8BlockQuantizer, Float8BlockwiseQTensor
    from transformer_engine.pytorch.tensor.float8_tensor import (
        Float8CurrentScalingQuantizer,
        Float8Quantizer,
        Float8Tensor,
    )
    from transformer_engine.pytorch.tensor.mxfp8_tensor import MXFP8Quantizer, MXFP8Tensor
    from transformer_engine.pytorch.tensor.storage.float8_blockwise_tensor_storage import Float8BlockwiseQTensorStorage
    from transformer_engine.pytorch.tensor.storage.float8_tensor_storage import Float8TensorStorage
    from transformer_engine.pytorch.tensor.storage.mxfp8_tensor_storage import MXFP8TensorStorage

    return SimpleNamespace(
        block=Float8BlockQuantizer, delayed=Float8Quantizer, current=Float8CurrentScalingQuantizer, mxfp8=MXFP8Quantizer,
        Float8Tensor=Float8Tensor, BlockTensor=Float8BlockwiseQTensor, MXFP8Tensor=MXFP8Tensor,
        Float8Storage=Float8TensorStorage, BlockStorage=Float8BlockwiseQTensorStorage, MXFP8Storage=MXFP8TensorStorage,
    )  # fmt: skip


def kind(quantizer) -> str | None:
    """``tensorwise`` | ``delayed`` | ``blockwise`` | ``mxfp8``, None without a quantiser."""
    if quantizer is None:
        return None
    known = classes()
    for name, of in (("tensorwise", known.current), ("delayed", known.delayed),
                     ("blockwise", known.block), ("mxfp8", known.mxfp8)):  # fmt: skip
        if isinstance(quantizer, of):
            return name
    raise NotImplementedError(f"the stand-in does not quantise by {type(quantizer).__name__}")


def torch_dtype(dtype) -> torch.dtype:
    """Of Transformer Engine's number for it."""
    from transformer_engine.pytorch.constants import DType, TE_DType_To_Torch

    return dtype if isinstance(dtype, torch.dtype) else TE_DType_To_Torch[DType.cast(dtype)]


@cache
def any_layout() -> bool:
    """FP8 matrix units that read either operand along either axis need no transposed copy
    (``common/transformer_engine.cpp: nvte_is_non_tn_fp8_gemm_supported``)."""
    from transformer_engine.pytorch.utils import is_non_tn_fp8_gemm_supported

    return is_non_tn_fp8_gemm_supported()


def transposed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``quantizer.cpp: make_transpose_shape``: the last dimension comes first."""
    return (shape[-1], *shape[:-1]) if shape else ()


def up_to(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def scale_shape(quantizer, shape: tuple[int, ...], columnwise: bool) -> tuple[int, int]:
    """``Float8BlockQuantizer::get_scale_shape`` and ``MXFP8Quantizer::get_scale_shape``."""
    columns = shape[-1] if shape else 1
    rows = prod(shape) // columns if columns else 0
    if kind(quantizer) == "mxfp8":
        if columns % 32 or rows % 32:
            raise ValueError(f"MXFP8 requires tensor dims that are divisible by 32 (got shape={shape})")
        if columnwise:
            return up_to(rows // 32, 4), up_to(columns, 128)
        return up_to(rows, 128), up_to(columns // 32, 4)
    along, across = (rows, columns) if columnwise else (columns, rows)
    if quantizer.block_scaling_dim == 1:
        return -(-along // 128), up_to(across, 4)
    return -(-across // 128), up_to(-(-along // 128), 4)


def create(quantizer, shape, dtype: torch.dtype, device=None, pin_memory: bool = False):
    """An uninitialised tensor of ``quantizer``'s kind, or a plain one without it (``Quantizer::create_tensor``)."""
    shape, which = tuple(shape), kind(quantizer)
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else torch.device(device)

    def empty(size, of):
        return torch.empty(size, dtype=of, device=device, pin_memory=pin_memory)

    if which is None:
        return empty(shape, dtype)
    row, column = quantizer.rowwise_usage, quantizer.columnwise_usage
    if which in ("tensorwise", "delayed"):
        parts = dict(
            data=empty(shape, torch.uint8) if row or any_layout() else None,
            data_transpose=empty(transposed(shape), torch.uint8) if column and not any_layout() else None,
            fp8_scale_inv=empty((1,), torch.float32),
        )
        return _wrap(quantizer, "Float8", parts, shape, dtype, device)
    scale = torch.uint8 if which == "mxfp8" else torch.float32
    copy = shape if which == "mxfp8" else transposed(shape)
    parts = dict(
        rowwise_data=empty(shape, torch.uint8) if row else None,
        rowwise_scale_inv=empty(scale_shape(quantizer, shape, False), scale) if row else None,
        columnwise_data=empty(copy, torch.uint8) if column else None,
        columnwise_scale_inv=empty(scale_shape(quantizer, shape, True), scale) if column else None,
    )
    return _wrap(quantizer, "MXFP8" if which == "mxfp8" else "Block", parts, shape, dtype, device)


def _wrap(quantizer, family: str, parts: dict, shape, dtype, device):
    """The Python object: a bare storage for a quantiser marked ``internal``, a tensor otherwise."""
    parts |= dict(fp8_dtype=quantizer.dtype, quantizer=quantizer)
    if family == "Block":
        parts["is_2D_scaled"] = quantizer.block_scaling_dim == 2
    if family == "MXFP8":
        parts["with_gemm_swizzled_scales"] = quantizer.optimize_for_gemm
    if quantizer.internal:
        return getattr(classes(), family + "Storage")(**parts, fake_dtype=dtype)
    stride = [prod(shape[i + 1 :]) for i in range(len(shape))]
    return getattr(classes(), family + "Tensor")(shape=list(shape), stride=stride, dtype=dtype, device=device, **parts)


def quantize(tensor: Tensor, quantizer, output=None, noop=None):
    """``cast.cpp: quantize``: into ``output``, whose buffers are then brought to the quantiser's usages, or a new tensor."""
    source = tensor.contiguous()
    if output is None:
        output = create(quantizer, source.shape, source.dtype)
    else:
        _bring_to_usages(quantizer, output, tuple(source.shape))
    fill(quantizer, source)
    return output


def fill(quantizer, source: Tensor, amax: Tensor | None = None) -> None:
    """The kernels of a cast, with the scratch that they take; ``amax``: of ``source``, where its producer knows it."""
    if source.numel() == 0:
        return
    if kind(quantizer) == "tensorwise":  # quantizer.cpp: Float8CurrentScalingQuantizer::quantize
        scratch = torch.empty(2 if amax is None else 1, dtype=torch.float32, device=source.device)
        if amax is None:
            amax = scratch[0]
            kernel("compute_amax")
        if quantizer.with_amax_reduction:
            group = quantizer._canonicalized_amax_reduction_group()
            torch.distributed.all_reduce(amax, op=torch.distributed.ReduceOp.MAX, group=group)
        kernel("compute_scale_from_amax")
    kernel("quantize", dtype=FP8)


def _bring_to_usages(quantizer, output, shape: tuple[int, ...]) -> None:
    """``Quantizer::convert_and_update_tensor``: buffers that the quantiser does not use go, those that it lacks come."""

    def bring(name: str, wanted: bool, size, dtype) -> None:
        held = getattr(output, name)
        if wanted and held is None:
            setattr(output, name, torch.empty(size, dtype=dtype, device="cuda"))
        elif not wanted and held is not None:
            setattr(output, name, None)

    row, column = quantizer.rowwise_usage, quantizer.columnwise_usage
    which = kind(quantizer)
    if which in ("tensorwise", "delayed"):
        bring("_data", row or any_layout(), shape, torch.uint8)
        bring("_transpose", column and not any_layout(), transposed(shape), torch.uint8)
        output._transpose_invalid = not (column and not any_layout())
        output._fp8_dtype = quantizer.dtype
        return
    scale = torch.uint8 if which == "mxfp8" else torch.float32
    copy = shape if which == "mxfp8" else transposed(shape)
    bring("_rowwise_data", row, shape, torch.uint8)
    bring("_rowwise_scale_inv", row, scale_shape(quantizer, shape, False), scale)
    bring("_columnwise_data", column, copy, torch.uint8)
    bring("_columnwise_scale_inv", column, scale_shape(quantizer, shape, True), scale)
    if which == "mxfp8":
        output._fp8_dtype = quantizer.dtype
        output._with_gemm_swizzled_scales = quantizer.optimize_for_gemm


def create_empty_quantized_tensor(quantizer, shape, dtype, device, pin_memory):
    return create(quantizer, shape, dtype, device, pin_memory)


def dequantize(input, otype):
    kernel("dequantize", dtype=FP8)
    return torch.empty(tuple(input.size()), dtype=torch_dtype(otype), device="cuda")


def multi_tensor_quantize(tensor_list, quantizer_list):
    return [quantize(tensor, quantizer) for tensor, quantizer in zip(tensor_list, quantizer_list, strict=True)]


def split_quantize(tensor: Tensor, split_sections, quantizer_list, disable_bulk_allocation=False):
    """``cast.cpp: split_quantize``: rows of ``tensor`` by section.  Blockwise and MXFP8 parts share two allocations (row-wise
    and column-wise) and become bare storages; tensorwise parts are tensors of their own."""
    source = tensor.contiguous()
    shapes = [(rows, *source.shape[1:]) for rows in split_sections]
    kinds = {kind(quantizer) for quantizer in quantizer_list}
    if not disable_bulk_allocation and kinds in ({"blockwise"}, {"mxfp8"}):
        outputs = _in_bulk(shapes, quantizer_list, source.device)
    else:
        outputs = [create(each, shape, source.dtype) for each, shape in zip(quantizer_list, shapes, strict=True)]
    for part, quantizer in zip(source.split(list(split_sections)), quantizer_list, strict=True):
        fill(quantizer, part)
    return outputs


def _in_bulk(shapes, quantizers, device) -> list:
    """``bulk_allocate_fp8_blockwise_tensors`` and ``bulk_allocate_mxfp8_tensors``; the first quantiser speaks for all."""
    first, known = quantizers[0], classes()
    mxfp8 = kind(first) == "mxfp8"
    scale = torch.uint8 if mxfp8 else torch.float32
    halves = {}
    for columnwise, used in ((False, first.rowwise_usage), (True, first.columnwise_usage)):
        if not used:
            halves[columnwise] = ([None] * len(shapes), [None] * len(shapes))
            continue
        data = [transposed(shape) if columnwise and not mxfp8 else shape for shape in shapes]
        scales = [scale_shape(each, shape, columnwise) for each, shape in zip(quantizers, shapes, strict=True)]
        n = len(shapes)
        parts = bulk_allocate(data + scales, [torch.uint8] * n + [scale] * n, device, [256] * n + [16] * n)
        halves[columnwise] = (parts[:n], parts[n:])
    of, last = (known.MXFP8Storage, first.optimize_for_gemm) if mxfp8 else (known.BlockStorage, first.block_scaling_dim == 2)
    (rows, row_scales), (columns, column_scales) = halves[False], halves[True]
    return [
        of(rows[i], row_scales[i], columns[i], column_scales[i], first.dtype, quantizers[i], last)
        for i in range(len(shapes))
    ]  # fmt: skip


def bulk_allocate(shapes, dtypes, device=None, alignments=None) -> list[Tensor]:
    """``allocate.cpp``: views into one buffer, each aligned; the buffer is longer by the largest alignment."""
    if not shapes:
        return []
    alignments = [dtype.itemsize for dtype in dtypes] if alignments is None else alignments
    offset, places = 0, []
    for shape, dtype, alignment in zip(shapes, dtypes, alignments, strict=True):
        offset = up_to(offset, alignment)
        places.append((offset, prod(shape) * dtype.itemsize))
        offset += places[-1][1]
    spare = max(alignments) if max(alignments) > 1 else 0
    buffer = torch.empty(offset + spare, dtype=torch.uint8, device="cuda" if device is None else device)
    return [
        buffer[start : start + size].view(dtype).view(tuple(shape))
        for (start, size), shape, dtype in zip(places, shapes, dtypes, strict=True)
    ]


def fp8_transpose(input: Tensor, dtype, *, out):
    """``transpose.cpp: fp8_transpose``: [.., k] into [k, ..]."""
    kernel("fp8_transpose")
    return torch.empty(transposed(tuple(input.shape)), dtype=torch.uint8, device="cuda") if out is None else out


def swizzle_scales_for_gemm_(tensor) -> None:
    """``swizzle.cpp: inplace_swizzle_scale_for_gemm``: MXFP8's scales in the order that matrix units read; other formats
    have none."""
    if not isinstance(tensor, classes().MXFP8Storage) or tensor._with_gemm_swizzled_scales:
        return
    for name in ("_rowwise_scale_inv", "_columnwise_scale_inv"):
        if getattr(tensor, name) is not None:
            kernel("swizzle_scaling_factors")
            setattr(tensor, name, torch.empty_like(getattr(tensor, name)))
    tensor._with_gemm_swizzled_scales = True


def bgrad_quantize(input: Tensor, quantizer):
    """``bias.cpp``: the gradient of a bias [n] and the quantised gradient of the output."""
    source = input.contiguous()
    bias = torch.empty(source.shape[-1], dtype=source.dtype, device=source.device)
    kernel("bias_gradient")
    if quantizer is None:
        return [bias, source]
    output = create(quantizer, source.shape, source.dtype)
    fill(quantizer, source)
    return [bias, output]


def compute_amax(input: Tensor, amax: Tensor) -> None:
    kernel("compute_amax")
