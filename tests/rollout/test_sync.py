"""The two proofs of a weight sync notice what they are there to notice."""

from __future__ import annotations

import pytest
import torch

from vold_nemo.rollout.sync import ChecksummedStream, combine, compare_logprobs, tensor_digest


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(4, 6, generator=generator) for name in ("a", "b", "c")}


def checksum(named: dict[str, torch.Tensor]) -> str:
    return combine({name: tensor_digest(name, tensor) for name, tensor in named.items()})


def swapped(named):
    named["a"], named["b"] = named["b"], named["a"]


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w["a"].view(-1)[5].mul_(1 + 2e-7),  # one bit or two of one element
        lambda w: w.update(a=w["a"].flip(0)),  # the same values elsewhere
        lambda w: w.update(a=w["a"].reshape(6, 4)),
        lambda w: w.update(a=w["a"].bfloat16()),
        lambda w: w["b"].neg_(),
        lambda w: w.pop("c"),
        swapped,
    ],
)
def test_any_change_of_a_weight_changes_the_checksum(change):
    changed = weights()
    change(changed)
    assert checksum(changed) != checksum(weights())


def test_order_and_memory_layout_do_not_change_the_checksum():
    named = weights()
    assert checksum(dict(reversed(named.items()))) == checksum(named)
    assert checksum({name: tensor.t().contiguous().t() for name, tensor in named.items()}) == checksum(named)


def test_a_stream_that_was_altered_on_its_way_is_refused():
    stream = ChecksummedStream(weights().items(), torch.float32)
    received = {name: tensor.clone() for name, tensor in stream}
    stream.confirm(checksum(received))
    received["b"][0, 0] = 0
    with pytest.raises(RuntimeError, match="other weights"):
        stream.confirm(checksum(received))


def test_the_probe_reports_mean_and_largest_difference():
    report = compare_logprobs([-1.0, -2.0, -3.0], torch.tensor([-1.0, -2.01, -2.97]), 0.05)
    assert (report.tokens, round(report.max, 6), round(report.mean, 6)) == (3, 0.03, round(0.04 / 3, 6))


@pytest.mark.parametrize(
    ("engine", "trainer", "message"),
    [
        ([-1.0, -2.0], [-1.0, -2.2], "token 1 of 2"),
        ([-1.0, float("nan")], [-1.0, -2.0], "token 1 of 2"),
        ([-1.0, -2.0], [-1.0], "engine gave 2 tokens"),
        ([], [], "engine gave 0 tokens"),
    ],
)
def test_the_probe_stops_a_run_whose_engine_disagrees(engine, trainer, message):
    with pytest.raises(RuntimeError, match=message):
        compare_logprobs(engine, trainer, 0.05)
