"""Values and gradients equal a dense float64 reference, at TP 1, 2 and 4."""

from dataclasses import fields, replace

import pytest
import torch
import torch.distributed as dist

from tests.objective.cases import loss_of, make_case, ours, reference
from vold_nemo.objective import CorrectionTerm, KLTerm, PolicyTerm, TokenBatch, VocabularyShard

ESTIMATORS = {
    "k2": KLTerm("k2"),
    "k3": KLTerm("k3"),
    "vopd": KLTerm("vopd"),
    "k1_immediate": KLTerm("k1_reward"),
    "k1_return": KLTerm("k1_reward", reward_horizon="return_to_go"),
    "reverse": KLTerm("reverse"),
    "forward": KLTerm("forward"),
    "jsd": KLTerm("jsd", jsd_weight=0.3),
    "topk": KLTerm("topk", top_k=5),
    "topk_all": KLTerm("topk", top_k=1000),
    "reverse_one_sided": KLTerm("reverse", one_sided=True),
    "jsd_one_sided": KLTerm("jsd", one_sided=True),
    "topk_one_sided": KLTerm("topk", top_k=5, one_sided=True),
    "reverse_clamped": KLTerm("reverse", clamp=3.0),
    "k2_clamped": KLTerm("k2", clamp=5.3),
    "vopd_clamped": KLTerm("vopd", clamp=1.0),
    "k1_clamped": KLTerm("k1_reward", clamp=3.0),
    "k3_clamped": KLTerm("k3", clamp=3.0),
    "forward_clamped": KLTerm("forward", clamp=4.65),
    "jsd_clamped": KLTerm("jsd", clamp=0.42),
    "topk_clamped": KLTerm("topk", top_k=5, clamp=1.0),
}
OPTIONS = {f"grpo-{name}": {"policy": PolicyTerm(), "kl": kl} for name, kl in ESTIMATORS.items()}
OPTIONS |= {
    "grpo": {"policy": PolicyTerm(), "kl": None, "without_kl": True},
    "dual_clip": {"policy": PolicyTerm(dual_clip=1.5), "kl": None, "without_kl": True},
    "gspo-k2": {"policy": PolicyTerm("gspo", 0.05, 0.05), "kl": KLTerm("k2")},
    "gspo-on_policy": {"policy": PolicyTerm("gspo"), "kl": KLTerm("reverse"), "old": False},
    "gspo-k1_return": {"policy": PolicyTerm("gspo"), "kl": KLTerm("k1_reward", reward_horizon="return_to_go")},
    "gspo-k1-on_policy": {"policy": PolicyTerm("gspo"), "kl": KLTerm("k1_reward"), "old": False},
    "on_policy-k2": {"policy": PolicyTerm(), "kl": KLTerm("k2"), "old": False},
    "distillation_only": {"policy": None, "kl": KLTerm("reverse")},
    "distillation_by_reward": {"policy": None, "kl": KLTerm("k1_reward"), "old": False},
}
for mode in ("token", "sequence", "sequence_mask"):
    for old in (True, False):
        for loss in ("grpo", "gspo"):
            OPTIONS[f"{mode}-{loss}-{'old' if old else 'on_policy'}"] = {
                "policy": PolicyTerm(loss), "kl": KLTerm("k2"), "old": old,
                "correction": CorrectionTerm(mode, cap=1.2, on_kl=old),
            }  # fmt: skip
OPTIONS["correction-on-exact-kl"] = {
    "policy": None, "kl": KLTerm("reverse"), "correction": CorrectionTerm("sequence", cap=1.2),
}  # fmt: skip


def build(name):
    options = dict(OPTIONS[name])
    case = make_case(old=options.pop("old", True))
    if options["policy"] is None:
        case[1].policy_weight.zero_()
    if options.pop("without_kl", False):
        case[1].kl_weight.zero_()
    return case, options | {"temperature": 0.7, "teacher_temperature": 1.3, "chunk_tokens": 5}


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got.double(), expected.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradients_equal_the_dense_reference(name):
    case, options = build(name)
    loss, statistics, d_hidden, d_head = ours(case, scale=3.0, **options)
    expected, (logprob, entropy, kl, keep), e_hidden, e_head = reference(case, **options)
    assert e_head.abs().max() > 1e-3  # the comparison below says something
    close(loss, expected)
    close(d_hidden, 3 * e_hidden)
    close(d_head, 3 * e_head)
    close(statistics.logprob[keep], logprob)
    close(statistics.entropy[keep], entropy)
    close(statistics.policy_loss.sum() + statistics.kl_loss.sum(), expected)
    if kl is not None:
        close(statistics.kl[keep], kl)


def _on_rank():
    results = {}
    for name in OPTIONS:
        case, options = build(name)
        loss, statistics, d_hidden, d_head = ours(case, dist.group.WORLD, dist.get_rank(), dist.get_world_size(), **options)
        results[name] = loss, statistics.kl, statistics.logprob, statistics.entropy, d_hidden, d_head
    return results


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_equal_the_dense_reference_under_tensor_parallelism(gloo, ranks):
    results = gloo(ranks).run(_on_rank)
    for name in OPTIONS:
        case, options = build(name)
        expected, (logprob, entropy, kl, keep), e_hidden, e_head = reference(case, **options)
        for rank, result in enumerate(results):
            loss, value, lp, h, d_hidden, d_head = result[name]
            assert torch.equal(loss, results[0][name][0]), f"{name}: the loss differs between ranks"
            close(loss, expected)
            close(lp[keep], logprob)
            close(h[keep], entropy)
            close(d_hidden, e_hidden)
            close(d_head, e_head.chunk(ranks)[rank])
            if kl is not None:
                close(value[keep], kl)


WHOLE = [
    name for name in OPTIONS
    if name.startswith(("gspo", "k1", "sequence")) or name in ("grpo-k1_return", "correction-on-exact-kl", "token-gspo-old")
]  # fmt: skip


def _on_context_rank():
    """Each rank has its zig-zag half of every sequence, as context parallelism cuts it; then a rank that has no token."""
    results, rank = {}, dist.get_rank()
    for name in WHOLE:
        for empty in (False, True):
            ((hidden, head, teacher_hidden, teacher_head), batch, *ids), options = build(name)
            positions = positions_of(batch.sequence)
            pieces = positions * 4 // torch.bincount(batch.sequence)[batch.sequence]  # 0..3 of a sequence's quarters
            mine = torch.full_like(pieces, rank == 1, dtype=torch.bool) if empty else (pieces % 3 == 0) == (rank == 0)
            batch = replace(batch, position=positions)
            part = TokenBatch(**{f.name: None if (v := getattr(batch, f.name)) is None else v[mine] for f in fields(batch)})
            case = (hidden[mine], head, teacher_hidden[mine], teacher_head), part, *ids
            loss, _, d_hidden, d_head = ours(case, context=dist.group.WORLD, **options)
            results[name, empty] = mine, loss, d_hidden, d_head
    return results


def positions_of(sequence):
    return torch.stack([(sequence[:i] == s).sum() for i, s in enumerate(sequence)])


def test_sums_over_sequences_and_their_gradients_cross_context_parallel_ranks(gloo):
    results = gloo(2).run(_on_context_rank)
    assert len(WHOLE) >= 14
    for key in results[0]:
        case, options = build(key[0])
        expected, _, e_hidden, e_head = reference(case, **options)
        assert e_head.abs().max() > 1e-3
        (first, *a), (second, *b) = results[0][key], results[1][key]
        assert torch.equal(first, ~second) and (key[1] or (first.any() and second.any()))
        close(a[0] + b[0], expected)
        close(a[2] + b[2], e_head)
        for mine, (_, d_hidden, _) in ((first, a), (second, b)):
            close(d_hidden, e_hidden[mine])


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name.endswith("_clamped")])
def test_the_clamped_share_counts_the_tokens_beyond_the_bound(name):
    term, case = ESTIMATORS[name], make_case()
    free = ours(case, policy=PolicyTerm(), kl=KLTerm(term.estimator, top_k=term.top_k))[1]
    beyond = free.kl.abs() if term.estimator == "k1_reward" else free.kl
    if term.estimator == "vopd":  # its coefficient is what is bounded: k1 less the exact KL
        k1 = ours(case, policy=PolicyTerm(), kl=KLTerm("k1_reward"))[1].kl
        beyond = (k1 - free.kl).abs()
    said = ours(case, policy=PolicyTerm(), kl=term)[1]
    assert torch.equal(said.kl_clamped, (beyond > term.clamp) & said.kl_active)
    assert 0 < said.sums()["kl_clamped"] < said.sums()["kl_tokens"]


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_what_a_k1_reward_adds_is_the_kl_part_of_the_loss(loss):
    case = make_case(old=False)  # on-policy every ratio is 1: the part is Σ w·k1, and the rest is pure policy gradient
    _, said, *_ = ours(case, policy=PolicyTerm(loss), kl=KLTerm("k1_reward"))
    close(said.kl_loss, case[1].kl_weight * said.kl)
    case[1].kl_weight.zero_()
    _, pure, *_ = ours(case, policy=PolicyTerm(loss))
    close(said.policy_loss, pure.policy_loss)


@pytest.mark.parametrize("name", ["grpo-reverse", "gspo-k2"])
def test_a_given_buffer_takes_the_heads_gradient_and_autograd_sees_none(name):
    case, options = build(name)
    (hidden, head, teacher_hidden, teacher_head), batch, sampleable, shared = case
    _, _, expected_hidden, expected = reference(case, **options)
    hidden, head, buffer = hidden.requires_grad_(), head.requires_grad_(), torch.ones_like(head).detach()
    for _ in range(2):  # micro-batches add up
        loss, _ = loss_of(
            hidden, head, batch, VocabularyShard.of(0, 1, sampleable, shared), head_gradient=buffer,
            teacher_hidden=teacher_hidden, teacher_head=teacher_head, **options,
        )  # fmt: skip
        loss.backward()
    close(buffer, 1 + 2 * expected)
    close(hidden.grad, 2 * expected_hidden)
    assert head.grad is None


def test_a_loss_whose_head_gradient_is_already_added_cannot_be_scaled():
    case, options = build("grpo-reverse")
    (hidden, head, teacher_hidden, teacher_head), batch, sampleable, shared = case
    arguments = hidden.requires_grad_(), head.requires_grad_(), batch, VocabularyShard.of(0, 1, sampleable, shared)
    options |= {"teacher_hidden": teacher_hidden, "teacher_head": teacher_head}
    loss, _ = loss_of(*arguments, head_gradient=torch.zeros_like(head), **options)
    with pytest.raises(RuntimeError, match=r"cannot be scaled"):
        (2 * loss).backward()
    with pytest.raises(ValueError, match=r"head_gradient is torch\.float32"):
        loss_of(*arguments, head_gradient=torch.zeros_like(head, dtype=torch.float32), **options)
