"""Matrix products by cuBLAS: ``csrc/extensions/gemm.cpp`` over ``common/gemm/cublaslt_gemm.cu``.

cuBLAS counts columns first: with A [a0, a1] and B [b0, b1] row by row, the result is ``op(B) @ op(A)`` row by row, so that
layout ``TN`` with A = weight [n, k] and B = input [.., k] gives [.., n].
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from vold_nemo.rehearsal.engine import quantise
from vold_nemo.rehearsal.engine.report import kernel


def output_shape(a: tuple[int, ...], transa: bool, b: tuple[int, ...], transb: bool) -> tuple[int, ...]:
    """``gemm.cpp: getGemmOutputShape``, without communication overlap.  The leading dimensions of B stay apart."""
    a0, a1, b0, b1 = prod(a[:-1]), a[-1], prod(b[:-1]), b[-1]
    if (a1 if transa else a0) != (b0 if transb else b1):
        raise RuntimeError(f"Invalid matrix dimensions for GEMM (A={a}, transa={transa}, B={b}, transb={transb})")
    return (*((b1,) if transb else b[:-1]), a0 if transa else a1)


def _operand(tensor, along_columns: bool, name: str, columns: int):
    """Check that ``tensor`` holds the copy that the product reads (``cublaslt_gemm.cu: CanonicalizeGemmInput``), whose row is
    then ``columns`` long, and that its length is one that FP8 matrix units take.

    :raises RuntimeError: as the library would.
    """
    known = quantise.classes()
    if isinstance(tensor, known.Float8Storage):
        if quantise.any_layout():
            held = tensor._data is not None or tensor._transpose is not None
        elif along_columns:
            held = tensor._transpose is not None and not tensor._transpose_invalid
        else:
            held = tensor._data is not None
    elif isinstance(tensor, known.BlockStorage | known.MXFP8Storage):
        held = (tensor._columnwise_data if along_columns else tensor._rowwise_data) is not None
    else:
        return False
    if not held:
        raise RuntimeError(f"Input {name} is missing {'column' if along_columns else 'row'}-wise usage")
    if columns % 16 and not isinstance(tensor, known.MXFP8Storage):
        raise RuntimeError(f"Leading dimension requirement on {name} for FP8 GEMM: {columns} is no multiple of 16")
    return True


def _check(a, transa: bool, b, transb: bool) -> torch.dtype:
    """Both operands as the product reads them; returns the type of the units that form it."""
    known = quantise.classes()
    if isinstance(a, Tensor) and isinstance(b, Tensor) and not (_is_fp8(a) or _is_fp8(b)):
        return a.dtype
    shape_a, shape_b = tuple(a.size()), tuple(b.size())
    m, k = (prod(shape_a[:-1]), shape_a[-1]) if transa else (shape_a[-1], prod(shape_a[:-1]))
    n = shape_b[-1] if transb else prod(shape_b[:-1])
    # a tensorwise operand is read as it lies where any layout is (Blackwell), everything else along k
    lies = quantise.any_layout()
    low_a = _operand(a, not transa, "A", m if lies and not transa and isinstance(a, known.Float8Storage) else k)
    low_b = _operand(b, transb, "B", n if lies and transb and isinstance(b, known.Float8Storage) else k)
    if low_a != low_b:
        raise RuntimeError("one operand of a GEMM is FP8, the other is not")
    if isinstance(a, known.BlockStorage) and m % 8:
        raise RuntimeError(f"Outer dimension requirement on A for FP8 block scaling: {m} is no multiple of 8")
    if isinstance(b, known.BlockStorage) and not b._is_2D_scaled and n % 8:
        raise RuntimeError(f"Outer dimension requirement on B for FP8 block scaling: {n} is no multiple of 8")
    return quantise.FP8 if low_a else a.dtype


def _is_fp8(tensor) -> bool:
    known = quantise.classes()
    return isinstance(tensor, known.Float8Storage | known.BlockStorage | known.MXFP8Storage)


def _scales_in_order(tensor, along_columns: bool) -> list[Tensor]:
    """Scratch that lives as long as the product: MXFP8's scales as matrix units read them (``swizzle_scales_for_gemm``), or,
    from Blackwell on, blockwise scales as MXFP8's (``convert_block_scaling_to_mxfp8_tensor``)."""
    known = quantise.classes()
    if isinstance(tensor, known.MXFP8Storage) and not tensor._with_gemm_swizzled_scales:
        kernel("swizzle_scaling_factors")
        return [torch.empty_like(tensor._columnwise_scale_inv if along_columns else tensor._rowwise_scale_inv)]
    if isinstance(tensor, known.BlockStorage) and torch.cuda.get_device_capability() >= (10, 0):
        data = tensor._columnwise_data if along_columns else tensor._rowwise_data
        shape = tuple(data.shape)
        rows, columns = (shape[0], prod(shape[1:])) if along_columns else (prod(shape[:-1]), shape[-1])
        kernel("swizzle_block_scaling_to_mxfp8")
        return [torch.empty(quantise.up_to(rows, 128), -(-columns // 128) * 4, dtype=torch.uint8, device=data.device)]
    return []


def generic_gemm(
    A, transA, B, transB, D, quantizer, output_dtype, bias, bias_type, gelu, gelu_in, grad, workspace, workspace_size,
    accumulate, use_split_accumulator, comm_overlap=None, comm_type=None, extra_output=None, bulk_overlap=False, alpha=1.0,
    beta=None,
):  # fmt: skip
    """``gemm.cpp: gemm``: [D, gradient of the bias or None, input of GELU or None, extra output or None]."""
    if comm_overlap is not None:
        raise NotImplementedError("the stand-in does not write GEMMs that overlap with communication (tp_comm_overlap)")
    shape_a, shape_b = tuple(A.size()), tuple(B.size())
    shape = output_shape(shape_a, transA, shape_b, transB)
    dtype = quantise.torch_dtype(output_dtype) if output_dtype is not None else A.dtype
    if D is None:
        D = quantise.create(quantizer, shape, dtype)
    elif tuple(D.shape) != shape or (output_dtype is not None and D.dtype != dtype):
        raise RuntimeError(f"GEMM output has invalid dims or dtype (expected {shape} {dtype}, got {D.shape} {D.dtype})")
    # An FP8 result is formed in high precision and cast, but for delayed scales (gemm.cpp: unfused_quantization_needed).
    unquantised = None
    if quantizer is not None and not (quantise.kind(quantizer) == "delayed" and (_is_fp8(A) or _is_fp8(B))):
        unquantised = torch.empty(shape, dtype=dtype, device="cuda")
    bias_gradient = None
    if bias is not None and grad:
        of = D.dtype if unquantised is None else unquantised.dtype
        bias_gradient = torch.empty(shape_b[-1], dtype=of, device="cuda")
    of_gelu = quantise.torch_dtype(bias_type) if _is_fp8(A) or _is_fp8(B) else dtype
    before_gelu = torch.empty(shape, dtype=of_gelu, device="cuda") if gelu and not grad else None
    if prod(shape_a) and prod(shape_b):
        units = _check(A, transA, B, transB)
        scratch = _scales_in_order(A, not transA) + _scales_in_order(B, transB)
        inner = prod(shape_a) // shape[-1]
        kernel("cublas_gemm", flops=2 * prod(shape) * inner, dtype=units)
        del scratch
    if unquantised is not None:
        quantise.fill(quantizer, unquantised)
    return [D, bias_gradient, before_gelu, extra_output]


def te_general_grouped_gemm(
    A, transa, B, transb, D, D_type, m_splits, bias, bias_type, single_output, pre_gelu_out, grad, workspace, workspaceSize,
    accumulate, use_split_accumulator, math_sm_count,
):  # fmt: skip
    """``gemm.cpp: te_general_grouped_gemm``: one product per expert, over four streams; ``single_output``: the results are
    the rows of ``D[0]`` one below the other.  Returns ``bias`` (in a backward pass its gradients)."""
    if single_output and D is None:
        raise RuntimeError("not implemented, D should be allocated for single output case.")
    below, scratch = 0, []
    for i, (a, b) in enumerate(zip(A, B, strict=True)):
        shape_a, shape_b = tuple(a.size()), tuple(b.size())
        shape = output_shape(shape_a, transa, shape_b, transb)
        below += prod(shape)
        if not single_output and tuple(D[i].shape) != shape:
            raise RuntimeError(f"grouped GEMM {i} gives {shape}, its output is {tuple(D[i].shape)}")
        if not (prod(shape_a) and prod(shape_b)):
            continue
        units = _check(a, transa, b, transb)
        scratch += _scales_in_order(a, not transa) + _scales_in_order(b, transb)
        kernel("multi_tensor_gemm", flops=2 * prod(shape) * (prod(shape_a) // shape[-1]), dtype=units)
    if single_output and below != D[0].numel():
        raise RuntimeError(f"grouped GEMMs give {below} numbers, their output holds {D[0].numel()}")
    return bias


def get_num_cublas_streams() -> int:
    """``common/util/multi_stream.cpp``; each stream has a workspace of its own (``cpp_extensions/gemm.py``)."""
    return 4


def get_cublasLt_version() -> int:
    """CUDA 13.0's, supposed.  From 13.3 on Transformer Engine could form grouped products in one kernel, if it were asked to
    (``module/grouped_linear.py: use_grouped_tensor``); megatron-core does not ask."""
    return 130000
