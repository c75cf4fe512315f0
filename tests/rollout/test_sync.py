"""A weight sync brings every engine the trainer's weights or fails on all ranks; its proofs see what they are there for."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.megatron import tiny
from vold_nemo.rollout.fingerprints import Fingerprints
from vold_nemo.rollout.sync import FingerprintedStream, compare_logprobs, deliver


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(4, 6, generator=generator) for name in ("a", "b", "c")}


def checksum(named: dict[str, torch.Tensor]) -> str:
    return Fingerprints.of(named.items()).checksum()


def swapped(named):
    named["a"], named["b"] = named["b"], named["a"]


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w["a"].view(-1)[5].mul_(1 + 2e-7),  # one bit or two of one element
        lambda w: w["a"].view(-1)[:2].copy_(w["a"].view(-1)[:2].flip(0)),  # two neighbours changed places
        lambda w: w["a"].copy_(w["a"].flip(1)),
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
    stream = FingerprintedStream(weights().items(), torch.float32)
    received = {name: tensor.clone() for name, tensor in stream}
    stream.confirm(Fingerprints.of(received.items()))
    received["b"][0, 0] = 0
    with pytest.raises(RuntimeError, match=r"other weights.* 1 of 3 tensors.*is b"):
        stream.confirm(Fingerprints.of(received.items()))


def test_a_rank_that_cannot_read_a_tensor_still_takes_part_in_gathering_the_others(monkeypatch):
    gathered = []

    def stream():
        for name, tensor in weights().items():
            gathered.append(name)
            yield name, tensor

    def fails(self, name, tensor):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Fingerprints, "add", fails)
    with pytest.raises(RuntimeError, match="a could not be read: OutOfMemoryError: no memory"):
        list(FingerprintedStream(stream(), torch.float32))
    assert gathered == ["a", "b", "c"]


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


def delivered(path, checkpoint, tensor: int, pipeline: int, failing: tuple[int, str] | None):
    """Weights of Megatron's model of ``path``, times 1.5, into an engine that was built from ``checkpoint``."""
    from vold_nemo.megatron import exchange, parallel
    from vold_nemo.rollout.transformers_engine import TransformersEngine

    engine = TransformersEngine(checkpoint, stop_ids=(1,))
    model, arch, layout = tiny.built(path, tensor, pipeline)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)

    with pytest.MonkeyPatch.context() as change:
        change.setitem(exchange.LONG, "cpu", 600)  # bytes: most pieces are messages of their own, into the live weights
        weights = exchange.Exchange(model, arch, layout, engine.keeps, engine.room)

    def stream():
        for name, value in weights.stream():
            assert value is engine.room(name) or name == "lm_head.weight"
            yield name, value[:-1] if (dist.get_rank(), name) == failing else value

    try:
        report = deliver(stream(), engine, 4)
        held = {name: live.clone() for name, live in engine._live.items()}
        return report.metrics(), held, engine.version
    except RuntimeError as error:
        return str(error), {}, engine.version
    finally:
        parallel.destroy()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The trainer's, and others of its shape with other weights, which the engines hold at first."""
    root = tmp_path_factory.mktemp("sync")
    for tied in (True, False):
        tiny.save("qwen2_5_vl", root / f"trainer {tied}", tied=tied)
        tiny.save("qwen2_5_vl", root / f"engine {tied}", tied=tied, seed=1)
    return root


@pytest.mark.parametrize(("tied", "tensor", "pipeline"), [(True, 2, 2), (False, 2, 2), (True, 1, 1), (False, 4, 1)])
def test_every_rank_s_engine_holds_the_trainer_s_weights_bit_for_bit(checkpoints, tied, tensor, pipeline, gloo):
    from safetensors.torch import load_file

    stored = load_file(checkpoints / f"trainer {tied}" / "model.safetensors")
    expected = {name: value * 1.5 for name, value in stored.items() if "visual" not in name}
    jobs = gloo(tensor * pipeline).run(
        delivered, checkpoints / f"trainer {tied}", checkpoints / f"engine {tied}", tensor, pipeline, None
    )
    for metrics, held, version in jobs:
        assert version == 4 and metrics["bytes"] == sum(value.numel() * 4 for value in expected.values())
        assert held.keys() == expected.keys() and all(torch.equal(held[name], expected[name]) for name in expected)


def test_a_load_that_fails_on_one_rank_fails_on_all_and_names_rank_and_tensor(checkpoints, gloo):
    name = "model.layers.1.mlp.up_proj.weight"
    jobs = gloo(4).run(delivered, checkpoints / "trainer True", checkpoints / "engine True", 2, 2, (2, name))
    for said, _, version in jobs:
        assert "rank 2 of 4" in said and name in said and version is None
