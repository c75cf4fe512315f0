"""Log-probs, entropy and SFT's loss equal torch's cross entropy."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from vold_nemo.objective import VocabularyShard, nll_loss, token_logprobs


def inputs():
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(19, 5, generator=g, dtype=torch.float64)
    head = torch.randn(24, 5, generator=g, dtype=torch.float64)
    sampleable = torch.arange(24) < 21
    weight = torch.rand(19, generator=g).double() * (torch.rand(19, generator=g) < 0.6)
    return hidden, head, torch.randint(0, 21, (19,), generator=g), weight, sampleable


def both(group=None, rank=0, ranks=1):
    hidden, head, targets, weight, sampleable = inputs()
    shard = VocabularyShard.of(rank, ranks, sampleable, group=group)
    part = slice(shard.start, shard.start + shard.size)
    logprobs, entropy = token_logprobs(hidden, head[part], targets, shard, temperature=0.6, chunk_tokens=4)
    h, w = hidden.clone().requires_grad_(), head[part].clone().requires_grad_()
    garbage = torch.where(weight == 0, -100, targets)
    loss, nll = nll_loss(h, w, garbage, weight, shard, chunk_tokens=4)
    loss.backward()
    d_hidden = h.grad.clone()
    if group is not None:
        dist.all_reduce(d_hidden, group=group)
    return logprobs, entropy, loss.detach(), nll, d_hidden, w.grad


def _on_rank():
    return both(dist.group.WORLD, dist.get_rank(), dist.get_world_size())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_logprobs_and_sft_gradients_equal_cross_entropy(gloo, ranks):
    hidden, head, targets, weight, sampleable = inputs()
    keep = int(sampleable.sum())
    distribution = torch.distributions.Categorical(logits=hidden @ head[:keep].T / 0.6)
    h, w = hidden.requires_grad_(), head.requires_grad_()
    expected = cross_entropy(h @ w[:keep].T, targets, reduction="none")
    (expected * weight).sum().backward()
    for rank, (logprobs, entropy, loss, nll, d_hidden, d_head) in enumerate(gloo(ranks).run(_on_rank)):
        torch.testing.assert_close(logprobs, distribution.log_prob(targets).detach())
        torch.testing.assert_close(entropy, distribution.entropy().detach())
        torch.testing.assert_close(loss, (expected * weight).sum().detach())
        torch.testing.assert_close(nll, torch.where(weight == 0, 0, expected.detach()))
        torch.testing.assert_close(d_hidden, h.grad)
        torch.testing.assert_close(d_head, w.grad.chunk(ranks)[rank])


def test_a_frozen_head_gets_no_gradient_and_costs_none():
    hidden, head, targets, weight, sampleable = inputs()
    loss, _ = nll_loss(hidden.requires_grad_(), head, targets, weight, VocabularyShard.of(0, 1, sampleable))
    loss.backward()
    assert head.grad is None and hidden.grad.abs().sum() > 0


def test_validation_without_gradients_gives_the_same_loss():
    hidden, head, targets, weight, sampleable = inputs()
    shard = VocabularyShard.of(0, 1, sampleable)
    with torch.no_grad():
        quiet, _ = nll_loss(hidden.requires_grad_(), head, targets, weight, shard)
    loud, _ = nll_loss(hidden, head, targets, weight, shard)
    assert not quiet.requires_grad and torch.equal(quiet, loud.detach())


def test_a_target_that_cannot_be_sampled_is_an_error():
    hidden, head, targets, _, sampleable = inputs()
    targets[4] = 22
    with pytest.raises(ValueError, match=r"target id 22 of token 4"):
        token_logprobs(hidden, head, targets, VocabularyShard.of(0, 1, sampleable))


def test_a_second_backward_is_an_error_and_not_a_wrong_gradient():
    hidden, head, targets, weight, sampleable = inputs()
    loss, _ = nll_loss(hidden.requires_grad_(), head, targets, weight, VocabularyShard.of(0, 1, sampleable))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already handed over"):
        loss.backward()
