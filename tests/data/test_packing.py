"""Bins hold everything once, are full, and depend on lengths alone; packed rows carry the same trained tokens."""

import numpy as np
import pytest
import torch

from tests.data.test_sft_batches import examples, trained
from vold_nemo.data.packing import first_fit_decreasing
from vold_nemo.data.sft_batches import sft_batch
from vold_nemo.data.traces import SFTExample
from vold_nemo.megatron.sequences import on_this_rank, zigzag
from vold_nemo.step import pack


def test_bins_hold_each_sequence_once_and_waste_little():
    lengths = np.random.default_rng(0).lognormal(8.0, 0.6, 512).clip(64, 8192).astype(int).tolist()
    bins = first_fit_decreasing(lengths, 8192)
    assert sorted(i for members in bins for i in members) == list(range(512))
    assert all(sum(lengths[i] for i in members) <= 8192 for members in bins)
    assert len(bins) <= 1.03 * sum(lengths) / 8192 + 1
    assert first_fit_decreasing([5, 9, 1, 4, 4], 8) == [[1], [0, 2], [3, 4]]


@pytest.mark.parametrize(("ranks", "sequence", "multiple"), [(1, 1, 1), (2, 4, 8), (4, 2, 6)])
def test_every_layout_packs_the_same_tokens_with_the_same_weight(ranks, sequence, multiple):
    data, indices = examples(), [3, 16, 0, 9, 9, 4, 11, 2]

    def batches(**options):
        return [sft_batch(data, indices, data_rank=rank, micro_batch=1, **options) for rank in range(options["data_ranks"])]

    packed = batches(data_ranks=ranks, pack_length=48, sequence_multiple=sequence, pad_multiple=multiple)
    plain = batches(data_ranks=1)
    assert trained(packed) == trained(plain)
    assert len({len(part.micro_batches) for part in packed}) == 1
    for part in packed:
        for batch in part.micro_batches:
            assert batch.ids.shape[1] % multiple == 0 and all(bound % sequence == 0 for bound in batch.bounds[:-1])
            for j, (start, length) in enumerate(zip(batch.bounds, batch.lengths, strict=False)):
                assert batch.position_ids[0, start : start + length].tolist() == list(range(length))
                assert batch.ids[0, start : start + length].tolist() == data[batch.rows[j]].ids.tolist()
    assert 0.5 < packed[0].fill <= 1 and {part.fill for part in packed} == {packed[0].fill}


def test_the_slices_of_the_context_ranks_are_the_whole_row_and_their_losses_add_up():
    class Layout:
        context = 4

    data = [SFTExample(np.arange(n, dtype=np.int32), p, str(n)) for n, p in ((21, 5), (8, 1), (40, 30))]
    batch = pack([(e.ids, e.prompt_length) for e in data], rows=(4, 2, 7), multiple=8, length=80)
    found = []
    for Layout.context_rank in range(4):
        mine = on_this_rank(batch, Layout)
        index = zigzag(batch.bounds, Layout.context_rank, 4)
        assert torch.equal(mine.ids, batch.ids[:, index]) and torch.equal(mine.position_ids, batch.position_ids[:, index])
        found.append(mine.predictions[:, mine.counts])
        found[-1][0] = index[found[-1][0]]
    found = torch.cat(found, dim=1)
    assert torch.equal(found[:, found[0].argsort()], batch.predictions)  # each once, where it was, with all that is known
    responses = [data[j].ids[data[j].prompt_length :].tolist() for j in range(3)]
    assert [batch.targets[batch.sequence == j].tolist() for j in range(3)] == responses
    assert batch.token.tolist() == list(range(sum(map(len, responses))))
    with pytest.raises(ValueError, match="2 x 4 equal pieces"):
        zigzag((0, 12), 0, 4)
