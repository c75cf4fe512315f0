"""Random tiny Hugging Face checkpoints, and the jobs that worker ranks run on them."""

from __future__ import annotations

import torch

SHAPE = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
    vocab_size=61, max_position_embeddings=256,
)  # 61 rows: no tensor size divides them; 2 key-value groups: fewer than four ranks

MIXTURE = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)


def config(kind: str, *, tied: bool = True, **changes):
    """Configuration of a tiny model of type ``kind``, of transformers' class."""
    import transformers as hf

    rope = dict(rope_type="default", rope_theta=1000.0)
    ends = dict(bos_token_id=None, eos_token_id=1, pad_token_id=0)
    ids = dict(image_token_id=3, video_token_id=4, vision_start_token_id=5, vision_end_token_id=6)
    if kind == "qwen2_5_vl":
        text = dict(SHAPE, rope_parameters=dict(rope, mrope_section=[1, 1, 2]), **ends) | changes
        vision = dict(depth=1, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64,
                      fullatt_block_indexes=[0])
        return hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **ids)
    if kind in ("qwen3_vl", "qwen3_vl_moe"):
        name, mixture = ("Qwen3VLMoe", MIXTURE) if kind == "qwen3_vl_moe" else ("Qwen3VL", {})
        text = dict(SHAPE, head_dim=16, rope_parameters=dict(rope, mrope_section=[4, 2, 2]), **mixture, **ends) | changes
        vision = dict(depth=1, hidden_size=32, num_heads=2, intermediate_size=48, out_hidden_size=64,
                      deepstack_visual_indexes=[0], num_position_embeddings=16)
        return getattr(hf, f"{name}Config")(
            text_config=dict(text, tie_word_embeddings=tied), vision_config=vision, tie_word_embeddings=tied, **ids
        )
    shape = dict(SHAPE, rope_parameters=rope, tie_word_embeddings=tied, **ends)
    if kind == "qwen3_moe":
        return hf.Qwen3MoeConfig(**dict(shape, head_dim=16, **MIXTURE) | changes)
    if kind == "qwen3":
        return hf.Qwen3Config(**dict(shape, head_dim=16) | changes)
    return hf.Qwen2Config(**shape | changes)


def save(kind: str, path, *, tied: bool = True, seed: int = 0, dtype: torch.dtype = torch.float32, **changes):
    """Save a random checkpoint of model type ``kind`` with transformers and return the model."""
    import transformers as hf

    torch.manual_seed(seed)
    names = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration",
             "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration", "qwen3_moe": "Qwen3MoeForCausalLM",
             "qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM"}  # fmt: skip
    model = getattr(hf, names[kind])(config(kind, tied=tied, **changes))
    with torch.no_grad():  # transformers starts biases at 0 and norms at 1: then a lost one would not be seen
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3.0)  # and near 0, where logits are too flat to compare
    model = model.to(dtype).eval()
    model.save_pretrained(path)
    return model


def tokens(batch: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(7, SHAPE["vocab_size"], (batch, length), generator=generator)


def built(path, tensor, pipeline, sequence=False, dtype=torch.float32, expert=1, virtual=1):
    """(model, arch, layout) with the weights of ``path``; the caller destroys."""
    from vold_nemo.megatron import architecture, build, parallel, weights

    layout = parallel.initialize(
        tensor, pipeline, virtual=virtual, expert=expert, sequence=sequence, seed=1, device="cpu"
    )  # fmt: skip
    arch = architecture.read(path)
    rows = architecture.padded_vocabulary([arch.vocabulary], tensor)
    model = build.build_model(arch, layout, padded_vocabulary=rows, dtype=dtype)
    weights.load_hf(model, arch, layout, weights.Files(path))
    return model, arch, layout


def run_stages(model, layout, ids, **kwargs):
    """Forward through the pipeline; the last stage's output on the last stage, else None."""
    import torch.distributed as dist

    positions = torch.arange(ids.size(1)).expand_as(ids)
    sequence = ids.size(1) // (layout.tensor if layout.sequence else 1)
    if not layout.is_first_stage:
        received = torch.empty(sequence, ids.size(0), model.config.hidden_size)
        dist.recv(received, group=layout.pipeline_group, group_src=layout.pipeline_rank - 1)
        model.set_input_tensor(received)
    out = model(ids, positions, **kwargs)
    if not layout.is_last_stage:
        dist.send(out.detach(), group=layout.pipeline_group, group_dst=layout.pipeline_rank + 1)
        return None
    return out


def logits(path, tensor, pipeline, sequence, ids, expert=1):
    """Hidden states x LM head, gathered over the tensor group: [b, s, V] on the last stage, None elsewhere."""
    import torch.distributed as dist

    from vold_nemo.megatron import build, parallel

    model, arch, layout = built(path, tensor, pipeline, sequence, expert=expert)
    try:
        with torch.no_grad():
            hidden = run_stages(model, layout, ids)
            if hidden is None:
                return None
            head = build.lm_head_weight(model)
            if layout.sequence:
                hidden = torch.cat(_gathered(hidden, layout))
            shards = _gathered(torch.einsum("sbh,vh->bsv", hidden, head), layout)
            return torch.cat(shards, dim=-1)[..., : arch.vocabulary]
    finally:
        dist.barrier()
        parallel.destroy()


def _gathered(tensor, layout):
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(layout.tensor)]
    dist.all_gather(parts, tensor.contiguous(), group=layout.tensor_group)
    return parts


def streamed(path, tensor, pipeline, dtype=torch.float32, expert=1):
    """What stream_hf yields on this rank, as a dict."""
    from vold_nemo.megatron import parallel, weights

    model, arch, layout = built(path, tensor, pipeline, dtype=dtype, expert=expert)
    try:
        return dict(weights.stream_hf(model, arch, layout))
    finally:
        parallel.destroy()


def sliced(path, tensor, pipeline, slice_bytes):
    """As :func:`streamed`, with shards gathered ``slice_bytes`` at a time."""
    from vold_nemo.megatron import parallel, weights

    model, arch, layout = built(path, tensor, pipeline)
    usual = weights.SLICE["cpu"]
    weights.SLICE["cpu"] = slice_bytes
    try:
        return dict(weights.stream_hf(model, arch, layout))
    finally:
        weights.SLICE["cpu"] = usual
        parallel.destroy()


def exported(path, out, tensor, pipeline, max_shard_bytes, factor=1.0):
    """Export of ``path``'s backbone, multiplied by ``factor``; rank 0 returns the report."""
    from vold_nemo.checkpoint import export
    from vold_nemo.megatron import parallel, weights

    model, arch, layout = built(path, tensor, pipeline)
    try:
        stream = ((name, tensor * factor) for name, tensor in weights.stream_hf(model, arch, layout))
        return export.export_hf(stream, path, out, max_shard_bytes, write=layout.rank == 0)
    finally:
        parallel.destroy()


def gradients(path, tensor, sequence, ids):
    """Gradients of the mean next-token cross-entropy, under Hugging Face names, and their norm over all shards."""
    import torch.distributed as dist
    from megatron.core.tensor_parallel import (
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
        vocab_parallel_cross_entropy,
    )
    from megatron.core.tensor_parallel.layers import param_is_not_tensor_parallel_duplicate

    from vold_nemo.megatron import build, parallel, weights

    model, arch, layout = built(path, tensor, 1, sequence)
    try:
        hidden = run_stages(model, layout, ids)
        if layout.sequence:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        else:
            hidden = copy_to_tensor_model_parallel_region(hidden)
        scores = hidden[:-1] @ build.lm_head_weight(model).T
        if layout.tensor_rank == layout.tensor - 1:  # padding rows are no tokens
            scores[..., scores.size(-1) - (model.vocab_size - arch.vocabulary) :] = -1e9
        vocab_parallel_cross_entropy(scores, ids.T[1:].contiguous()).mean().backward()

        square = torch.zeros(())
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            if getattr(parameter, "sequence_parallel", False) or "q_layernorm" in name or "k_layernorm" in name:
                dist.all_reduce(gradient, group=layout.tensor_group)  # what finalize_model_grads does
            if param_is_not_tensor_parallel_duplicate(parameter):
                square += gradient.square().sum()
            parameter.data = gradient
        dist.all_reduce(square, group=layout.tensor_group)
        return dict(weights.stream_hf(model, arch, layout)), square.sqrt().item()
    finally:
        parallel.destroy()
