"""A rank's share of a parameter is written as boxes: all of its elements, each once, from where they lie."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from vold_nemo.checkpoint.optimizer_state import boxes


@pytest.mark.parametrize("shape", [(7,), (3, 4), (1, 5), (4, 1), (2, 3, 2)])
def test_an_interval_of_elements_is_a_few_boxes(shape):
    numbers = torch.arange(torch.Size(shape).numel()).view(shape)
    for first, last in itertools.combinations_with_replacement(range(numbers.numel() + 1), 2):
        found = list(boxes(shape, first, last))
        inside = [
            numbers[tuple(slice(at, at + many) for at, many in zip(offset, size, strict=True))] for offset, size, _ in found
        ]
        assert [int(box.flatten()[0]) for box in inside] == [at for *_, at in found]
        assert [int(n) for box in inside for n in box.flatten()] == list(range(first, last))
        assert len(found) <= 2 * len(shape) - 1


@pytest.mark.parametrize(("first", "last"), [(0, 24), (3, 21), (13, 14), (0, 12), (12, 24)])
def test_a_parameter_that_lies_in_two_pieces_on_disk_keeps_its_elements(first, last):
    """Gate and up of tensor rank 1 of 2: rows 1 and 3 of four pieces, each [3, 4]; layer 5 of 9 is a prepended axis."""
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

    from vold_nemo.checkpoint import optimizer_state

    parameter = torch.nn.Parameter(torch.zeros(6, 4))
    layer = (0, 5, 9)
    one = ShardedTensor.from_rank_offsets(
        "decoder.fc1", parameter, layer, (1, 1, 2), replica_id=(0, 0, 1), prepend_axis_num=1
    )
    flat = torch.arange(24.0)[first:last]
    part = SimpleNamespace(
        gbuf_ranges=[{"dtype": [{"param_map": {parameter: {"param": SimpleNamespace(start=first, end=last)}}}]}],
        _get_main_param_and_optimizer_states=lambda _: {"exp_avg": flat, "step": torch.tensor(3.0)},
    )
    found = optimizer_state._boxes_of(part, {"fc1": apply_swiglu_sharded_factory(one, (layer,))})
    whole = torch.full((9, 12, 4), torch.nan)
    for box in found.values():
        assert box.key == "optimizer.state.exp_avg.decoder.fc1" and box.global_shape == (9, 12, 4)
        assert box.replica_id == (0, 0, 0) and box.data.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        place = tuple(slice(at, at + many) for at, many in zip(box.global_offset, box.local_shape, strict=True))
        assert whole[place].isnan().all()
        whole[place] = box.data
    expected = torch.full((24,), torch.nan)
    expected[first:last] = torch.arange(24.0)[first:last]
    gate, up = expected.view(2, 3, 4)
    torch.testing.assert_close(whole[5, 3:6], gate, equal_nan=True)
    torch.testing.assert_close(whole[5, 9:12], up, equal_nan=True)
    assert int((~whole.isnan()).sum()) == last - first
