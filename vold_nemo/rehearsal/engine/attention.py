"""cuDNN's fused attention (``csrc/extensions/attention.cpp``) and what context parallelism does around it.

Which backend runs is Transformer Engine's own decision (``attention/dot_product_attention/utils.py: get_attention_backend``);
of it only the question whether cuDNN takes a case is answered here.  Without the package ``flash-attn`` that is the fused
backend for every case that this project forms: bf16, heads of up to 128, causal, padded or packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vold_nemo.rehearsal.engine import quantise, report
from vold_nemo.rehearsal.engine.declared import ENUMS
from vold_nemo.rehearsal.engine.report import kernel

CUDNN = 92000  # 9.20, supposed: no answer given here changes from 9.12, the oldest that this engine takes, on

_LAYOUTS = {int(value): name for name, value in (pair.split("=") for pair in ENUMS["NVTE_QKV_Layout"].split())}
_FORMATS = {int(value): name for name, value in (pair.split("=") for pair in ENUMS["NVTE_QKV_Format"].split())}
_AXES = {"SBHD": "sbhd", "BSHD": "bshd", "THD": "thd", "BHSD": "bhsd"}


def get_cudnn_version() -> int:
    return CUDNN


def formats(layout) -> tuple[str, str]:
    """Order of the axes of (query, key and value): ``sbhd`` | ``bshd`` | ``thd`` | ``bhsd``, from e.g. ``THD_BSHD_BSHD``."""
    name = _LAYOUTS[int(layout)].removeprefix("NVTE_").removeprefix("Paged_KV_")
    parts = name.replace("2", "").replace("3", "").split("_")
    return _axes(parts[0]), _axes(parts[-1])


def _axes(part: str) -> str:
    return _AXES.get(part, part.lower())


def get_fused_attn_backend(fused_attn_params):
    """(backend, why not): the part of ``fused_attn.cpp: nvte_get_fused_attn_backend`` that cases of this project reach.

    The extension's sources do not carry that file; what stands here follows 2.20.0.dev, which decides by rules, where 2.20.2
    has cuDNN's frontend look at the graph (``fused_attn/graph_cache.h: check_support``).  They may differ for packed sequences
    below compute capability 9.0: the rules refuse them, the frontend refuses (from 9.18.1 on) the backward pass alone
    (``scaled_dot_product_flash_attention.h``: "Packed/ragged LSE is not supported for bprop thd on SM8X").

    :raises NotImplementedError: for a case outside it, rather than a guess.
    """
    import transformer_engine_torch as tex

    p = fused_attn_params
    backends = tex.NVTE_Fused_Attn_Backend
    capability = torch.cuda.get_device_capability()
    query, key = formats(p.qkv_layout)
    bf16 = quantise.torch_dtype(p.qkv_dtype) in (torch.bfloat16, torch.float16)
    plain = (
        bf16 and not p.return_max_logit and p.dropout == 0
        and p.bias_type == tex.NVTE_Bias_Type.NVTE_NO_BIAS
        and p.softmax_type == tex.NVTE_Softmax_Type.NVTE_VANILLA_SOFTMAX
        and not _LAYOUTS[int(p.qkv_layout)].startswith("NVTE_Paged")
        and p.window_size_left == -1 and p.window_size_right in (-1, 0)
    )  # fmt: skip
    if not plain:
        raise NotImplementedError(f"the stand-in does not know whether cuDNN takes this attention: {p}")
    if capability < (8, 0):
        return backends.NVTE_No_Backend, "compute capability below 8.0"
    if p.head_dim_qk % 8 or p.head_dim_v % 8:
        return backends.NVTE_No_Backend, "head dimension is no multiple of 8"
    if max(p.head_dim_qk, p.head_dim_v) > (256 if capability[0] == 9 else 128):
        return backends.NVTE_No_Backend, "head dimension"
    if "thd" in (query, key):
        masks = tex.NVTE_Mask_Type
        padding = (masks.NVTE_PADDING_MASK, masks.NVTE_PADDING_CAUSAL_MASK, masks.NVTE_PADDING_CAUSAL_BOTTOM_RIGHT_MASK)
        if capability < (9, 0):
            return backends.NVTE_No_Backend, "packed sequences need compute capability 9.0"
        if p.attn_mask_type not in padding:
            return backends.NVTE_No_Backend, "packed sequences need a padding mask"
    return backends.NVTE_F16_arbitrary_seqlen, ""


def _sizes(axes: str, tensor, b: int, s: int) -> tuple[int, int, int, int]:
    """(b, s, h, d) of ``tensor``; of a packed one b and s are those asked for."""
    shape = dict(zip(axes, tuple(tensor.size()), strict=True))
    return shape.get("b", b), shape.get("s", s), shape["h"], shape["d"]


def _arranged(axes: str, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] for axis in axes)


def _bucket(tokens: int) -> int:
    """``fused_attn/utils.cu: get_max_tokens``: graphs of packed sequences are built for rounded numbers of tokens."""
    if tokens <= 1024:
        return 1024
    return 1 << (tokens - 1).bit_length() if tokens <= 32768 else quantise.up_to(tokens, 32768)


def _work(q, k, v, axes: tuple[str, str], bounds: tuple[Tensor, Tensor], causal: bool) -> float:
    """Operations of the two products of a forward pass; a causal mask leaves half.

    ``bounds``: where packed sequences begin (cu_seqlens of queries and keys).  Where nobody knows their values
    (:data:`report.values_of`), sequences count as equally long.
    """
    heads, d, d_v = q.size(-2), q.size(-1), v.size(-1)
    if axes[0] != "thd":
        b, s, heads, _ = _sizes(axes[0], q, 0, 0)
        pairs = b * s * _sizes(axes[1], k, 0, 0)[1]
    else:
        known = [report.values_of(one) for one in bounds]
        if None in known:
            pairs = q.size(0) * k.size(0) / (bounds[0].shape[0] - 1)
        else:
            of_q, of_k = (one.diff().double() for one in known)
            pairs = float(of_q @ of_k)
    return 2 * pairs * heads * (d + d_v) * (0.5 if causal else 1)


def _is_causal(mask) -> bool:
    return "CAUSAL" in mask.name


def _refuse_fp8(**quantizers) -> None:
    for name, quantizer in quantizers.items():
        if quantizer is not None:
            raise NotImplementedError(f"the stand-in does not write FP8 attention ({name}: {type(quantizer).__name__})")


def fused_attn_fwd(
    max_seqlen_q, max_seqlen_kv, is_training, attn_scale, p_dropout, set_zero, qkv_layout, o_format, qkv_scale_inv_format,
    bias_type, attn_mask_type, softmax_type, window_size, bottom_right_diagonal, cu_seqlens_q, cu_seqlens_kv, Q, K, V,
    fake_dtype, cu_seqlens_q_padded, cu_seqlens_kv_padded, page_table_k, page_table_v, s_quantizer, o_quantizer, Bias,
    SoftmaxOffset, rng_gen, rng_elts_per_thread, return_max_logit, cuda_graph,
):  # fmt: skip
    """[output like Q in ``o_format``, softmax statistics fp32, random state int64 [2]].

    The statistics are [b, h, s, 1], or [t, h, 1] of packed sequences (``fused_attn_f16_arbitrary_seqlen.cu``); they are made
    in inference, too (``attention.cpp`` allocates them whatever ``is_training`` says).
    """
    _refuse_fp8(s_quantizer=s_quantizer, o_quantizer=o_quantizer)
    if Bias is not None or SoftmaxOffset is not None or page_table_k is not None or return_max_logit:
        raise NotImplementedError("the stand-in writes attention without bias, softmax offset, pages and largest logit")
    axes = formats(qkv_layout)
    batch = cu_seqlens_q.shape[0] - 1
    b, s, h, _ = _sizes(axes[0], Q, batch, max_seqlen_q)
    to = _axes(_FORMATS[int(o_format)].removeprefix("NVTE_"))
    packed = axes[0] == "thd"
    sizes = dict(b=b, s=s, h=h, d=V.size(-1), t=Q.size(0) if packed else b * s)
    output = torch.empty(_arranged(to, sizes), dtype=fake_dtype, device="cuda")
    if to == "thd":
        output.zero_()
    rng_state = torch.empty(2, dtype=torch.int64, device="cuda")
    rows = (sizes["t"], h, 1) if packed and torch.cuda.get_device_capability() != (12, 0) else (b, h, max_seqlen_q, 1)
    statistics = torch.empty(rows, dtype=torch.float32, device="cuda")
    work = _work(Q, K, V, axes, (cu_seqlens_q, cu_seqlens_kv), _is_causal(attn_mask_type))
    kernel("fused_attn_fwd", flops=work, dtype=Q.dtype)
    return [output, statistics, rng_state]


def _backward_workspace(axes: tuple[str, str], q, k, lengths: tuple[int, int], batch: int, deterministic: bool) -> int:
    """Bytes that cuDNN's frontend asks for in a backward pass, of the graph that it composes
    (``cudnn_frontend/node/scaled_dot_product_flash_attention.h: get_fe_workspace_size_node``): dQ summed in fp32, the row
    sums of dO * O, and, with grouped queries in packed sequences, dK and dV of every query head in fp32.

    What the engine behind it takes besides (for grouped queries in unpacked sequences, dK and dV of every query head) is
    known to the library alone and not counted.
    """
    _, s_q, heads, d = _sizes(axes[0], q, batch, lengths[0])
    groups = _sizes(axes[1], k, batch, lengths[1])[2]
    if axes[0] == "thd":
        tokens_q, tokens_kv = _bucket(q.size(0)), _bucket(k.size(0))
        full_heads = 2 * tokens_kv * heads * d * 4 if heads != groups else 0
    else:
        tokens_q, full_heads = _sizes(axes[0], q, 0, 0)[0] * s_q, 0
    return tokens_q * heads * 4 + (0 if deterministic else tokens_q * heads * d * 4) + full_heads


def fused_attn_bwd(
    max_seqlen_q, max_seqlen_kv, attn_scale, p_dropout, set_zero, qkv_layout, o_format, do_format, dqkv_layout,
    qkv_scale_inv_format, do_scale_inv_format, bias_type, attn_mask_type, softmax_type, window_size, bottom_right_diagonal,
    deterministic, cu_seqlens_q, cu_seqlens_kv, Q, K, V, O, dO, fake_dtype, Aux_CTX_Tensors, cu_seqlens_q_padded,  # noqa: E741
    cu_seqlens_kv_padded, s_quantizer, dp_quantizer, dqkv_quantizer, cuda_graph,
):  # fmt: skip
    """[dQ, dK, dV, gradient of the bias, of the softmax offset].  In layouts that interleave q, k and v the gradients are
    views of one buffer, interleaved likewise."""
    _refuse_fp8(s_quantizer=s_quantizer, dp_quantizer=dp_quantizer, dqkv_quantizer=dqkv_quantizer)
    axes = formats(qkv_layout)
    gradients = _gradients(dqkv_layout, tuple(Q.size()), tuple(K.size()), tuple(V.size()), fake_dtype)
    for gradient, of in zip(gradients, (axes[0], axes[1], axes[1]), strict=True):
        if of == "thd":
            gradient.fill_(0)
    lengths, batch = (max_seqlen_q, max_seqlen_kv), cu_seqlens_q.shape[0] - 1
    size = _backward_workspace(axes, Q, K, lengths, batch, deterministic)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    forward = _work(Q, K, V, axes, (cu_seqlens_q, cu_seqlens_kv), _is_causal(attn_mask_type))
    kernel("fused_attn_bwd", flops=2.5 * forward, dtype=Q.dtype)  # five products where the forward pass forms two
    del workspace
    return [*gradients, None, None]


def _gradients(layout, q, k, v, dtype) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV as ``attention.cpp: fused_attn_bwd`` lays them out by the layout's group."""
    name = _LAYOUTS[int(layout)].removeprefix("NVTE_")

    def empty(*shape):
        return torch.empty(shape, dtype=dtype, device="cuda")

    if "3" in name:
        at = -2 if name.endswith("3HD") else -1  # 3 stands before the heads, or before their dimension
        whole = empty(*q[:at], 3, *q[at:])
        return tuple(whole.unbind(whole.dim() + at - 1))
    if "2" in name:
        at = -2 if name.endswith("2HD") else -1
        pair = empty(*k[:at], 2, *k[at:])
        return (empty(*q), *pair.unbind(pair.dim() + at - 1))
    return empty(*q), empty(*k), empty(*v)


def convert_thd_to_bshd(tensor, cu_seqlens, b, max_seq_len):
    kernel("convert_thd_to_bshd")
    return torch.zeros((b, max_seq_len, *tensor.shape[1:]), dtype=tensor.dtype, device="cuda")


def convert_bshd_to_thd(tensor, cu_seqlens, t):
    kernel("convert_bshd_to_thd")
    return torch.zeros((t, *tensor.shape[2:]), dtype=tensor.dtype, device="cuda")


def thd_read_half_tensor(tensor, cu_seqlens, half_idx):
    """The first or second half of each packed sequence: of [t, h, d], or of [2, t, h, d] (key and value)."""
    axis = 0 if tensor.dim() == 3 else 1
    shape = list(tensor.shape)
    shape[axis] //= 2
    kernel("thd_read_half_tensor")
    return torch.empty(shape, dtype=tensor.dtype, device="cuda")


def thd_read_second_half_lse(lse, cu_seqlens, lse_packed, second_half_lse_seqlen):
    kernel("thd_read_second_half_lse")
    return torch.zeros((*lse.shape[:-1], second_half_lse_seqlen), dtype=lse.dtype, device="cuda")


def thd_second_half_lse_correction(lse, lse_per_step, cu_seqlens, lse_packed) -> None:
    kernel("thd_second_half_lse_correction")


def thd_out_correction(out, out_per_step, old_lse, lse, lse_per_step, cu_seqlens, only_second_half, lse_packed) -> None:
    kernel("thd_out_correction")


def thd_grad_correction(grad, grad_per_step, cu_seqlens, first_half, second_half) -> None:
    kernel("thd_grad_correction")


def thd_get_partitioned_indices(cu_seqlens, total_tokens, world_size, rank):
    kernel("thd_get_partitioned_indices")
    return torch.empty(total_tokens // world_size, dtype=torch.int32, device="cuda")


def _reordered(inp, cp_size: int, total_tokens: int) -> Tensor:
    if total_tokens % (2 * cp_size) or inp.shape[0] != total_tokens:
        raise RuntimeError(f"{inp.shape[0]} tokens do not reorder over {cp_size} ranks of context parallelism")
    kernel("thd_reorder")
    return torch.empty_like(inp.contiguous())


def thd_sequence_order_to_cp_rank_order(inp, cu_seqlens, cp_size, total_tokens):
    return _reordered(inp, cp_size, total_tokens)


def thd_cp_rank_order_to_sequence_order(inp, cu_seqlens, cp_size, total_tokens):
    return _reordered(inp, cp_size, total_tokens)


def multi_tensor_transpose_to_bhsd(inputs, original_format, outputs=()):
    """[b, h, s, d] of each of ``inputs`` ([s, b, h, d] or [b, s, h, d])."""
    order = (1, 2, 0, 3) if original_format == "sbhd" else (0, 2, 1, 3)
    results = []
    for i, tensor in enumerate(inputs):
        into = outputs[i] if outputs else None
        if tensor is not None and into is None:
            into = torch.empty([tensor.shape[axis] for axis in order], dtype=tensor.dtype, device=tensor.device)
        results.append(None if tensor is None else into)
    kernel("multi_tensor_transpose_to_bhsd")
    return results


