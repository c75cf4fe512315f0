"""The Megatron model: this rank's part of a decoder that hands over hidden states, never logits.

With Transformer Engine installed (GPU) its fused layers are used, otherwise those of :mod:`vold_nemo.megatron.layers`;
the rest of the path is the same.  Weights always come from a checkpoint (:func:`vold_nemo.megatron.weights.load_hf`), so
parameters are born as zeros, or, in a frozen model, as whatever the memory held: writing zeros would take its bytes.
"""

from __future__ import annotations

import contextlib
import importlib.util
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vold_nemo.config import ConfigError
from vold_nemo.megatron import cpu, fp8
from vold_nemo.megatron.architecture import Architecture
from vold_nemo.megatron.chunks import Chunks, chunks_of
from vold_nemo.megatron.device import has_gpu
from vold_nemo.megatron.parallel import Layout
from vold_nemo.megatron.precision import Precision


@cache
def _model_class() -> type:
    """``GPTModel`` whose forward returns hidden states (made late: importing megatron-core takes seconds)."""
    from megatron.core.models.gpt import GPTModel

    class HiddenStateModel(GPTModel):
        """One pipeline stage.

        ``forward(ids[b, s], position_ids[b, s], attention_mask=None, packed_seq_params=None)`` gives the stage's output
        [s, b, H] ([s / T, b, H] under sequence parallelism); on the last stage this is the final hidden state, after the
        final norm.  megatron-core's own post-processing would apply the LM head there: logits [s, b, V] are what this
        project never makes, so the head is met chunk by chunk in the loss (:func:`lm_head_weight`).
        """

        def forward(self, input_ids, position_ids, attention_mask=None, **kwargs) -> Tensor:
            return super().forward(input_ids, position_ids, attention_mask, **kwargs)

        def _postprocess(self, hidden_states, *args, **kwargs) -> Tensor:
            return hidden_states

    return HiddenStateModel


def has_transformer_engine() -> bool:
    return has_gpu() and importlib.util.find_spec("transformer_engine") is not None


def recomputation(arch: Architecture, recompute: str) -> dict:
    """megatron-core's settings for ``parallel.recompute``.

    Its own ``selective`` recomputes the core attention, of which a fused kernel keeps next to nothing; the feed-forward holds
    the larger part of a layer's activations.  (Its option to recompute norms asks for Transformer Engine even without FP8.)
    """
    if recompute == "full":
        return dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)
    if recompute == "selective":
        return dict(recompute_granularity="selective", recompute_modules=["moe" if arch.experts else "mlp"])
    return {}


def _by_engine(held: Precision | None) -> bool:
    """Whether a model's layers are Transformer Engine's."""
    return has_transformer_engine() and (held is None or held.backend != "emulated")


def fusions(device: torch.device, engine: bool) -> dict:
    """Which of megatron-core's fused kernels take the place of several: none on a CPU.  ``engine``: as :func:`_by_engine`.

    ``bias_activation_fusion``: SwiGLU, and its product with an expert's weight, as one kernel that torch.compile makes; of its
    operands the backward pass needs the input alone.  ``apply_rope_fusion``: Transformer Engine's kernel, which reads where
    packed sequences begin on the device; without it megatron-core asks for their lengths twice a layer, and the device waits.
    ``gradient_accumulation_fusion``: NVIDIA's apex; Transformer Engine's layers do without (:func:`_add_up_in_products`).
    """
    gpu = device.type == "cuda"
    return dict(
        bias_activation_fusion=gpu, apply_rope_fusion=gpu and engine, persist_layer_norm=engine, masked_softmax_fusion=False,
        gradient_accumulation_fusion=gpu and importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
    )  # fmt: skip


def _add_up_in_products(model: torch.nn.Module) -> None:
    """Let Transformer Engine's layers add a weight's gradient to its buffer in the product that forms it.

    megatron-core has one setting for them and for its own linear layer, which has no such product but apex's and refuses to be
    built without; ours is the LM head, which is never called.  So it is set where it is read.
    """
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    for part in model.modules():
        if isinstance(part, TransformerEngineBaseModule) and hasattr(part, "fuse_wgrad_accumulation"):
            part.fuse_wgrad_accumulation = True


def transformer_config(
    arch: Architecture, layout: Layout, *, dtype: torch.dtype, trainable: bool = True, recompute: str = "none",
    held: Precision | None = None,
):  # fmt: skip
    """megatron-core's ``TransformerConfig`` for ``arch`` in this layout; ``held``: the precision of a frozen model."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    # Zeros as initialiser, not perform_initialization=False: that would also leave out the tensor-parallel marks on the
    # parameters, and every gradient norm would count one shard only.  A frozen model has no gradients, and would pay the
    # initialisation on the CPU with an unsplit fp32 copy of each weight.
    zeros = torch.nn.init.zeros_
    engine = _by_engine(held)
    special: dict = fp8.config_fields(held)
    if arch.experts:
        special |= dict(
            num_moe_experts=arch.experts, moe_router_topk=arch.experts_per_token, moe_ffn_hidden_size=arch.expert_ffn,
            # softmax over the chosen experts only = softmax over all, then scaled to sum to 1
            moe_router_pre_softmax=not arch.router_normalised, moe_router_dtype="fp32",
            moe_router_load_balancing_type="none", moe_aux_loss_coeff=0.0, moe_grouped_gemm=engine,
            expert_model_parallel_size=layout.expert, expert_tensor_parallel_size=1,
        )
    stages = arch.stages(layout.pipeline)
    if len(set(stages)) > 1:
        special |= dict(num_layers_in_first_pipeline_stage=stages[0], num_layers_in_last_pipeline_stage=stages[-1])
    if layout.virtual > 1:
        # Both directions go on at once and meet the same peer at P = 2: batched, they would be taken for each other.
        special |= dict(
            virtual_pipeline_model_parallel_size=layout.virtual, overlap_p2p_comm=True, batch_p2p_comm=False,
            microbatch_group_size_per_vp_stage=layout.micro_batch_multiple,
        )  # fmt: skip
    return TransformerConfig(
        num_layers=arch.layers, hidden_size=arch.hidden, ffn_hidden_size=arch.ffn, num_attention_heads=arch.heads,
        num_query_groups=arch.kv_groups, kv_channels=arch.head_dim,
        normalization="RMSNorm", layernorm_epsilon=arch.rms_eps, qk_layernorm=arch.qk_norm,
        add_bias_linear=False, add_qkv_bias=arch.qkv_bias,
        gated_linear_unit=True, activation_func=F.silu, hidden_dropout=0.0, attention_dropout=0.0,
        tensor_model_parallel_size=layout.tensor, pipeline_model_parallel_size=layout.pipeline,
        sequence_parallel=layout.sequence, context_parallel_size=layout.context,
        params_dtype=dtype, pipeline_dtype=dtype, bf16=dtype is torch.bfloat16,
        perform_initialization=trainable, init_method=zeros, output_layer_init_method=zeros, embedding_init_method=zeros,
        use_cpu_initialization=layout.device.type == "cpu",
        variable_seq_lengths=True,  # micro-batches are padded to their own longest sequence
        moe_token_dispatcher_type="alltoall",  # variable lengths refuse the default even without experts
        calculate_per_token_loss=True,  # all normalisation is in the token weights; see the step plan
        bias_dropout_fusion=False,  # neither bias nor dropout: what is left of it is one addition
        **fusions(layout.device, engine),
        # megatron-core's wait for the device after each exchange: torch before 1.13 needed it (pytorch#82450).
        batch_p2p_sync=False,
        **recomputation(arch, recompute),
        **special,
    )


def build_model(
    arch: Architecture, layout: Layout, *, padded_vocabulary: int, dtype: torch.dtype, trainable: bool = True,
    recompute: str = "none", held: Precision | None = None,
) -> torch.nn.Module:
    """This rank's pipeline stage of ``arch``, on ``layout.device``; weights are zeros (frozen: nothing) until loaded.

    A GPTModel, or with virtual stages :class:`chunks.Chunks` of them.  Collective over the pipeline where the embedding is
    tied.  ``trainable=False`` freezes it (``eval``, no gradient), and ``held`` then says whether its linear layers are FP8
    (:mod:`vold_nemo.megatron.fp8`).
    ``recompute``: ``none | selective | full`` (``parallel.recompute``); gradients are the same.

    :raises ConfigError: if ``padded_vocabulary`` does not hold the checkpoint's rows or cannot be split.
    """
    if padded_vocabulary < arch.vocabulary or padded_vocabulary % layout.tensor:
        raise ConfigError("padded vocabulary", padded_vocabulary,
                          f"at least {arch.vocabulary} rows and a multiple of tensor = {layout.tensor}",
                          "use vold_nemo.megatron.architecture.padded_vocabulary over all models of the run")
    cpu.enable()
    config = transformer_config(arch, layout, dtype=dtype, trainable=trainable, recompute=recompute, held=held)

    def chunk(number: int) -> torch.nn.Module:
        first, last = number == 0, number == layout.virtual - 1
        return _model_class()(
            config=config, transformer_layer_spec=_layer_spec(arch, layout, config, held, number),
            vocab_size=padded_vocabulary, max_sequence_length=arch.max_positions,
            pre_process=layout.is_first_stage and first, post_process=layout.is_last_stage and last, parallel_output=True,
            share_embeddings_and_output_weights=arch.tied, position_embedding_type="rope", rotary_base=arch.rope_theta,
            vp_stage=_virtual_stage(layout, number),
        )  # fmt: skip

    # Text has equal temporal, height and width positions, where Qwen2.5-VL's multimodal RoPE is plain RoPE.
    # Outside gradients Transformer Engine keeps neither a high-precision copy of an FP8 weight nor a column-wise one.
    with _born(arch, layout), contextlib.nullcontext() if trainable else torch.no_grad():
        model = Chunks(map(chunk, range(layout.virtual))) if layout.virtual > 1 else chunk(0)
    if held is None or held.backend != "te":  # built on the GPU as it is, and the data of its tensors must not be assigned to
        model = model.to(layout.device)
    if not trainable:
        model.requires_grad_(False)
        model.eval()
    elif has_transformer_engine():
        _add_up_in_products(model)
    return model


def _born(arch: Architecture, layout: Layout):
    """Where what is made without naming a device is made: a router's weight, which would else begin on the CPU."""
    return torch.device(layout.device) if arch.experts else contextlib.nullcontext()


def _virtual_stage(layout: Layout, chunk: int) -> int | None:
    """megatron-core's number of a stage's ``chunk``; it wants none where there is but one."""
    return chunk if layout.virtual > 1 else None


def _layer_spec(arch: Architecture, layout: Layout, config, held: Precision | None, chunk: int = 0):
    if _by_engine(held):
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec(
            num_experts=arch.experts or None, moe_grouped_gemm=bool(arch.experts), qk_layernorm=arch.qk_norm
        )
    from vold_nemo.megatron.layers import local_block_spec

    linear = fp8.emulated_layers(held.recipe, held.activations) if held and held.backend == "emulated" else None
    return local_block_spec(config, layout.pipeline_rank, linear, _virtual_stage(layout, chunk))


def build_layer(arch: Architecture, layout: Layout, number: int, dtype: torch.dtype, *, chunk: int = 0) -> torch.nn.Module:
    """One more copy of layer ``number`` of this stage's ``chunk`` (both from 0), frozen, in ``dtype``;
    :func:`weights.load_layer` fills it."""
    from megatron.core.transformer.spec_utils import build_module

    config = transformer_config(arch, layout, dtype=dtype, trainable=False)
    spec = _layer_spec(arch, layout, config, None)
    with torch.no_grad(), _born(arch, layout):
        layer = build_module(
            getattr(spec, "layer_specs", [spec])[0], config=config, layer_number=number + 1,
            vp_stage=_virtual_stage(layout, chunk),
        )  # fmt: skip
    return layer.to(layout.device).requires_grad_(False).eval()


def lm_head_weight(model: torch.nn.Module) -> torch.nn.Parameter:
    """This rank's rows [v, H] of the LM head, on the last pipeline stage; the embedding itself if it is tied there."""
    model = chunks_of(model)[-1]
    if not model.post_process:
        raise ValueError("the LM head lives on the last pipeline stage")
    if model.share_embeddings_and_output_weights:
        return model.shared_embedding_or_output_weight()
    return model.output_layer.weight
