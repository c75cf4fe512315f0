"""The layer parts of our own against dense float64 formulas, and the CPU stand-ins."""

import math

import pytest
import torch

from tests.megatron import tiny


class Shape:
    kv_channels = 8


def core():
    from vold_nemo.megatron import cpu

    cpu.enable()
    from vold_nemo.megatron.layers import CoreAttention

    return CoreAttention(Shape, 1, None, "self")


def dense(query, key, value, hidden):
    """softmax(QK^T / sqrt(d)) V in float64; [s, b, n, d] in, [s, b, n*d] out; hidden [b, 1, s, s] True = not seen."""
    key, value = (x.double().repeat_interleave(query.size(2) // x.size(2), dim=2) for x in (key, value))
    scores = torch.einsum("sbnd,tbnd->bnst", query.double(), key) / math.sqrt(query.size(-1))
    return torch.einsum("bnst,tbnd->sbnd", scores.masked_fill(hidden, -math.inf).softmax(-1), value).flatten(2)


def qkv(tokens=12, batch=2, heads=4, groups=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, batch, n, 8, generator=generator) for n in (heads, groups, groups)]


def causal(tokens):
    return torch.ones(tokens, tokens).triu(1).bool()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_causal_attention_is_the_formula(groups):
    query, key, value = qkv(groups=groups)
    found = core()(query, key, value, None)
    torch.testing.assert_close(found.double(), dense(query, key, value, causal(12)), rtol=0, atol=1e-6)


def test_an_explicit_mask_hides_where_it_is_true():
    query, key, value = qkv()
    segments = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3])
    hidden = ((segments[:, :, None] != segments[:, None, :]) | causal(12))[:, None]
    found = core()(query, key, value, hidden)
    torch.testing.assert_close(found.double(), dense(query, key, value, hidden), rtol=0, atol=1e-6)


def test_packed_sequences_do_not_see_each_other():
    from megatron.core.packed_seq_params import PackedSeqParams

    query, key, value = qkv(batch=1)
    bounds = torch.tensor([0, 5, 5, 12], dtype=torch.int32)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
    segments = torch.tensor([0] * 5 + [1] * 7)
    hidden = ((segments[:, None] != segments) | causal(12))[None, None]
    found = core()(query[:, 0], key[:, 0], value[:, 0], None, packed_seq_params=packed)
    torch.testing.assert_close(found.double(), dense(query, key, value, hidden)[:, 0], rtol=0, atol=1e-6)


def packed_and_alone(path, tensor, sequence):
    """Largest difference between two sequences packed into one row and the same sequences on their own."""
    from megatron.core.packed_seq_params import PackedSeqParams

    from vold_nemo.megatron import parallel

    model, _, layout = tiny.built(path, tensor, 1, sequence)
    try:
        lengths, ids = (8, 4), tiny.tokens(batch=1, length=12)
        bounds = torch.tensor([0, 8, 12], dtype=torch.int32)
        packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=8, max_seqlen_kv=8)
        with torch.no_grad():
            whole = tiny.run_stages(model, layout, ids, packed_seq_params=packed)
            alone = [tiny.run_stages(model, layout, part) for part in ids.split(lengths, dim=1)]
        if layout.sequence:
            whole, *alone = (torch.cat(tiny._gathered(x, layout)) for x in (whole, *alone))
        return (whole - torch.cat(alone)).abs().max().item()
    finally:
        parallel.destroy()


@pytest.mark.parametrize("sequence", [False, True], ids=["", "sp"])
def test_a_packed_row_gives_the_hidden_states_of_its_sequences(tmp_path, gloo, sequence):
    tiny.save("qwen3", tmp_path, tied=True)
    assert max(gloo(2).run(packed_and_alone, tmp_path, 2, sequence)) < 1e-5


def padding(path):
    from vold_nemo.megatron import parallel

    model, _, layout = tiny.built(path, 1, 1)
    try:
        ids = tiny.tokens(batch=1, length=9)
        with torch.no_grad():
            short = tiny.run_stages(model, layout, ids)
            padded = tiny.run_stages(model, layout, torch.nn.functional.pad(ids, (0, 7)))
        return (padded[:9] - short).abs().max().item()
    finally:
        parallel.destroy()


def test_padding_on_the_right_changes_no_real_token(tmp_path, gloo):
    tiny.save("qwen2_5_vl", tmp_path, tied=True)
    assert gloo(1).run(padding, tmp_path)[0] < 1e-5


def frozen(path):
    from vold_nemo.megatron import architecture, build, parallel

    layout = parallel.initialize(1, 1, seed=1, device="cpu")
    try:
        arch = architecture.read(path)
        model = build.build_model(arch, layout, padded_vocabulary=64, dtype=torch.bfloat16, trainable=False)
        hidden = tiny.run_stages(model, layout, tiny.tokens())
        return model.training, [p.requires_grad for p in model.parameters()], {p.dtype for p in model.parameters()}, \
            hidden.dtype, hidden.shape, torch.cuda.is_available()
    finally:
        parallel.destroy()


def test_a_frozen_bf16_model_asks_for_no_gradient_and_cuda_stays_absent(tmp_path, gloo):
    tiny.save("qwen3", tmp_path, tied=True)
    training, gradients, dtypes, dtype, shape, cuda = gloo(1).run(frozen, tmp_path)[0]
    assert not training and not any(gradients) and not cuda
    assert dtypes == {torch.bfloat16} and dtype is torch.bfloat16 and shape == (12, 2, 64)
