"""Exact divergences are TRL's: its generalised JSD loss (GKD) at every weight, and its top-k with a tail bucket."""

import pytest
import torch

from vold_nemo.objective import KLTerm, Objective, TeacherStates, TokenBatch, VocabularyShard, vold_loss

TOKENS, VOCABULARY = 17, 47


def inputs(boost=0.0, seed=0):
    """Float64 hidden states and heads; ``boost`` lifts the same 6 ids in both models far above the rest."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    hidden, teacher_hidden, head, teacher_head = draw(TOKENS, 8), draw(TOKENS, 11), draw(VOCABULARY, 8), draw(VOCABULARY, 11)
    if boost:
        for states, table in ((hidden, head), (teacher_hidden, teacher_head)):
            states.mul_(0.2)  # the rest stays below them, and keeps a mass that counts
            states[:, 0], table[:, 0] = 1.0, 0.0
            table[:6, 0] = boost
    return hidden, head, teacher_hidden, teacher_head


def ours(term, temperature, boost=0.0):
    hidden, head, teacher_hidden, teacher_head = inputs(boost)
    hidden.requires_grad_(), head.requires_grad_()
    weight, zero = torch.full((TOKENS,), 1 / TOKENS), torch.zeros(TOKENS)
    loss, _ = vold_loss(
        hidden, head, TokenBatch(torch.arange(TOKENS), torch.arange(TOKENS), zero, weight.double(), zero),
        VocabularyShard.of(0, 1, torch.ones(VOCABULARY, dtype=torch.bool)),
        Objective(None, term, temperature=temperature, chunk_tokens=5), teacher=TeacherStates(teacher_hidden, teacher_head),
    )  # fmt: skip
    loss.backward()
    return loss.detach(), hidden.grad, head.grad


def theirs(function, temperature, boost=0.0, **settings):
    hidden, head, teacher_hidden, teacher_head = inputs(boost)
    hidden.requires_grad_(), head.requires_grad_()
    student, teacher = hidden @ head.T, teacher_hidden @ teacher_head.T
    loss = function(
        student[None], teacher[None], labels=torch.zeros(1, TOKENS).long(), temperature=temperature, **settings
    )
    loss.backward()
    return loss.detach(), hidden.grad, head.grad


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    ("term", "beta"),
    [(KLTerm("forward"), 0), (KLTerm("reverse"), 1), *((KLTerm("jsd", jsd_weight=w), w) for w in (0.1, 0.5, 0.9))],
    ids=["forward", "reverse", "jsd_0.1", "jsd_0.5", "jsd_0.9"],
)
def test_exact_divergences_are_trls_generalised_jsd(term, beta, temperature):
    from trl.experimental.gkd import GKDTrainer

    for got, want in zip(
        ours(term, temperature), theirs(GKDTrainer.generalized_jsd_loss, temperature, beta=beta), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)  # TRL's mixture weight goes through float32 logarithms


def test_top_k_with_a_tail_is_trls_where_both_models_agree_on_the_ids():
    """TRL keeps the student's top ids for the reverse KL, we the teacher's: here they are the same six."""
    from trl.experimental.iw_opd import IWOPDTrainer

    hidden, head, teacher_hidden, teacher_head = inputs(boost=6.0)
    for logits in (hidden @ head.T, teacher_hidden @ teacher_head.T):
        assert logits.topk(6).indices.max() == 5 and logits.softmax(-1)[:, 6:].sum(-1).min() > 1e-3
    got = ours(KLTerm("topk", top_k=6), 1.0, boost=6.0)
    want = theirs(IWOPDTrainer.generalized_jsd_loss, 1.0, boost=6.0, beta=1, top_k=6, add_tail=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
