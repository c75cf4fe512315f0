"""The rank that the others wait for is named; waiting for it is not counted against them."""

import time
from types import SimpleNamespace

import pytest

from tests.megatron import steps, tiny
from vold_nemo.models.stragglers import slowest


def compared():
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    layout = SimpleNamespace(world=dist.get_world_size(), device=torch.device("cpu"))
    return slowest({"generate": 1.0 + 4 * rank, "train": 2.0 - rank}, layout)


def test_the_slowest_rank_of_each_phase_is_named_on_all(gloo):
    said = {
        "generate": {"rank": 1, "seconds": 5.0, "median": 3.0},
        "train": {"rank": 0, "seconds": 2.0, "median": 1.5},
    }
    assert gloo(2).run(compared) == [said, said]
    assert slowest({"train": 1.0}, SimpleNamespace(world=1)) == {}


def timed(source, nap):
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.training import forward_backward

    parts = steps.trainer(source, 1, 1)
    model, arch, layout, *_ = parts
    try:
        steps.train(parts, 0, 1, 1)
        forward = steps.nll_step(arch, layout)

        def slow(stage, rows):
            time.sleep(nap * layout.rank)
            return forward(stage, rows)

        return forward_backward(model, steps.micro_batches(1, layout, 2), slow, layout=layout).seconds
    finally:
        parallel.destroy()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen2")
    tiny.save("qwen2", path, tied=True)
    return path


def test_waiting_for_a_slow_rank_is_not_counted(gloo, source):
    fast, slow = gloo(2).run(timed, source, 1.0)
    assert slow >= 1.0 and fast < slow - 0.5
