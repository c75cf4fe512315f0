"""Norms, activations, softmax, rotary embedding, permutation and padding: kernels that write what they are given or one
tensor of a plain shape."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from vold_nemo.rehearsal.engine import quantise
from vold_nemo.rehearsal.engine.report import kernel


def _processors(margin: int) -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count - margin


def _norm_fwd(name: str, input: Tensor, ln_out, quantizer, otype, statistics: list[Tensor]):
    """``normalization.cpp: rmsnorm_fwd`` and ``layernorm_fwd``: the normalised values, cast by ``quantizer`` in a second step
    (``Impl::UNFUSED``) but for delayed scales; tensorwise the norm's own kernel finds the largest value."""
    shape, dtype = tuple(input.shape), quantise.torch_dtype(otype)
    which = quantise.kind(quantizer)
    output = quantise.create(quantizer, shape, dtype) if ln_out is None else ln_out
    kernel(name, dtype=input.dtype)
    if which not in (None, "delayed"):
        values = torch.empty(shape, dtype=dtype, device="cuda")
        amax = torch.zeros(1, dtype=torch.float32, device="cuda") if which == "tensorwise" else None
        quantise.fill(quantizer, values, amax)
    return output, statistics


def rmsnorm_fwd(input, weight, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma):
    """[normalised input, None, 1 / root mean square of each row in fp32]."""
    rows = prod(input.shape[:-1])
    sigma = torch.empty(rows, dtype=torch.float32, device="cuda")
    output, _ = _norm_fwd("rmsnorm_fwd", input, ln_out, quantizer, otype, [sigma])
    return [output, None, sigma]


def layernorm_fwd(input, weight, bias, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma):
    """[normalised input, mean, 1 / standard deviation] of each row, the last two in fp32."""
    rows = prod(input.shape[:-1])
    statistics = [torch.empty(rows, dtype=torch.float32, device="cuda") for _ in range(2)]
    output, statistics = _norm_fwd("layernorm_fwd", input, ln_out, quantizer, otype, statistics)
    return [output, *statistics]


def _norm_bwd(name: str, dz: Tensor, x: Tensor, gamma: Tensor, sm_margin: int, sums: int) -> tuple[Tensor, list[Tensor]]:
    """Gradients of input and of ``sums`` parameters, with the fp32 partial sums that each processor keeps of the latter
    (``rmsnorm_bwd_semi_cuda_kernel.cu: dgamma_part_bytes``; one block per processor is supposed, since how many fit is for
    the driver to say)."""
    x = x.contiguous()
    gradients = [torch.empty_like(gamma.contiguous()) for _ in range(sums)]
    dx = torch.empty_like(x)
    partial = torch.empty(sums * _processors(sm_margin) * x.shape[-1] * 4, dtype=torch.uint8, device=x.device)
    kernel(name, dtype=dz.dtype)
    del partial
    return dx, gradients


def rmsnorm_bwd(dz, x, rsigma, gamma, sm_margin, zero_centered_gamma):
    dx, (dgamma,) = _norm_bwd("rmsnorm_bwd", dz, x, gamma, sm_margin, 1)
    return [dx, dgamma]


def rmsnorm_bwd_add(dz, x, add, rsigma, gamma, sm_margin, zero_centered_gamma):
    dx, (dgamma,) = _norm_bwd("rmsnorm_bwd_add", dz, x, gamma, sm_margin, 1)
    return [dx, dgamma]


def layernorm_bwd(dz, x, mu, rsigma, gamma, sm_margin, zero_centered_gamma):
    dx, (dgamma, dbeta) = _norm_bwd("layernorm_bwd", dz, x, gamma, sm_margin, 2)
    return [dx, dgamma, dbeta]


def _written(name: str, shape, dtype: torch.dtype, quantizer):
    """``activation.cpp``: one kernel for a plain, delayed or MXFP8 output, else a plain one that is then cast."""
    which = quantise.kind(quantizer)
    output = quantise.create(quantizer, shape, dtype)
    kernel(name, dtype=dtype)
    if which in ("tensorwise", "blockwise"):
        values = torch.empty(tuple(shape), dtype=dtype, device="cuda")
        amax = torch.zeros(1, dtype=torch.float32, device="cuda") if which == "tensorwise" else None
        quantise.fill(quantizer, values, amax)
    return output


def _activation(name: str, divisor: int) -> Callable:
    def forward(input, quantizer):
        return _written(name, (*input.shape[:-1], input.shape[-1] // divisor), input.dtype, quantizer)

    forward.__name__ = name
    forward.__doc__ = f"``activation.cpp: activation_helper``: the last dimension over {divisor}."
    return forward


def _activation_gradient(name: str) -> Callable:
    def backward(grad, fwd_input, quantizer):
        return _written(name, fwd_input.shape, fwd_input.dtype, quantizer)

    backward.__name__ = name
    backward.__doc__ = "``activation.cpp: dactivation_helper``: the gradient of the input, in its shape."
    return backward


ACTIVATIONS = {name: _activation(name, 1) for name in ("gelu", "qgelu", "relu", "srelu", "silu")}
ACTIVATIONS |= {name: _activation(name, 2) for name in ("glu", "geglu", "qgeglu", "reglu", "sreglu", "swiglu")}
ACTIVATIONS |= {"d" + name: _activation_gradient("d" + name) for name in tuple(ACTIVATIONS)}


def scaled_softmax_forward(input, scale_factor):
    kernel("scaled_softmax_forward")
    return torch.empty_like(input)


def scaled_softmax_backward(output_grad_, softmax_results_, scale_factor):
    """In place: the gradient replaces the output's."""
    kernel("scaled_softmax_backward")
    return output_grad_


def fused_rope_forward(input, freqs, start_positions, qkv_format, interleaved, cu_seqlens, cp_size, cp_rank):
    kernel("fused_rope_forward")
    return torch.empty(tuple(input.shape), dtype=input.dtype, device=input.device)


def fused_rope_backward(output_grads, freqs, start_positions, qkv_format, interleaved, cu_seqlens, cp_size, cp_rank):
    kernel("fused_rope_backward")
    return torch.empty(tuple(output_grads.shape), dtype=output_grads.dtype, device=output_grads.device)


def moe_unpermute_fwd(input, dtype, row_id_map, prob, num_tokens, topK):
    kernel("unpermute")
    return torch.empty(num_tokens, input.shape[1], dtype=input.dtype, device="cuda")


def moe_permute_bwd(input, dtype, row_id_map, prob, num_tokens, topK):
    return moe_unpermute_fwd(input, dtype, row_id_map, prob, num_tokens, topK)


def moe_unpermute_bwd(input_bwd, input_fwd, dtype, row_id_map, prob):
    rows, k = prob.shape if prob.numel() else (row_id_map.shape[0], 1)
    kernel("permute")
    gradient = torch.empty(input_fwd.shape[0], input_bwd.shape[1], dtype=input_bwd.dtype, device="cuda")
    return gradient, torch.empty(rows, k, dtype=torch.float32, device="cuda")


def fused_multi_row_padding(input, output, input_row_list, padded_input_row_list) -> None:
    kernel("multi_padding")


def fused_multi_row_unpadding(input, output, input_row_list, unpadded_input_row_list) -> None:
    kernel("multi_unpadding")


def swap_first_dims(tensor, *, out):
    """[b, a, ..] of [a, b, ..]."""
    kernel("swap_first_dims")
    source = tensor.contiguous()
    if out is not None:
        return out
    return torch.empty((source.shape[1], source.shape[0], *source.shape[2:]), dtype=source.dtype, device=source.device)


def splits_to_offsets(first_dims, logical_last_dim):
    """int64 [n + 1]: where each of n tensors of ``first_dims`` rows starts."""
    kernel("splits_to_offsets")
    return torch.empty(first_dims.shape[0] + 1, dtype=torch.int64, device=first_dims.device)
