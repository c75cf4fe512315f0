"""Loss, gradient norm and trajectory are those of the dense model, in every layout and micro-batching."""

import functools
import math

import pytest
import torch

from tests.covering import covering
from tests.megatron import steps, tiny
from vold_nemo.config import OptimizerConfig
from vold_nemo.megatron.optimizer import LearningRate
from vold_nemo.megatron.training import NonFinite, NonFiniteError, NonFiniteGuard, Update

KINDS = ["qwen2_tied", "qwen3"]


@pytest.fixture(scope="module")
def trajectory_of(tmp_path_factory):
    """``trajectory_of(kind)``: a checkpoint, and the trajectory that transformers in float64 and torch's AdamW take from it."""
    return functools.cache(lambda kind: trajectory(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module", params=KINDS)
def pinned(request, trajectory_of):
    return trajectory_of(request.param)


def trajectory(name, path):
    model = tiny.save(name.split("_")[0], path, tied=name.endswith("tied")).double()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    decay = steps.OPTIMIZER["weight_decay"]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    found = []
    for step in range(steps.STEPS):
        w, total = 2, steps.STEPS
        peak = steps.OPTIMIZER["learning_rate"]
        rate = peak * (step + 1) / w if step < w else peak * 0.5 * (1 + math.cos(math.pi * (step - w) / (total - w)))
        for group in adam.param_groups:
            group["lr"] = rate
        loss = 0.0
        for row in steps.sequences(step):
            logits = model(input_ids=row[None]).logits[0, :-1]
            loss = loss + torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum") * steps.token_weight()
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        found.append((loss.item(), norm.item()))
    return path, found


LAYOUTS = [  # world, tensor, pipeline, sequence, sequences in a micro-batch
    (1, 1, 1, False, 4), (1, 1, 1, False, 2), (1, 1, 1, False, 1), (2, 2, 1, False, 2), (2, 2, 1, True, 2),
    (2, 1, 2, False, 1), (2, 1, 1, False, 2), (2, 1, 1, False, 1), (4, 2, 2, False, 1), (4, 2, 2, True, 2),
    (4, 2, 1, True, 1), (4, 4, 1, False, 4),
]


@pytest.mark.parametrize(("kind", "layout"), covering(KINDS, LAYOUTS, strength=1))
def test_trajectory_equals_the_dense_model_in_float64(trajectory_of, kind, layout, gloo):
    path, expected = trajectory_of(kind)
    world, tensor, pipeline, sequence, size = layout
    results = gloo(world).run(steps.trajectory, path, tensor, pipeline, sequence, size)
    assert expected[0][0] - expected[-1][0] != 0 and expected[0][1] > 1.0  # it trains, and clipping is at work
    for found in results:
        assert found == results[0]  # every rank reports the same numbers
        for (loss, norm), (dense_loss, dense_norm) in zip(found, expected, strict=True):
            assert loss == pytest.approx(dense_loss, rel=1e-5)
            assert norm == pytest.approx(dense_norm, rel=1e-5)


def test_distributed_optimizer_takes_the_plain_optimizers_steps(pinned, gloo):
    path, expected = pinned
    found = gloo(2).run(steps.trajectory, path, 1, 1, False, 1, steps.STEPS, {"distributed": True})[0]
    for (loss, norm), (dense_loss, dense_norm) in zip(found, expected, strict=True):
        assert loss == pytest.approx(dense_loss, rel=1e-5)
        assert norm == pytest.approx(dense_norm, rel=1e-5)


def test_bf16_training_keeps_hidden_states_in_bf16_and_follows_fp32(pinned, gloo):
    path, expected = pinned
    dtypes, found = gloo(1).run(_bf16, path)[0]
    assert dtypes == {torch.bfloat16}
    assert found[0][0] == pytest.approx(expected[0][0], rel=2e-2)
    assert found[-1][0] == pytest.approx(expected[-1][0], rel=2e-2)


def _bf16(path):
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.training import forward_backward

    parts = steps.trainer(path, 1, 1, dtype=torch.bfloat16)
    model, arch, layout = parts[:3]
    try:
        inner = steps.nll_step(arch, layout)
        seen = set()

        def step(model, rows):
            output, loss = inner(model, rows)
            seen.add(output.dtype)
            return output, loss

        forward_backward(model, steps.micro_batches(0, layout, 2), step, layout=layout, forward_only=True)
        return seen, steps.train(parts, 0, steps.STEPS, 2)
    finally:
        parallel.destroy()


def test_forward_only_gives_the_loss_and_leaves_gradients_alone(pinned, gloo):
    path, expected = pinned
    for loss, touched, requires in gloo(2).run(_forward_only, path, 1, 2):
        assert loss == pytest.approx(expected[0][0], rel=1e-5)
        assert not touched and not requires


def _forward_only(path, tensor, pipeline):
    """The bare model (no DDP), as a teacher is run."""
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.training import forward_backward

    model, arch, layout = tiny.built(path, tensor, pipeline)
    try:
        inner, outputs = steps.nll_step(arch, layout), []

        def step(model, rows):
            output, loss = inner(model, rows)
            outputs.append(output)
            return output, loss

        passed = forward_backward(model, steps.micro_batches(0, layout, 1), step, layout=layout, forward_only=True)
        return passed.loss, any(p.grad is not None for p in model.parameters()), any(o.requires_grad for o in outputs)
    finally:
        parallel.destroy()


@pytest.mark.parametrize("world,tensor,pipeline", [(1, 1, 1), (2, 1, 2), (2, 2, 1), (2, 1, 1)])
def test_a_nan_loss_names_its_rank_and_micro_batch_and_changes_no_weight(pinned, world, tensor, pipeline, gloo):
    path, expected = pinned
    for rank, (named, unchanged, then) in enumerate(gloo(world).run(_poisoned, path, tensor, pipeline)):
        culprit = world - 1 if pipeline > 1 else 1 % world if tensor == 1 else rank
        assert ("loss", culprit, 0 if tensor == pipeline == 1 and world == 2 else 1) in named
        assert unchanged
        assert then == pytest.approx(expected[0], rel=1e-5)  # the poison is gone with its step


def _poisoned(path, tensor, pipeline):
    from vold_nemo.megatron import parallel
    from vold_nemo.megatron.training import forward_backward, update

    model, arch, layout, optimizer, schedule = steps.trainer(path, tensor, pipeline)
    try:
        before = steps.fingerprint(model)
        bad = len(steps.sequences(0)[1])

        def poison(rows):
            return float("nan") if any(len(row) == bad for row in rows) else 1.0

        batches = steps.micro_batches(0, layout, 1)
        passed = forward_backward(model, batches, steps.nll_step(arch, layout, poison), layout=layout)
        result = update(optimizer, schedule, passed, layout=layout)
        after = steps.fingerprint(model)
        unchanged = result.skipped and all(torch.equal(before[name], after[name]) for name in before)
        schedule.position = 0
        then = steps.train((model, arch, layout, optimizer, schedule), 0, 1, 1)[0]
        return [(item.what, item.rank, item.micro_batch) for item in result.non_finite], unchanged, then
    finally:
        parallel.destroy()


def test_the_guard_stops_a_run_after_its_limit_in_a_row():
    bad = Update(float("nan"), 1e-3, True, [NonFinite(3, 5, "loss")])
    good = Update(1.0, 1e-3, False)
    guard = NonFiniteGuard(2)
    guard.check(10, bad)
    guard.check(11, good)
    guard.check(12, bad)
    with pytest.raises(NonFiniteError, match=r"step 13: not finite: loss on rank 3, micro-batch 5, prompt 'p7'"):
        guard.check(13, bad, lambda item: f"{item}, prompt 'p7'")


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_learning_rate_equals_transformers(kind):
    import transformers

    rate = LearningRate(OptimizerConfig(learning_rate=1.0, warmup_steps=5, schedule=kind), 40)
    parameter = torch.nn.Parameter(torch.zeros(1))
    name = "constant_with_warmup" if kind == "constant" else kind
    reference = transformers.get_scheduler(name, torch.optim.SGD([parameter], lr=1.0), 5, 40)
    factor = reference.lr_lambdas[0]
    assert [rate.value(t) for t in range(5, 41)] == pytest.approx([factor(t) for t in range(5, 41)])
    # transformers' first update has rate 0; ours is its second
    assert [rate.value(t) for t in range(5)] == pytest.approx([factor(t + 1) for t in range(5)])
    assert rate.value(1000) == rate.value(40)
