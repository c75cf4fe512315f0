"""Random inputs of the objective, and a run of ours beside the dense reference on one rank or on a TP world."""

import torch
import torch.distributed as dist

from tests.objective import dense
from vold_nemo.objective import Objective, TeacherStates, TokenBatch, VocabularyShard, vold_loss


def make_case(seed=0, n=23, V=40, H=6, Ht=9, sequences=4, dtype=torch.float64, scale=1.0, old=True, one_sided=True):
    """Inputs at the full vocabulary: the last 3 rows are padding, 3 more can be sampled but are not shared."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
    sampleable = torch.ones(V, dtype=torch.bool)
    sampleable[V - 3 :] = False
    shared = sampleable.clone()
    if one_sided:
        shared[torch.randperm(V - 3, generator=g)[:3]] = False
    hidden, head = rand(n, H) * scale, rand(V, H)
    teacher_hidden, teacher_head = rand(n, Ht) * scale, rand(V, Ht) * 0.7
    targets = torch.randint(0, V - 3, (n,), generator=g)
    sequence = torch.randint(0, sequences, (n,), generator=g).sort().values
    response = torch.rand(n, generator=g) < 0.75
    policy_weight = torch.rand(n, generator=g, dtype=torch.float64) * response
    kl_weight = torch.rand(n, generator=g, dtype=torch.float64) * response * (sequence % 2 == 0)
    current = dense.at(dense.masked_log_softmax(hidden.to(dtype).double() @ head.to(dtype).double().T, sampleable), targets)
    near = lambda: (current + 0.3 * rand(n)).detach()  # noqa: E731
    batch = TokenBatch(
        targets, sequence, policy_weight, kl_weight, torch.randn(sequences, generator=g).double()[sequence],
        near() if old else None, near(),
    )  # fmt: skip
    tensors = [t.to(dtype) for t in (hidden, head, teacher_hidden, teacher_head)]
    return tensors, batch, sampleable, shared


def loss_of(hidden, head, batch, shard, teacher_hidden=None, teacher_head=None, context=None, head_gradient=None, **options):
    """`vold_loss` with the options of an :class:`Objective` spelt out."""
    teacher = None if teacher_hidden is None else TeacherStates(teacher_hidden, teacher_head)
    return vold_loss(
        hidden, head, batch, shard, Objective(**options), teacher=teacher, context=context, head_gradient=head_gradient
    )


def ours(case, group=None, rank=0, ranks=1, scale=1.0, **options):
    """Loss, statistics, ∂hidden summed over ranks, this rank's ∂head."""
    (hidden, head, teacher_hidden, teacher_head), batch, sampleable, shared = case
    shard = VocabularyShard.of(rank, ranks, sampleable, shared, group)
    part = slice(shard.start, shard.start + shard.size)
    hidden = hidden.clone().requires_grad_()
    head = head[part].clone().requires_grad_()
    loss, statistics = loss_of(
        hidden, head, batch, shard, teacher_hidden=teacher_hidden, teacher_head=teacher_head[part], **options
    )
    (loss * scale).backward()
    gradient = hidden.grad.clone()
    if group is not None:
        dist.all_reduce(gradient, group=group)
    return loss.detach(), statistics, gradient, head.grad


def reference(case, **options):
    """The same from the dense float64 reference."""
    tensors, batch, sampleable, shared = case
    hidden, head, teacher_hidden, teacher_head = (t.double() for t in tensors)
    hidden, head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    options.pop("chunk_tokens", None)
    loss, logprob, entropy, kl, keep = dense.loss(
        hidden, head, batch, sampleable, shared, teacher_hidden=teacher_hidden, teacher_head=teacher_head, **options
    )
    loss.backward()
    values = (logprob.detach(), entropy.detach(), None if kl is None else kl.detach(), keep)
    return loss.detach(), values, hidden.grad, head.grad
