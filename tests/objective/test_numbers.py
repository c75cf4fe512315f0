"""Ragged shapes, extreme logits, low precision, padding full of NaN, finite differences."""

import random

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.objective import dense
from tests.objective.cases import loss_of, make_case, ours, reference
from vold_nemo.objective import KLTerm, PolicyTerm, TokenBatch, VocabularyShard

ESTIMATORS = ("k2", "k3", "vopd", "k1_reward", "reverse", "forward", "jsd", "topk")


def compare(case, tolerance, **options):
    loss, _, d_hidden, d_head = ours(case, **options)
    expected, _, e_hidden, e_head = reference(case, **options)
    for got, want in ((loss, expected), (d_hidden, e_hidden), (d_head, e_head)):
        assert got.isfinite().all()
        assert (got.double() - want).abs().max() <= tolerance * max(1e-2, want.abs().max())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    V=st.integers(9, 67),
    H=st.integers(1, 9),
    sequences=st.integers(1, 6),
    chunk=st.integers(1, 41),
    temperature=st.floats(0.2, 3.0),
    estimator=st.sampled_from(ESTIMATORS),
    loss=st.sampled_from(["grpo", "gspo"]),
    old=st.booleans(),
    one_sided=st.booleans(),
)
def test_any_shape_and_any_ragged_mask_equals_the_dense_reference(
    seed, n, V, H, sequences, chunk, temperature, estimator, loss, old, one_sided
):
    case = make_case(seed, n=n, V=V, H=H, sequences=sequences, old=old, one_sided=one_sided)
    kl = KLTerm(estimator, top_k=4)
    compare(case, 1e-9, policy=PolicyTerm(loss), kl=kl, temperature=temperature, chunk_tokens=chunk)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_logits_of_ten_thousand_stay_finite_and_exact(estimator, dtype, tolerance):
    case = make_case(3, scale=4000.0, dtype=dtype, old=False)
    logits = case[0][0] @ case[0][1].T
    assert logits.abs().max() > 1e4
    if estimator == "k3":  # q/p overflows here, and is bounded: finite is all there is to ask
        _, _, d_hidden, d_head = ours(case, policy=PolicyTerm(), kl=KLTerm("k3"))
        assert d_hidden.isfinite().all() and d_head.isfinite().all()
    else:
        compare(case, tolerance, policy=PolicyTerm(), kl=KLTerm(estimator, top_k=4), chunk_tokens=7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
def test_low_precision_inputs_lose_only_the_rounding_of_their_gradients(estimator, dtype, tolerance):
    """The reference sees the same rounded inputs in float64: bf16 products are summed in float32 on our side."""
    case = make_case(5, n=40, V=90, H=16, dtype=dtype)
    compare(case, tolerance, policy=PolicyTerm(), kl=KLTerm(estimator, top_k=4), chunk_tokens=16)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
def test_large_products_by_onednn_equal_the_dense_reference(monkeypatch, dtype, tolerance):
    from vold_nemo.objective import head

    taken, inner = [], head.linear
    monkeypatch.setattr(head, "_ONEDNN_FROM", 0)  # every product is large
    monkeypatch.setattr(head, "linear", lambda x, w: taken.append(x.layout) or inner(x, w))
    case = make_case(6, n=30, V=2 * head._ONEDNN_ROWS + 77, H=16, dtype=dtype)  # the last block is ragged
    compare(case, tolerance, policy=PolicyTerm(), kl=KLTerm("reverse"), chunk_tokens=11)  # chunks add to one gradient
    assert taken and set(taken) == {torch._mkldnn}


class Fresh(torch.autograd.Function):
    """gradcheck asks for a backward more than once; our graph gives its gradients away, so each asks a new one."""

    @staticmethod
    def forward(ctx, hidden, head, function):
        with torch.enable_grad():
            inputs = hidden.detach().requires_grad_(), head.detach().requires_grad_()
            loss = function(*inputs)
            ctx.save_for_backward(*torch.autograd.grad(loss, inputs))
        return loss.detach()

    @staticmethod
    def backward(ctx, scale):
        return *(scale * g for g in ctx.saved_tensors), None


@pytest.mark.parametrize("estimator", ["k2", "k3", "reverse", "forward", "jsd", "topk"])
@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_gradients_are_those_of_finite_differences(estimator, loss):
    """For every term that is a plain function of the weights (vopd and k1_reward hold a detached coefficient)."""
    (hidden, head, teacher_hidden, teacher_head), batch, sampleable, shared = make_case(1, n=8, V=14, H=3, sequences=2)
    shard = VocabularyShard.of(0, 1, sampleable, shared)

    def value(h, w):
        return loss_of(
            h, w, batch, shard, policy=PolicyTerm(loss), kl=KLTerm(estimator, top_k=3),
            teacher_hidden=teacher_hidden, teacher_head=teacher_head, chunk_tokens=3, temperature=0.8,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(
        lambda h, w: Fresh.apply(h, w, value), (hidden.requires_grad_(), head.requires_grad_()), atol=1e-6
    )


def poison(case):
    """NaN and infinity wherever a token has no weight."""
    (hidden, head, teacher_hidden, teacher_head), batch, sampleable, shared = case
    idle = (batch.policy_weight == 0) & (batch.kl_weight == 0)
    assert idle.any()
    hidden, teacher_hidden, targets = hidden.clone(), teacher_hidden.clone(), batch.targets.clone()
    hidden[idle], teacher_hidden[batch.kl_weight == 0], targets[idle] = torch.nan, torch.inf, -100
    advantages, old, rollout = (t.clone() for t in (batch.advantages, batch.old_logprobs, batch.rollout_logprobs))
    advantages[batch.policy_weight == 0], old[idle], rollout[idle] = torch.nan, -torch.inf, torch.nan
    poisoned = TokenBatch(targets, batch.sequence, batch.policy_weight, batch.kl_weight, advantages, old, rollout)
    return (hidden, head, teacher_hidden, teacher_head), poisoned, sampleable, shared


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_nothing_in_padding_reaches_a_gradient(estimator, loss):
    options = {"policy": PolicyTerm(loss), "kl": KLTerm(estimator, top_k=4), "chunk_tokens": 4}
    clean = make_case(7)
    for dirty, pure in zip(ours(poison(clean), **options)[2:], ours(clean, **options)[2:], strict=True):
        assert torch.equal(dirty, pure)


def _tied_on_rank():
    """This rank's gradient of a table that is embedding and head, and the dense one's: a look-up split over ranks, summed."""
    (_, table, teacher_hidden, teacher_head), batch, sampleable, shared = make_case(2)
    ids = torch.randint(0, len(table), (len(batch.targets),), generator=torch.Generator().manual_seed(1))
    options = {"policy": PolicyTerm(), "kl": KLTerm("reverse")}
    rank, world = dist.get_rank(), dist.get_world_size()
    shard = VocabularyShard.of(rank, world, sampleable, shared, dist.group.WORLD)
    part = slice(shard.start, shard.start + shard.size)
    own = table[part].clone().requires_grad_()
    column, here = shard.locate(ids)
    looked_up = own[column] * here[:, None]
    states = looked_up.detach().clone()
    dist.all_reduce(states)
    states.requires_grad_()
    loss_of(
        states.tanh(), own, batch, shard, teacher_hidden=teacher_hidden, teacher_head=teacher_head[part],
        chunk_tokens=5, **options,
    )[0].backward()  # fmt: skip
    dist.all_reduce(states.grad)
    looked_up.backward(states.grad)
    whole = table.clone().requires_grad_()
    dense.loss(
        whole[ids].tanh(), whole, batch, sampleable, shared,
        teacher_hidden=teacher_hidden, teacher_head=teacher_head, **options,
    )[0].backward()  # fmt: skip
    return own.grad, whole.grad[part]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_tied_embedding_receives_both_gradients(gloo, ranks):
    for got, want in gloo(ranks).run(_tied_on_rank):
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(got, want)


def _random_shapes_on_rank(seeds):
    """Largest error over random problems, against the largest gradient; no sampleable vocabulary divides by the ranks."""
    rank, world, worst = dist.get_rank(), dist.get_world_size(), 0.0
    for seed in seeds:
        chance = random.Random(seed)
        case = make_case(
            seed, n=chance.randrange(1, 40), V=4 * chance.randrange(4, 18), H=chance.randrange(1, 9),
            sequences=chance.randrange(1, 6), old=chance.random() < 0.5, one_sided=chance.random() < 0.5,
        )  # fmt: skip
        assert int(case[2].sum()) % world
        options = {
            "policy": PolicyTerm(chance.choice(["grpo", "gspo"])), "kl": KLTerm(chance.choice(ESTIMATORS), top_k=4),
            "temperature": chance.uniform(0.3, 2.0), "chunk_tokens": chance.randrange(1, 41),
        }  # fmt: skip
        loss, _, d_hidden, d_head = ours(case, dist.group.WORLD, rank, world, **options)
        expected, _, e_hidden, e_head = reference(case, **options)
        for got, want in ((loss, expected), (d_hidden, e_hidden), (d_head, e_head.chunk(world)[rank])):
            worst = max(worst, float((got - want).abs().max() / max(1e-2, float(want.abs().max()))))
    return worst


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_shape_and_any_ragged_mask_equals_the_dense_reference_under_tensor_parallelism(gloo, ranks):
    assert max(gloo(ranks).run(_random_shapes_on_rank, range(30))) < 1e-9


def _ragged_on_rank(estimator):
    """60 rows on each of 2 or 4 ranks, all ids of the last ranks padding: a rank may hold no id that counts."""
    case = make_case(11, V=48)
    sampleable, shared = case[2], case[3]
    sampleable[20:], shared[20:] = False, False
    case[1].targets.remainder_(17)
    while not shared[case[1].targets].any():
        case[1].targets.add_(1)
    case[1].targets[~sampleable[case[1].targets]] = 0
    options = {"policy": PolicyTerm(), "kl": KLTerm(estimator, top_k=4), "chunk_tokens": 6}
    world = dist.get_world_size()
    loss, _, d_hidden, d_head = ours(case, dist.group.WORLD, dist.get_rank(), world, **options)
    expected, _, e_hidden, e_head = reference(case, **options)
    errors = [(loss - expected).abs(), (d_hidden - e_hidden).abs().max()]
    return float(max(*errors, (d_head - e_head.chunk(world)[dist.get_rank()]).abs().max()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_rank_that_holds_padding_only_joins_and_adds_nothing(gloo, estimator):
    assert max(gloo(4).run(_ragged_on_rank, estimator)) < 1e-10


def _idle_on_rank():
    case = make_case(0)
    case[1].policy_weight.zero_(), case[1].kl_weight.zero_()
    loss, statistics, d_hidden, d_head = ours(
        case, dist.group.WORLD, dist.get_rank(), dist.get_world_size(), policy=PolicyTerm("gspo"), kl=KLTerm("k2")
    )
    return float(loss), float(d_hidden.abs().sum()), float(d_head.abs().sum()), int(statistics.sums()["tokens"])


def test_a_batch_without_a_weight_has_zero_loss_and_zero_gradients(gloo):
    assert gloo(2).run(_idle_on_rank) == [(0.0, 0.0, 0.0, 0)] * 2


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_a_micro_batch_without_any_token_is_legal(loss):
    (hidden, head, *_), _, sampleable, shared = make_case()
    none = torch.zeros(0)
    batch = TokenBatch(none.long(), none.long(), none, none, none)
    hidden, head = hidden[:0].requires_grad_(), head.requires_grad_()
    value, statistics = loss_of(hidden, head, batch, VocabularyShard.of(0, 1, sampleable, shared), policy=PolicyTerm(loss))
    value.backward()
    assert float(value) == 0.0 and head.grad.eq(0).all() and float(statistics.extremes()["kl_min"]) == torch.inf
