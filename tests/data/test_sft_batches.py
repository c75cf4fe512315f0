"""Stage 1 batches: no layout changes what is trained on, or with which weight."""

import numpy as np
import pytest
import torch

from vold_nemo.data.sft_batches import sft_batch
from vold_nemo.data.traces import SFTExample


def examples(count=17, seed=0):
    generator = np.random.default_rng(seed)
    made = []
    for i in range(count):
        prompt, response = generator.integers(1, 6), generator.integers(1, 30)
        made.append(SFTExample(generator.integers(1, 50, prompt + response).astype(np.int32), int(prompt), f"{i}/0"))
    return made


def trained(batches):
    """(row, token, weight) of every trained prediction of all ranks, sorted."""
    return sorted(
        (row, target, part.weight)
        for part in batches
        for batch in part.micro_batches
        for row, target, counts in zip(batch.row.tolist(), batch.targets.tolist(), batch.counts.tolist(), strict=True)
        if counts
    )


LAYOUTS = [(1, 1, 1), (1, 4, 1), (2, 1, 1), (2, 4, 4), (4, 3, 8), (4, 16, 2)]


@pytest.mark.parametrize(("ranks", "micro", "multiple"), LAYOUTS)
def test_every_layout_trains_the_same_tokens_with_the_same_weight(ranks, micro, multiple):
    data, indices = examples(), [3, 16, 0, 9, 9, 4, 11, 2]
    batches = [
        sft_batch(data, indices, data_rank=rank, data_ranks=ranks, micro_batch=micro, pad_multiple=multiple)
        for rank in range(ranks)
    ]
    responses = [int(token) for i in indices for token in data[i].ids[data[i].prompt_length :]]
    assert sorted(token for _, token, _ in trained(batches)) == sorted(responses)
    assert {weight for _, _, weight in trained(batches)} == {1 / len(responses)}
    assert {len(part.micro_batches) for part in batches} == {-(-len(indices) // micro // ranks) or 1}
    assert all(batch.ids.shape[1] % multiple == 0 for part in batches for batch in part.micro_batches)
    assert sum(batch.ids.numel() for part in batches for batch in part.micro_batches) == batches[0].padded_tokens


@pytest.mark.parametrize("pack_length", [None, 40])
def test_virtual_stages_get_a_multiple_of_micro_batches_and_the_same_work(pack_length):
    data, indices = examples(), [3, 16, 0, 9, 9, 4, 11, 2, 7]
    cut = dict(data_ranks=2, micro_batch=2, pack_length=pack_length)
    plain, batches = (
        [sft_batch(data, indices, data_rank=rank, micro_batch_multiple=multiple, **cut) for rank in range(2)]
        for multiple in (1, 4)
    )
    assert trained(batches) == trained(plain)
    assert {len(part.micro_batches) % 4 for part in batches} == {0} == {len(batches[0].micro_batches) - 4}
    empty = sum(not batch.rows for part in batches for batch in part.micro_batches)
    assert {part.dummies for part in batches} == {empty} and empty > plain[0].dummies


def test_the_gradient_of_a_linear_model_does_not_depend_on_the_layout():
    data, indices = examples(), list(range(17))
    gradients = []
    for ranks, micro, multiple in LAYOUTS:
        table = torch.randn(50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        for rank in range(ranks):
            part = sft_batch(data, indices, data_rank=rank, data_ranks=ranks, micro_batch=micro, pad_multiple=multiple)
            for batch in part.micro_batches:
                logits = table[batch.ids.t().flatten()[batch.at]][batch.counts]  # Megatron's order
                nll = torch.nn.functional.cross_entropy(logits, batch.targets[batch.counts], reduction="sum")
                (part.weight * nll).backward()
        gradients.append(table.grad)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-13, rtol=0)


def test_micro_batches_hold_traces_of_similar_length():
    data = examples(256, seed=1)
    part = sft_batch(data, range(256), data_rank=0, data_ranks=1, micro_batch=8)
    real = sum(len(example.ids) for example in data)
    assert part.padded_tokens < 1.1 * real
    longest = max(len(example.ids) for example in data)
    assert part.padded_tokens < 0.7 * 256 * longest


def test_the_same_batch_is_cut_the_same_way_whatever_the_order_of_its_indices():
    data = examples()
    one, other = (sft_batch(data, order, data_rank=1, data_ranks=2, micro_batch=2) for order in ([5, 1, 8, 2], [2, 8, 1, 5]))
    assert [batch.rows for batch in one.micro_batches] == [batch.rows for batch in other.micro_batches]
