"""What Transformer Engine 2.20.2's compiled extension declares to Python: functions and their arguments, enumerators.

Both tables are read from the source distribution of ``transformer_engine_torch`` 2.20.2 by
``tests/rehearsal/pybind_source.py`` (``csrc/extensions/pybind.cpp``, ``csrc/extensions.h``, the headers of the common
library), and a test compares them again.  An argument with ``=`` has a default; those after ``*`` go by keyword.  Where
pybind names no arguments they are positional, and the names are those of the C++ declaration.
"""

from __future__ import annotations

import enum
import re

FUNCTIONS = """
bgrad_group_quantize(tensor, quantizer, num_tensors, first_dims, last_dims=, tensor_offsets=)
bgrad_quantize(input, quantizer)
bulk_allocate(shapes, dtypes, device=, alignments=)
bulk_overlap_ag_with_external_gemm(allgather_communicator, send_stream, recv_stream)
clamped_dswiglu(grad, fwd_input, quantizer, limit=, alpha=, glu_linear_offset=)
clamped_swiglu(input, quantizer, limit=, alpha=, glu_linear_offset=)
compute_amax(input, amax)
convert_bshd_to_thd(tensor, cu_seqlens, t)
convert_thd_to_bshd(tensor, cu_seqlens, b, max_seq_len)
copy_data_ptrs_to_device(tensors, device)
copy_to_kv_cache(new_k, new_v, k_cache, v_cache, page_table, cu_new_lens, cu_cached_lens, kv_format, b, max_ctx_len,
    max_seq_len, max_pages_per_seq, is_non_paged)
create_empty_quantized_tensor(quantizer, shape, dtype, device, pin_memory)
create_nvshmem_tensor(shape, dtype)
cusolvermp_ctx_create(nccl_comm_ptr, nranks, rank)
cusolvermp_ctx_destroy(ctx_ptr)
dbias_dgelu(grad, fwd_input, quantizer)
dbias_dqgelu(grad, fwd_input, quantizer)
dbias_drelu(grad, fwd_input, quantizer)
dbias_dsilu(grad, fwd_input, quantizer)
dbias_dsrelu(grad, fwd_input, quantizer)
dequantize(input, otype)
device_supports_multicast(device_id=)
dgeglu(grad, fwd_input, quantizer)
dgelu(grad, fwd_input, quantizer)
dglu(grad, fwd_input, quantizer)
dqgeglu(grad, fwd_input, quantizer)
dqgelu(grad, fwd_input, quantizer)
dreglu(grad, fwd_input, quantizer)
drelu(grad, fwd_input, quantizer)
dropout_bwd(grad_output, mask, dropout_probability, grad_input=)
dropout_fwd(input, dropout_probability, out=)
dsilu(grad, fwd_input, quantizer)
dsituglu(grad, fwd_input, quantizer, beta1=, beta2=)
dsreglu(grad, fwd_input, quantizer)
dsrelu(grad, fwd_input, quantizer)
dswiglu(grad, fwd_input, quantizer)
fa_prepare_bwd(q, k, v)
fa_prepare_fwd(qkvi)
fp8_block_scaling_compute_partial_amax(tensor, amax, h, w, start_offset, block_len)
fp8_block_scaling_partial_cast(inp, out, scale, h, w, start_offset, block_len, out_dtype)
fp8_transpose(input, dtype, *, out)
fused_amax_and_scale_update_after_reduction(amax_reduction_buffer, amax_histories, scales, amax_compute_algo,
    fp8_dtype, margin)
fused_attn_bwd(max_seqlen_q, max_seqlen_kv, attn_scale, p_dropout, set_zero, qkv_layout, o_format, do_format,
    dqkv_layout, qkv_scale_inv_format, do_scale_inv_format, bias_type, attn_mask_type, softmax_type, window_size,
    bottom_right_diagonal, deterministic, cu_seqlens_q, cu_seqlens_kv, Q, K, V, O, dO, fake_dtype, Aux_CTX_Tensors,
    cu_seqlens_q_padded, cu_seqlens_kv_padded, s_quantizer, dp_quantizer, dqkv_quantizer, cuda_graph)
fused_attn_fwd(max_seqlen_q, max_seqlen_kv, is_training, attn_scale, p_dropout, set_zero, qkv_layout, o_format,
    qkv_scale_inv_format, bias_type, attn_mask_type, softmax_type, window_size, bottom_right_diagonal, cu_seqlens_q,
    cu_seqlens_kv, Q, K, V, fake_dtype, cu_seqlens_q_padded, cu_seqlens_kv_padded, page_table_k, page_table_v,
    s_quantizer, o_quantizer, Bias, SoftmaxOffset, rng_gen, rng_elts_per_thread, return_max_logit, cuda_graph)
fused_moe_aux_loss_bwd(Const_buf, tokens_per_expert, num_rows, num_cols, grad_aux_loss)
fused_moe_aux_loss_fwd(probs, tokens_per_expert, total_num_tokens, num_experts, num_rows, num_cols, topk, coeff)
fused_moe_aux_loss_fwd_graph_safe(probs, tokens_per_expert, total_num_tokens, num_experts, num_rows, num_cols, topk,
    coeff)
fused_multi_row_padding(input, output, input_row_list, padded_input_row_list)
fused_multi_row_unpadding(input, output, input_row_list, unpadded_input_row_list)
fused_qkv_rope_backward(q_grad_out, k_grad_out, v_grad_out, q_freqs, k_freqs, qkv_split_arg_list, qkv_format,
    interleaved, cp_size, cp_rank)
fused_qkv_rope_forward(qkv_input, q_freqs, k_freqs, start_positions, qkv_split_arg_list, qkv_format, interleaved,
    cp_size, cp_rank)
fused_rope_backward(output_grads, freqs, start_positions, qkv_format, interleaved, cu_seqlens, cp_size, cp_rank)
fused_rope_forward(input, freqs, start_positions, qkv_format, interleaved, cu_seqlens, cp_size, cp_rank)
fused_score_for_moe_aux_loss_bwd(intermediate_output, grad_scores, grad_logits, topk, score_function)
fused_score_for_moe_aux_loss_fwd(logits, topk, score_function, routing_map_format=)
fused_topk_with_score_function_bwd(routing_map, intermediate_output, grad_probs, grad_logits, topk, use_pre_softmax,
    scaling_factor, score_function, use_dense_indices=, routing_map_format=)
fused_topk_with_score_function_fwd(logits, topk, use_pre_softmax, num_groups, group_topk, scaling_factor,
    score_function, expert_bias, routing_map_format=, topk_indices=)
fused_topk_with_score_function_qb_fwd(logits, topk, scaling_factor, expert_bias, routing_map_format, topk_indices,
    histogram, bin_bounds, histogram_mode, bin_bounds_validated=)
geglu(input, quantizer)
gelu(input, quantizer)
generic_gemm(A, transA, B, transB, D, quantizer, output_dtype, bias, bias_type, gelu, gelu_in, grad, workspace,
    workspace_size, accumulate, use_split_accumulator, comm_overlap=, comm_type=, extra_output=, bulk_overlap=,
    alpha=, beta=)
get_cublasLt_version()
get_cudnn_version()
get_fused_attn_backend(fused_attn_params)
get_grouped_gemm_setup_workspace_size(num_tensors)
get_num_cublas_streams()
get_stream_priority_range(device_id=)
glu(input, quantizer)
group_dequantize(input, otype)
group_quantize(tensor, quantizer, num_tensors, first_dims, last_dims=, tensor_offsets=, noop_flag=, output=)
group_requantize_inplace(grouped_x, quantizer, num_tensors, first_dims, otype, tensor_offsets=, return_dequantized=)
group_scaled_clamped_swiglu(input_2h, prob, quantizer, num_tensors, limit, alpha=, glu_linear_offset=, first_dims=,
    last_dims=, tensor_offsets=)
group_scaled_swiglu(input_2h, prob, quantizer, num_tensors, first_dims=, last_dims=, tensor_offsets=)
grouped_mlp_experimental.swizzle_scales_and_pack_ptrs_for_discrete_weights(data_tensors, scale_tensors,
    swizzle_type, device)
grouped_swizzle_for_gemm(tensor, rowwise, columnwise)
init_nvshmem_backend(process_group)
layernorm_bwd(dz, x, mu, rsigma, gamma, sm_margin, zero_centered_gamma)
layernorm_fwd(input, weight, bias, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma)
moe_permute_bwd(input, dtype, row_id_map, prob, num_tokens, topK)
moe_permute_fwd(input, dtype, indices, num_out_tokens, workspace, max_expanded_token_num)
moe_unpermute_bwd(input_bwd, input_fwd, dtype, row_id_map, prob)
moe_unpermute_fwd(input, dtype, row_id_map, prob, num_tokens, topK)
multi_tensor_adam(chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction,
    weight_decay)
multi_tensor_adam_capturable(chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode,
    bias_correction, weight_decay, inv_scale)
multi_tensor_adam_capturable_master(chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode,
    bias_correction, weight_decay, inv_scale)
multi_tensor_adam_fp8(chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction,
    weight_decay, fp8_dtype)
multi_tensor_adam_param_remainder(chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode,
    bias_correction, weight_decay)
multi_tensor_compute_scale_and_scale_inv(chunk_size, noop_flag, tensor_lists, max_fp8, force_pow_2_scales, epsilon)
multi_tensor_compute_scale_inv_e8m0(chunk_size, dummy, tensor_lists)
multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor_python)
multi_tensor_pad_last_dim(inputs, alignment)
multi_tensor_quantize(tensor_list, quantizer_list)
multi_tensor_scale(chunk_size, noop_flag, tensor_lists, scale)
multi_tensor_scale_tensor(chunk_size, is_infinite, tensor_lists, scale)
multi_tensor_sgd(chunk_size, noop_flag, tensor_lists, wd, momentum, dampening, lr, nesterov, first_run,
    wd_after_momentum, scale)
multi_tensor_swizzle_scales_for_gemm_(tensors, rowwise_usage, columnwise_usage)
multi_tensor_swizzle_scales_for_gemm_unchecked_(tensors, rowwise_usage, columnwise_usage)
multi_tensor_transpose_to_bhsd(inputs, original_format, outputs=)
multi_tensor_unscale_l2norm(chunk_size, noop_flag, tensor_lists, inv_scale, per_tensor_python)
mxfp8_scaling_compute_partial_amax(input, amax_rowwise, amax_colwise, rows, cols, start_offset)
mxfp8_scaling_partial_cast(input, output_rowwise, output_colwise, scale_inv_rowwise, scale_inv_colwise, rows, cols,
    start_offset)
newton_schulz(ctx_ptr, m, n, x, num_iterations, coefficients)
nvfp4_2d_compute_partial_amax(tensor, amax, h, w, start_offset, block_len=)
nvfp4_2d_multi_tensor_transpose(rowwise_data_list, columnwise_data_list, rowwise_scale_inv_list,
    columnwise_scale_inv_list, M_list, K_list)
nvfp4_2d_partial_cast(inp, out, scale, global_scale, h, w, start_offset, block_len=)
nvfp4_2d_scale_transpose(input, output, M_tiles, K_tiles)
nvfp4_compute_global_scale(global_amax, global_scale)
nvfp4_compute_per_block_scale(block_amax, scale, global_amax)
nvfp4_data_transpose(input, *, out)
nvfp4_expand_scale_to_fp8(input, output, tile_rows, tile_cols, rows_padded, block_len)
nvfp4_fused_scale(block_amax, global_amax, per_block_scale, target_scale, target_amax, tile_rows, tile_cols,
    rows_padded, block_len)
nvfp4_group_quantize_with_amax(tensor, quantizer, num_tensors, first_dims, last_dims=, rowwise_amax,
    columnwise_amax, tensor_offsets=)
nvfp4_multi_tensor_2d_partial_cast(inp_list, out_list, scale_list, global_scale_list, h_list, w_list,
    start_offset_list, block_len=)
nvfp4_multi_tensor_compute_partial_amax(master_weight_list, partial_amax_list, global_amax_list, h_list, w_list,
    start_offset_list, block_len=)
nvfp4_multi_tensor_fused_scale(block_amax_list, global_amax_list, per_block_scale_list, target_scale_list,
    target_amax_list, tile_rows_list, tile_cols_list, rows_padded_list, block_len)
nvfp4_quantize_with_amax(tensor, quantizer, rowwise_amax, columnwise_amax)
nvshmem_finalize()
nvshmem_send_on_current_stream(src, dst, peer, signal)
nvshmem_wait_on_current_stream(signal, wait_kind)
nvte_built_with_cublasmp()
qgeglu(input, quantizer)
qgelu(input, quantizer)
quantize(tensor, quantizer, output=, noop=)
reglu(input, quantizer)
relu(input, quantizer)
rmsnorm_bwd(dz, x, rsigma, gamma, sm_margin, zero_centered_gamma)
rmsnorm_bwd_add(dz, x, add, rsigma, gamma, sm_margin, zero_centered_gamma)
rmsnorm_fwd(input, weight, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma)
scaled_aligned_causal_masked_softmax_backward(output_grads_, softmax_results_, scale_factor)
scaled_aligned_causal_masked_softmax_forward(input, scale_factor)
scaled_clamped_dswiglu(grad, fwd_input, act_scales, quantizer, limit=, alpha=, glu_linear_offset=,
    glu_interleave_size=, compute_scale_grad=)
scaled_clamped_swiglu(input, act_scales, quantizer, limit=, alpha=, glu_linear_offset=, glu_interleave_size=)
scaled_dsituglu(grad, fwd_input, act_scales, quantizer, beta1=, beta2=, glu_interleave_size=, compute_scale_grad=)
scaled_dsrelu(grad, fwd_input, act_scales, quantizer, compute_scale_grad=)
scaled_dswiglu(grad, fwd_input, act_scales, quantizer, glu_interleave_size=, compute_scale_grad=)
scaled_masked_softmax_backward(output_grad_, softmax_results_, scale_factor)
scaled_masked_softmax_forward(input, mask, scale_factor)
scaled_situglu(input, act_scales, quantizer, beta1=, beta2=, glu_interleave_size=)
scaled_softmax_backward(output_grad_, softmax_results_, scale_factor)
scaled_softmax_forward(input, scale_factor)
scaled_srelu(input, act_scales, quantizer)
scaled_swiglu(input, act_scales, quantizer, glu_interleave_size=)
scaled_upper_triang_masked_softmax_backward(output_grads_, softmax_results_, scale_factor)
scaled_upper_triang_masked_softmax_forward(input, scale_factor)
silu(input, quantizer)
situglu(input, quantizer, beta1=, beta2=)
split_quantize(tensor, split_sections, quantizer_list, disable_bulk_allocation=)
splits_to_offsets(first_dims, logical_last_dim)
splits_to_offsets_multi(split_sizes, device, *, strides, include_leading_zero, dtypes, bulk_allocate=)
sreglu(input, quantizer)
srelu(input, quantizer)
swap_first_dims(tensor, *, out)
swiglu(input, quantizer)
swizzle_scales_for_gemm_(tensor)
te_general_grouped_gemm(A, transa, B, transb, D, D_type, m_splits, bias, bias_type, single_output, pre_gelu_out,
    grad, workspace, workspaceSize, accumulate, use_split_accumulator, math_sm_count)
te_general_grouped_gemm_for_discrete_in(A, transa, B, transb, D, bias, bias_scale, alpha, beta, workspace_setup,
    workspace_cublas, use_split_accumulator, math_sm_count)
te_general_grouped_gemm_for_discrete_out(A, transa, B, transb, D, bias, bias_scale, alpha, beta, workspace_setup,
    workspace_cublas, use_split_accumulator, math_sm_count)
te_general_grouped_gemm_for_grouped_tensor(A, transa, B, transb, D, bias, bias_scale, alpha, beta, workspace_setup,
    workspace_cublas, use_split_accumulator, math_sm_count)
thd_copy_valid_tokens_from_per_split_to_rank_local(out, inp, cu_seqlens_padded, cu_seqlens)
thd_cp_rank_order_to_sequence_order(inp, cu_seqlens, cp_size, total_tokens)
thd_get_partitioned_indices(cu_seqlens, total_tokens, world_size, rank)
thd_grad_correction(grad, grad_per_step, cu_seqlens, first_half, second_half)
thd_out_correction(out, out_per_step, old_lse, lse, lse_per_step, cu_seqlens, only_second_half, lse_packed)
thd_read_half_tensor(tensor, cu_seqlens, half_idx)
thd_read_second_half_lse(lse, cu_seqlens, lse_packed, second_half_lse_seqlen)
thd_second_half_lse_correction(lse, lse_per_step, cu_seqlens, lse_packed)
thd_sequence_order_to_cp_rank_order(inp, cu_seqlens, cp_size, total_tokens)
ubuf_built_with_mpi()
"""

ENUMS = {
    "DType": """
        kByte=0 kInt32=2 kFloat32=4 kFloat16=5 kBFloat16=6 kFloat8E4M3=7 kFloat8E5M2=8 kFloat4E2M1=10
    """,
    "NVTE_Bias_Type": """
        NVTE_NO_BIAS=0 NVTE_PRE_SCALE_BIAS=1 NVTE_POST_SCALE_BIAS=2 NVTE_ALIBI=3
    """,
    "NVTE_Mask_Type": """
        NVTE_NO_MASK=0 NVTE_PADDING_MASK=1 NVTE_CAUSAL_MASK=2 NVTE_PADDING_CAUSAL_MASK=3
        NVTE_CAUSAL_BOTTOM_RIGHT_MASK=4 NVTE_PADDING_CAUSAL_BOTTOM_RIGHT_MASK=5
    """,
    "NVTE_Softmax_Type": """
        NVTE_VANILLA_SOFTMAX=0 NVTE_OFF_BY_ONE_SOFTMAX=1 NVTE_LEARNABLE_SOFTMAX=2
    """,
    "NVTE_QKV_Format": """
        NVTE_BSHD=1 NVTE_SBHD=0 NVTE_THD=2 NVTE_SBHD_2BSHD=4 NVTE_BSHD_2SBHD=3 NVTE_THD_2BSHD=5
        NVTE_THD_2SBHD=6 NVTE_BHSD=7 NVTE_QKV_Format_NOT_SET=8
    """,
    "NVTE_QKV_Layout": """
        NVTE_SB3HD=0 NVTE_SBH3D=1 NVTE_SBHD_SB2HD=2 NVTE_SBHD_SBH2D=3 NVTE_SBHD_SBHD_SBHD=4 NVTE_BS3HD=5
        NVTE_BSH3D=6 NVTE_BSHD_BS2HD=7 NVTE_BSHD_BSH2D=8 NVTE_BSHD_BSHD_BSHD=9 NVTE_T3HD=10 NVTE_TH3D=11
        NVTE_THD_T2HD=12 NVTE_THD_TH2D=13 NVTE_THD_THD_THD=14 NVTE_SBHD_BSHD_BSHD=15 NVTE_BSHD_SBHD_SBHD=16
        NVTE_THD_BSHD_BSHD=17 NVTE_THD_SBHD_SBHD=18 NVTE_Paged_KV_BSHD_BSHD_BSHD=19
        NVTE_Paged_KV_BSHD_SBHD_SBHD=20 NVTE_Paged_KV_SBHD_BSHD_BSHD=21 NVTE_Paged_KV_SBHD_SBHD_SBHD=22
        NVTE_Paged_KV_THD_BSHD_BSHD=23 NVTE_Paged_KV_THD_SBHD_SBHD=24 NVTE_BHSD_BHSD_BHSD=25
        NVTE_QKV_Layout_NOT_SET=26
    """,
    "NVTE_Fused_Attn_Backend": """
        NVTE_F16_arbitrary_seqlen=1 NVTE_FP8=2 NVTE_No_Backend=-1
    """,
    "NVTEScalingMode": """
        NVTE_DELAYED_TENSOR_SCALING=0 NVTE_MXFP8_1D_SCALING=1 NVTE_BLOCK_SCALING_1D=2
        NVTE_BLOCK_SCALING_2D=3 NVTE_NVFP4_1D_SCALING=4 NVTE_INVALID_SCALING=100
    """,
    "Float8BlockScaleTensorFormat": """
        GEMM_READY=0 COMPACT=1 INVALID=2
    """,
    "CommOverlapType": """
        RS=0 AG=1
    """,
    "CommOverlapAlgo": """
        BULK_OVERLAP_AG=0 BULK_OVERLAP_RS=1 SPLIT_PIPELINED_AG_P2P=2 SPLIT_PIPELINED_RS=3
        SPLIT_PIPELINED_RS_P2P=4 ATOMIC_GEMM_RS=5 ATOMIC_GEMM_AG_P2P=6 ATOMIC_GEMM_RS_P2P=7
        EXTERNAL_BULK_OVERLAP_AG=8
    """,
    "NVTERoutingMapFormat": """
        BYTEMAP=0 BITMAP_U8=1
    """,
    "NVTEQBHistogramMode": """
        TWO_KERNEL=0 FUSED_ATOMIC=1
    """,
    "FP8FwdTensors": """
        GEMM1_INPUT=0 GEMM1_WEIGHT=1 GEMM1_OUTPUT=2 GEMM2_INPUT=3 GEMM2_WEIGHT=4 GEMM2_OUTPUT=5
        GEMM3_INPUT=6 GEMM3_WEIGHT=7 GEMM3_OUTPUT=8
    """,
    "FP8BwdTensors": """
        GRAD_OUTPUT1=0 GRAD_INPUT1=1 GRAD_OUTPUT2=2 GRAD_INPUT2=3 GRAD_OUTPUT3=4 GRAD_INPUT3=5
    """,
}


def functions() -> dict[str, list[str]]:
    """``{name: [argument, "argument=", "*", ...]}``."""
    found = {}
    for line in re.sub(r"\n +", " ", FUNCTIONS).split("\n"):
        if line:
            name, arguments = line.rstrip(")").split("(")
            found[name] = [argument for argument in arguments.split(", ") if argument]
    return found


def enums() -> dict[str, type[enum.Enum]]:
    """A class for every enum, like pybind11's: ``__members__``, ``int()``, hashing; equal to nothing but itself."""
    return {name: _class(name, text) for name, text in ENUMS.items()}


class Enumerator(enum.Enum):
    """pybind11's enumerators convert to integers and are none."""

    def __int__(self) -> int:
        return self.value

    __index__ = __int__


class _ComparesByNumber(Enumerator):
    """``DType`` alone is equal to any number or enumerator of its value (``pybind.cpp``: "Register __eq__/__ne__")."""

    def __eq__(self, other) -> bool:
        return int(self) == int(other)

    def __hash__(self) -> int:
        return hash(self.value)


def _class(name: str, text: str) -> type[enum.Enum]:
    members = {key: int(value) for key, value in (pair.split("=") for pair in text.split())}
    return (_ComparesByNumber if name == "DType" else Enumerator)(name, members)
