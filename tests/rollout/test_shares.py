"""The shares of an engine's ranks are the whole model; what stands in for a whole tensor gives out nothing but the share."""

import pytest
import torch

from vold_nemo.rollout.shares import Partial, share

SHAPES = {
    "model.embed_tokens.weight": (151, 64), "lm_head.weight": (151, 64), "model.layers.0.self_attn.q_proj.weight": (64, 48),
    "model.layers.0.self_attn.q_proj.bias": (64,), "model.layers.0.self_attn.k_proj.weight": (32, 48),
    "model.layers.0.self_attn.v_proj.bias": (32,), "model.layers.0.self_attn.o_proj.weight": (48, 64),
    "model.layers.0.mlp.gate_proj.weight": (96, 48), "model.layers.0.mlp.up_proj.weight": (96, 48),
    "model.layers.0.mlp.down_proj.weight": (48, 96),
}  # fmt: skip


def cut(tensor, box):
    return tensor[tuple(slice(*edge) for edge in box)]


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_shares_of_all_ranks_hold_every_element_as_often_as_heads_are_repeated(ranks, groups):
    for name, shape in SHAPES.items():
        seen = torch.zeros(shape)
        for rank in range(ranks):
            cut(seen, share(name, shape, rank, ranks, groups)).add_(1)
        repeated = max(1, ranks // groups) if "k_proj" in name or "v_proj" in name else 1
        assert torch.equal(seen, torch.full(shape, float(repeated))), name


def test_norms_are_whole_and_a_last_rank_may_keep_no_row_of_the_vocabulary():
    assert share("model.layers.0.self_attn.q_norm.weight", (64,), 3, 4, 2) == ((0, 64),)
    assert share("lm_head.weight", (97, 8), 3, 4, 2) == ((96, 97), (0, 8))
    assert share("lm_head.weight", (65, 8), 3, 4, 2) == ((65, 65), (0, 8))


def stand_in(name="model.layers.0.self_attn.o_proj.weight", rank=1):
    tensor = torch.arange(48 * 64.0).view(48, 64)
    box = share(name, tensor.shape, rank, 2, 2)
    return tensor, Partial(name, cut(tensor, box), box, tensor.shape)


def test_a_stand_in_has_the_whole_shape_and_narrows_to_the_part_that_came():
    tensor, partial = stand_in()
    assert (partial.shape, partial.dtype, partial.ndim, len(partial)) == (tensor.shape, tensor.dtype, 2, 48)
    partial.shard_id = "q"  # as vLLM marks what it fuses
    assert torch.equal(partial.narrow(1, 32, 32), tensor[:, 32:]) and type(partial.narrow(1, 32, 32)) is torch.Tensor


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda one: one.narrow(1, 0, 32), r"asks for .* of model.layers.0.self_attn.o_proj.weight"),
        (lambda one: one.narrow(0, 0, 48), "asks for"),
        (lambda one: torch.zeros(48, 64).copy_(one), "only a part was sent"),
        (lambda one: one + 1, "only a part was sent"),
        (lambda one: one[:, 32:], "only a part was sent"),
    ],
)
def test_a_stand_in_refuses_what_it_has_not(ask, words):
    with pytest.raises(RuntimeError, match=words):
        ask(stand_in()[1])
