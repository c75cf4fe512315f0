"""Which gradient each estimator has in expectation: all sequences of a toy language, enumerated, each with its probability.

The student and the teacher are tables of logits over V = 3 ids, a row per state (the ids so far), T = 2 steps.  An estimator's
expected gradient is Σ_y π(y) ∇loss(y), with our `vold_loss` giving ∇loss(y) for the on-policy sample y.
"""

import itertools

import pytest
import torch

from tests.objective.cases import loss_of
from vold_nemo.objective import KLTerm, TokenBatch, VocabularyShard

V, T = 3, 2
STATES = [()] + [(a,) for a in range(V)]
SEQUENCES = list(itertools.product(range(V), repeat=T))
SHARD = VocabularyShard.of(0, 1, torch.ones(V, dtype=torch.bool))
WRONG = {y: float(y not in {(0, 1), (2, 2), (1, 0)}) for y in SEQUENCES}  # 1 - r: depends on what was sampled


def tables():
    g = torch.Generator().manual_seed(4)
    make = lambda: torch.randn(len(STATES), V, generator=g, dtype=torch.float64)  # noqa: E731
    return make(), make()


def states(y):
    return [STATES.index(y[:t]) for t in range(T)]


def probability(table, y):
    log_p = torch.log_softmax(table, dim=-1)
    return sum(log_p[s, a] for s, a in zip(states(y), y, strict=True)).exp()


def expected_gradient(estimator, masked, horizon="immediate"):
    """Σ_y π(y) ∇ Σ_t m(y) KL_t by our objective: the head is the identity, so hidden states are the logits themselves."""
    student, teacher = tables()
    total = torch.zeros_like(student)
    for y in SEQUENCES:
        weight = torch.full((T,), WRONG[y] if masked else 1.0, dtype=torch.float64)
        batch = TokenBatch(torch.tensor(y), torch.zeros(T, dtype=torch.long), 0 * weight, weight, 0 * weight)
        leaf = student.clone().requires_grad_()
        loss, _ = loss_of(
            leaf[states(y)], torch.eye(V).double(), batch, SHARD, policy=None,
            kl=KLTerm(estimator, reward_horizon=horizon), teacher_hidden=teacher[states(y)],
            teacher_head=torch.eye(V).double(), chunk_tokens=1,
        )  # fmt: skip
        loss.backward()
        total += probability(student, y) * leaf.grad
    return total


def true_gradient(kind, masked=False):
    """Gradients by autograd of the defining sums."""
    student, teacher = tables()
    leaf = student.clone().requires_grad_()
    log_p, log_q = torch.log_softmax(leaf, -1), torch.log_softmax(teacher, -1)
    reverse = (log_p.exp() * (log_p - log_q)).sum(-1)
    forward = (log_q.exp() * (log_q - log_p)).sum(-1)
    total = 0.0
    for y in SEQUENCES:
        p = probability(leaf, y)
        mask = WRONG[y] if masked else 1.0
        if kind == "sequence":  # KL between whole sequences: Σ_y π(y) Σ_t (log π - log φ), gradient through everything
            total = total + mask * p * sum(log_p[s, a] - log_q[s, a] for s, a in zip(states(y), y, strict=True))
        else:  # token KLs at the states visited, which the gradient takes as given
            per_state = reverse if kind == "reverse" else forward
            total = total + mask * p.detach() * per_state[states(y)].sum()
    total.backward()
    return leaf.grad


def distance(a, b):
    return float((a - b).norm())


@pytest.mark.parametrize("estimator", ["k2", "vopd", "reverse", "k1_reward"])
def test_without_a_mask_the_expected_gradient_is_that_of_the_reverse_kl(estimator):
    assert distance(expected_gradient(estimator, masked=False), true_gradient("reverse")) < 1e-12


@pytest.mark.parametrize("estimator", ["k3", "forward"])
def test_without_a_mask_k3_follows_the_forward_kl(estimator):
    assert distance(expected_gradient(estimator, masked=False), true_gradient("forward")) < 1e-12
    assert distance(true_gradient("forward"), true_gradient("reverse")) > 0.1


def test_return_to_go_makes_k1_the_gradient_of_the_kl_of_whole_sequences():
    got = expected_gradient("k1_reward", masked=False, horizon="return_to_go")
    assert distance(got, true_gradient("sequence")) < 1e-12
    assert distance(got, true_gradient("reverse")) > 0.01  # immediate k1 leaves out that y_t leads to later states


@pytest.mark.parametrize(("estimator", "of"), [("k2", "reverse"), ("vopd", "reverse"), ("k3", "forward")])
def test_under_the_reward_mask_sampled_estimators_are_another_objective_than_the_masked_exact_kl(estimator, of):
    exact, sampled = expected_gradient(of, masked=True), expected_gradient(estimator, masked=True)
    assert distance(exact, true_gradient(of, masked=True)) < 1e-12
    assert distance(sampled, exact) > 0.3 * float(exact.norm())


def test_under_the_reward_mask_immediate_k1_and_k2_still_agree():
    assert distance(expected_gradient("k2", masked=True), expected_gradient("k1_reward", masked=True)) < 1e-12


def test_k1_as_a_loss_has_no_gradient_unmasked_and_masked_only_that_of_the_mask():
    """Why k1 is offered as a reward only: Σ_y π m ∇(log π - log φ) = ∇E[m], whatever the teacher says."""
    student, _ = tables()
    for masked in (False, True):
        as_loss = torch.zeros_like(student)
        for y in SEQUENCES:
            leaf = student.clone().requires_grad_()
            probability(leaf, y).log().backward()
            as_loss += (WRONG[y] if masked else 1.0) * probability(student, y) * leaf.grad
        leaf = student.clone().requires_grad_()
        sum((WRONG[y] if masked else 1.0) * probability(leaf, y) for y in SEQUENCES).backward()
        assert distance(as_loss, leaf.grad) < 1e-12
        assert (float(as_loss.norm()) > 0.01) == masked
