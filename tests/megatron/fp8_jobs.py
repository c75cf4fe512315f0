"""What worker ranks do with an FP8 teacher."""

from __future__ import annotations

import torch

from tests.megatron import tiny

# Every shard is a multiple of 128 at TP 1 and 2: the blocks are the same ones, whatever the layout.
WIDE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4,
            head_dim=32)  # fmt: skip


def held(path, tensor, recipe="auto", activations=True):
    from vold_nemo.config import FP8Config, TeacherConfig
    from vold_nemo.megatron import architecture
    from vold_nemo.megatron.precision import Hardware, choose

    fp8 = FP8Config(backend="emulated", recipe=recipe, activations=activations)
    config = TeacherConfig(path=str(path), precision="fp8", fp8=fp8)
    return choose(config, "fp32", Hardware("cpu"), architecture.read(path), tensor)


def built(path, tensor, pipeline, sequence=False, expert=1, precision=None, dtype=torch.bfloat16):
    """(frozen model, arch, layout) with the weights of ``path``; the caller destroys.  ``precision`` None = no FP8."""
    from vold_nemo.megatron import architecture, build, fp8, parallel, weights

    layout = parallel.initialize(tensor, pipeline, expert=expert, sequence=sequence, seed=1, device="cpu")
    arch = architecture.read(path)
    model = build.build_model(
        arch, layout, padded_vocabulary=architecture.padded_vocabulary([arch.vocabulary], tensor), dtype=dtype,
        trainable=False, held=precision,
    )  # fmt: skip
    weights.load_hf(model, arch, layout, weights.Files(path))
    if precision is not None and dtype is torch.bfloat16:
        fp8.assert_held(model, precision)
    return model, arch, layout


def logits(path, tensor, pipeline, sequence, ids, recipe, activations, expert=1):
    """Logits [b, s, V] of the FP8 teacher whose other parts are float32; None off the last stage."""
    import torch.distributed as dist

    from vold_nemo.megatron import build, parallel

    precision = held(path, tensor, recipe, activations)
    model, arch, layout = built(path, tensor, pipeline, sequence, expert, precision, torch.float32)
    try:
        with torch.no_grad():
            hidden = tiny.run_stages(model, layout, ids)
            if hidden is None:
                return None
            if layout.sequence:
                hidden = torch.cat(tiny._gathered(hidden, layout))
            shard = torch.einsum("sbh,vh->bsv", hidden, build.lm_head_weight(model))
            return torch.cat(tiny._gathered(shard, layout), dim=-1)[..., : arch.vocabulary]
    finally:
        dist.barrier()
        parallel.destroy()


def bytes_held(path, tensor, pipeline, recipe, expert=1):
    """(stage, bytes found, dtypes by name) of a bf16 model with FP8 layers."""
    from vold_nemo.megatron import fp8, parallel

    model, _, layout = built(path, tensor, pipeline, sequence=tensor > 1, expert=expert, precision=held(path, tensor, recipe))
    try:
        dtypes = {name: str(parameter.dtype) for name, parameter in model.named_parameters()}
        return layout.pipeline_rank, fp8.model_bytes(model), dtypes
    finally:
        parallel.destroy()


def one_layer_in_bf16(path):
    """``assert_held`` on a model in which one linear layer was not quantised."""
    from vold_nemo.megatron import fp8, parallel

    precision = held(path, 1, "blockwise")
    model, _, _ = built(path, 1, 1, precision=precision)
    try:
        mlp = model.decoder.layers[1].mlp
        rows, columns = mlp.linear_fc2.weight.shape
        mlp.linear_fc2 = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16)
        fp8.assert_held(model, precision)
    finally:
        parallel.destroy()
