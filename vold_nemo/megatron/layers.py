"""The transformer layer on plain torch: used on the CPU, and on a GPU without Transformer Engine.

megatron-core's own local layer cannot do two things that we need: its norm refuses sequence parallelism, and its
attention refuses packed sequences and holds the full score matrix.  Both parts are replaced; the rest is megatron-core's.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, gather_from_sequence_parallel_region
from megatron.core.transformer.moe import token_dispatcher
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from vold_nemo.megatron import versions
from vold_nemo.megatron.device import of_parameters
from vold_nemo.megatron.sequences import zigzag

versions.complete_router()


def _splits_as_numbers(tensor, as_numpy=False, record_stream=False, move=token_dispatcher.maybe_move_tensor_to_cpu):
    """megatron-core's function for all-to-all sizes, which leaves a tensor that is on the CPU already as it is: gloo, like
    NCCL, wants numbers."""
    moved = move(tensor, as_numpy, record_stream)
    return moved.numpy() if as_numpy and torch.is_tensor(moved) else moved


token_dispatcher.maybe_move_tensor_to_cpu = _splits_as_numbers


class RMSNorm(torch.nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    Under sequence parallelism a rank sees only its slice of the tokens, so the weight's gradient is a partial sum;
    ``weight.sequence_parallel`` tells megatron-core's ``finalize_model_grads`` to all-reduce it over the TP group.
    """

    def __init__(self, config, hidden_size: int, eps: float = 1e-6):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=of_parameters(config))
        self.weight.sequence_parallel = config.sequence_parallel


class CoreAttention(torch.nn.Module):
    """softmax(Q K^T * scale + mask) V on ``scaled_dot_product_attention``, causal.

    Three masks, all exact: plain causal (``attention_mask=None``), an explicit boolean mask (True = hidden,
    megatron-core's convention, [b or 1, 1, sq, sk]), and packed sequences, whose block-diagonal causal mask is never
    built: each block is one call.  No parameters, no dropout.

    Under context parallelism a rank has the queries of its own zig-zag pieces and all-gathers keys and values along the
    sequence (backward: reduce-scatter), two collectives a layer over the context group; an explicit mask is refused.
    """

    def __init__(self, config, layer_number, attn_mask_type, attention_type, cp_comm_type=None, softmax_scale=None,
                 pg_collection=None):
        super().__init__()
        self.scale = softmax_scale if softmax_scale is not None else config.kv_channels**-0.5
        self.context_group = pg_collection.cp if getattr(config, "context_parallel_size", 1) > 1 else None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, attn_mask_type=None,
        attention_bias=None, packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Query [s, b, n, d], key and value [s, b, g, d] -> [s, b, n*d]; packed [t, n, d], [t, g, d] -> [t, n*d]."""
        if packed_seq_params is not None:
            bounds = packed_seq_params.cu_seqlens_q.tolist()
            return self._attend_blocks(query[:, None], key[:, None], value[:, None], bounds).squeeze(1)
        if self.context_group is not None:
            if attention_mask is not None:
                raise ValueError("context parallelism slices causal attention only: no explicit mask")
            return self._attend_blocks(query, key, value, [0, query.size(0) * self.context_group.size()])
        return self._attend(query, key, value, attention_mask)

    def _attend_blocks(self, query: Tensor, key: Tensor, value: Tensor, bounds: list[int]) -> Tensor:
        """Sequences ``bounds[j] .. bounds[j + 1]`` of the whole row, each on its own."""
        blocks = [(a, z) for a, z in itertools.pairwise(bounds) if z > a]
        if self.context_group is None:
            return torch.cat([self._attend(query[a:z], key[a:z], value[a:z], None) for a, z in blocks])
        size, rank = self.context_group.size(), self.context_group.rank()
        order = torch.cat([zigzag(bounds, r, size) for r in range(size)]).argsort().to(query.device)
        key, value = (
            gather_from_sequence_parallel_region(x, group=self.context_group).index_select(0, order) for x in (key, value)
        )
        out, at = [], 0
        for a, z in blocks:
            width = (z - a) // (2 * size)
            for piece in (rank, 2 * size - 1 - rank):
                seen = a + (piece + 1) * width
                hidden = torch.ones(width, seen - a, dtype=torch.bool, device=query.device).triu(1 + piece * width)
                out.append(self._attend(query[at : at + width], key[a:seen], value[a:seen], hidden))
                at += width
        return torch.cat(out)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, n, s, d]
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if hidden is None else ~hidden, is_causal=hidden is None,
            scale=self.scale, enable_gqa=query.size(1) != key.size(1),
        )
        return out.permute(2, 0, 1, 3).flatten(2)  # [s, b, n*d]


def local_block_spec(
    config, pipeline_rank: int, linear: tuple[type, type] | None = None, virtual_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage, or of one of its virtual stages, and the final norm, from the parts above.

    ``linear``: (column-parallel, row-parallel) layers instead of megatron-core's.
    """
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, qk_layernorm=config.qk_layernorm, normalization="RMSNorm"
    )
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = CoreAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if linear is not None:
        layer = _replaced(layer, dict(zip((ColumnParallelLinear, RowParallelLinear), linear, strict=True)))
    count = get_num_layers_to_build(config, vp_stage=virtual_stage, pp_rank=pipeline_rank)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


def _replaced(spec, classes: dict[type, type]):
    """``spec`` with other classes for some, in every part that it is made of."""
    if isinstance(spec, type):
        return classes.get(spec, spec)
    if isinstance(spec, ModuleSpec):
        return ModuleSpec(_replaced(spec.module, classes), spec.params, _replaced(spec.submodules, classes))
    if isinstance(spec, functools.partial):  # versions.py
        settings = {name: _replaced(value, classes) for name, value in spec.keywords.items()}
        return functools.partial(_replaced(spec.func, classes), *spec.args, **settings)
    if dataclasses.is_dataclass(spec):
        parts = {part.name: _replaced(getattr(spec, part.name), classes) for part in dataclasses.fields(spec)}
        return dataclasses.replace(spec, **parts)
    return spec
