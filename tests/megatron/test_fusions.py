"""Fused functions give the numbers of those that they replace; which are taken hangs on the device alone."""

import importlib.util
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from tests.megatron import tiny
from vold_nemo.megatron import build, parallel
from vold_nemo.megatron.sequences import packed_parameters
from vold_nemo.rehearsal import engine


def test_a_cpu_fuses_nothing_and_a_gpu_what_its_libraries_have():
    on_cpu = build.fusions(torch.device("cpu"), engine=False)
    assert not any(on_cpu.values())
    on_gpu, without = (build.fusions(torch.device("cuda", 0), engine=one) for one in (True, False))
    assert on_gpu["bias_activation_fusion"] and on_gpu["apply_rope_fusion"]
    assert without["bias_activation_fusion"] and not without["apply_rope_fusion"]


@pytest.fixture
def uncompiled():
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("dtype, near", [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
def test_fused_swiglu_and_its_gradient_are_the_unfused_ones(uncompiled, weighted, dtype, near):
    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl, weighted_bias_swiglu_impl

    generator = torch.Generator().manual_seed(1)
    given, back = (torch.randn(4, 3, width, generator=generator, dtype=torch.float64) for width in (10, 5))
    weights = torch.rand(12, 1, generator=generator, dtype=torch.float64)
    own, other = (given.to(dtype).to(kind).detach().requires_grad_() for kind in (dtype, torch.float64))
    if weighted:  # of tokens that lie one after the other, as experts get them
        fused = weighted_bias_swiglu_impl(own.view(12, 10), None, weights.to(dtype)).view(4, 3, 5)
    else:
        fused = bias_swiglu_impl(own, None)
    gate, up = other.chunk(2, dim=-1)
    plain = F.silu(gate) * up * (weights.view(4, 3, 1) if weighted else 1.0)
    assert fused.dtype == dtype and torch.allclose(fused.double(), plain, atol=near, rtol=near)
    fused.backward(back.to(dtype))
    plain.backward(back)
    assert torch.allclose(own.grad.double(), other.grad, atol=2 * near, rtol=near)


def test_a_model_with_fused_activations_has_the_gradients_of_one_without(uncompiled, tmp_path, monkeypatch):
    tiny.save("qwen3", tmp_path)
    ids, plain = tiny.tokens(), build.fusions
    found = []
    for fused in (False, True):
        monkeypatch.setattr(build, "fusions", lambda *given, fused=fused: plain(*given) | {"bias_activation_fusion": fused})
        model, _, _ = tiny.built(tmp_path, 1, 1)
        try:
            assert model.config.bias_activation_fusion == fused
            hidden = model(ids, torch.arange(ids.shape[1]).expand_as(ids))
            (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        finally:
            parallel.destroy()
    before, after = found
    assert before.keys() == after.keys() and len(before) > 20
    for name, gradient in before.items():
        assert torch.allclose(after[name], gradient, atol=1e-5 * float(gradient.abs().max())), name


@pytest.fixture
def rope(monkeypatch):
    """Transformer Engine's module of rotary embeddings; its extension is missing, which the unfused path does not call."""
    try:
        file = engine.cached() / "transformer_engine/pytorch/attention/rope.py"
    except RuntimeError as error:
        pytest.skip(f"Transformer Engine's wheel is not to be had: {error}")
    for name in ("transformer_engine_torch", "transformer_engine", "transformer_engine.pytorch",
                 "transformer_engine.pytorch.cpp_extensions"):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    kernels = types.ModuleType("transformer_engine.pytorch.cpp_extensions.fused_attn")
    kernels.QKVFormat = dict
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    spec = importlib.util.spec_from_file_location("rope_of_transformer_engine", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("context", [1, 2])
def test_packed_rows_are_turned_alike_by_transformer_engine_and_by_megatron(rope, context):
    """With the arguments that megatron-core hands to either: its table for the longest sequence, and our starts."""
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_thd

    packed = packed_parameters((0, 8, 12, 28), torch.device("cpu"), context)
    width = 16
    table = torch.outer(torch.arange(float(packed.max_seqlen_q)), 100.0 ** -torch.linspace(0, 1, width // 2))
    table = torch.cat([table, table], dim=1)[:, None, None]
    row = torch.randn(28 // context, 2, width, generator=torch.Generator().manual_seed(5))
    for rank in range(context):
        group = types.SimpleNamespace(size=lambda: context, rank=lambda rank=rank: rank)
        ours = _apply_rotary_pos_emb_thd(row, packed.cu_seqlens_q, table, cp_group=group)
        theirs = rope.apply_rotary_pos_emb(
            row, table, tensor_format="thd", fused=False, cu_seqlens=packed.cu_seqlens_q, cp_size=context, cp_rank=rank
        )
        assert torch.allclose(ours, theirs, atol=1e-6) and not torch.allclose(ours, row, atol=1e-2)


def test_layers_of_transformer_engine_add_up_in_their_products(monkeypatch):
    base = types.ModuleType("transformer_engine.pytorch.module.base")
    base.TransformerEngineBaseModule = type("TransformerEngineBaseModule", (torch.nn.Module,), {})
    for name in ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.module"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    linear, norm, head = base.TransformerEngineBaseModule(), base.TransformerEngineBaseModule(), torch.nn.Linear(2, 2)
    linear.fuse_wgrad_accumulation = False
    head.fuse_wgrad_accumulation = False
    build._add_up_in_products(torch.nn.ModuleList([linear, norm, head]))
    assert linear.fuse_wgrad_accumulation and not head.fuse_wgrad_accumulation
    assert not hasattr(norm, "fuse_wgrad_accumulation")
