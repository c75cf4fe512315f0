"""What spares a GPU a question or a pass over memory gives the numbers of the plain way."""

import pytest
import torch

from vold_nemo.config.sections.objective import ObjectiveConfig
from vold_nemo.objective import Objective, VocabularyShard, head
from vold_nemo.objective.counting import count, places


@pytest.mark.parametrize("mask", [[True, False, True, True], [False, False], [True], []])
def test_counted_places_are_those_that_are_true(mask):
    mask = torch.tensor(mask, dtype=torch.bool)
    told = count(mask=mask, rest=~mask)
    assert told == {"mask": int(mask.sum()), "rest": int((~mask).sum())}
    assert places(mask, told["mask"]).equal(mask.nonzero().flatten())


def test_a_rank_knows_of_every_id_whether_it_can_be_sampled():
    sampleable = torch.tensor([1, 1, 0, 1, 1, 0, 0, 1], dtype=torch.bool)
    shared = sampleable & (torch.arange(8) < 4)
    ids = torch.tensor([0, 2, 4, 7, -100, 8])
    for rank in (0, 1):
        shard = VocabularyShard.of(rank, 2, sampleable, shared)
        assert shard.can_sample(ids).tolist() == [True, False, True, True, False, False]
        assert shard.over_shared.can_sample(ids).tolist() == [True, False, False, False, False, False]
        assert shard.over_sampleable.over_shared.can_sample(ids).tolist() == shard.can_sample(ids).tolist()
    alone = VocabularyShard(0, 8, sampleable, shared)  # nobody kept the whole masks
    assert alone.can_sample(ids).tolist() == [True, False, True, True, False, False]


def _mm(a, b, *, out_dtype, out=None):
    """cuBLAS' product of bf16 with float32 accumulators."""
    assert a.dtype == b.dtype == torch.bfloat16
    made = (a.double() @ b.double()).to(out_dtype)
    return made if out is None else out.copy_(made)


def _addmm(added, a, b, *, beta, out_dtype, out):
    assert a.dtype == b.dtype == torch.bfloat16 and added.dtype == out.dtype == out_dtype
    return out.copy_((added.double() * beta if beta else 0.0) + a.double() @ b.double())


@pytest.mark.parametrize("first", [True, False])
def test_gradients_by_a_gpus_products_are_those_of_a_cpu(monkeypatch, first):
    generator = torch.Generator().manual_seed(3)
    dlogits, hidden, rows = (torch.randn(*shape, generator=generator) for shape in ((5, 11), (5, 7), (11, 7)))
    hidden, rows = hidden.bfloat16(), rows.bfloat16()
    start = torch.full((11, 7), torch.nan) if first else torch.randn(11, 7, generator=generator)
    lowered = dlogits.bfloat16().double()
    monkeypatch.setattr(head, "_has_matrix_units", lambda tensor: True)
    monkeypatch.setattr(torch, "mm", _mm)
    monkeypatch.setattr(torch, "addmm", _addmm)
    gradient, total = head.operand(dlogits, rows), start.clone()
    assert gradient.dtype == torch.bfloat16
    head.add_head_gradient(total, gradient, hidden, first)
    expected = lowered.t() @ hidden.double() + (0.0 if first else start.double())
    assert torch.allclose(total.double(), expected, atol=1e-5)
    formed = head.hidden_gradient(gradient, rows)
    assert formed.dtype == torch.float32 and torch.allclose(formed.double(), lowered @ rows.double(), atol=1e-5)


def test_a_cpu_takes_as_many_tokens_at_a_time_as_ever():
    assert ObjectiveConfig().tokens_at_once(gpu=False) == Objective().chunk_tokens == 512
    assert ObjectiveConfig(chunk_tokens=64).tokens_at_once(gpu=True) == 64
