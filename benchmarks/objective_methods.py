"""The contestants of benchmarks/objective.py: each turns one Problem into a loss whose backward fills the same gradients.

On tensor-parallel ranks a Problem holds this rank's rows of both heads.  ``trl`` and ``liger`` know divergences only, no policy
gradient: they do less than the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Problem:
    hidden: Tensor  # [n, H], requires grad
    head: Tensor  # [v, H], requires grad
    teacher_hidden: Tensor
    teacher_head: Tensor
    targets: Tensor
    weight: Tensor  # [n]
    start: int  # first id of this rank's rows
    estimator: str
    chunk: int
    group: dist.ProcessGroup | None
    main_grad: Tensor | None  # float32 [v, H]: Megatron's gradient buffer, which ∂head is added to
    kernels: str  # torch | triton
    at_gradients: Callable = lambda _: None  # called just before the first gradient of an input is born

    @classmethod
    def make(cls, s: dict, rank: int, group) -> Problem:
        """Random hidden states, and heads that give a peaked distribution; equal on all ranks but for the rows."""
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[s["dtype"]]
        n, device, rows = s["tokens"], torch.device(s["device"]), s["vocabulary"] // s["tensor"]
        same, own = (torch.Generator(device).manual_seed(seed) for seed in (0, 1 + rank))

        def normal(rows: int, columns: int, scale: float, generator) -> Tensor:
            return torch.empty(rows, columns, dtype=dtype, device=device).normal_(0, scale, generator=generator)

        hidden, teacher_hidden = normal(n, s["hidden"], 1.0, same), normal(n, s["teacher_hidden"], 1.0, same)
        head = normal(rows, s["hidden"], 2 * s["hidden"] ** -0.5, own)
        teacher_head = normal(rows, s["teacher_hidden"], 2 * s["teacher_hidden"] ** -0.5, own)
        targets = torch.randint(0, s["vocabulary"], (n,), generator=same, device=device)
        buffer = torch.zeros(head.shape, dtype=torch.float32, device=device) if s["main_grad"] else None
        return cls(
            hidden.requires_grad_(), head.requires_grad_(), teacher_hidden, teacher_head, targets,
            torch.full((n,), 1.0 / n, device=device), rank * rows, s["estimator"], s["chunk"], group, buffer,
            s["kernels"],
        )  # fmt: skip


def single_pass(p: Problem, *, policy: str = "grpo", old: Tensor | None = None) -> Tensor:
    """Ours: policy gradient and KL, every gradient formed chunk by chunk in one pass."""
    from vold_nemo.objective import KLTerm, Objective, PolicyTerm, TeacherStates, TokenBatch, VocabularyShard, vold_loss

    every = torch.ones(len(p.head), dtype=torch.bool, device=p.head.device)
    sequence = torch.arange(len(p.targets), device=p.head.device) // 256
    batch = TokenBatch(p.targets, sequence, p.weight, p.weight, torch.ones_like(p.weight), old)
    return vold_loss(
        p.hidden, p.head, batch, VocabularyShard(p.start, len(p.head), every, every, p.group),
        Objective(PolicyTerm(policy), KLTerm(p.estimator), chunk_tokens=p.chunk, kernels=p.kernels),
        teacher=TeacherStates(p.teacher_hidden, p.teacher_head), head_gradient=p.main_grad,
    )[0]  # fmt: skip


def two_pass(p: Problem) -> Tensor:
    """Ours with off-policy GSPO, which needs every log-prob before the first gradient."""
    return single_pass(p, policy="gspo", old=torch.full_like(p.weight, -12.0))


def dense(p: Problem) -> Tensor:
    """[n, v] logits of both models, torch's own functions, autograd for the rest."""
    logits = p.hidden @ p.head.t()
    logits.register_hook(p.at_gradients)
    log_p = _log_softmax(logits.float(), p.group)
    del logits
    with torch.no_grad():
        log_q = _log_softmax((p.teacher_hidden @ p.teacher_head.t()).float(), p.group)
    logprob = _at(log_p, p)
    policy = -(logprob - logprob.detach()).exp()  # advantage 1, on-policy
    if p.estimator == "k2":
        kl = 0.5 * (logprob - _at(log_q, p)).square()
    elif p.estimator == "reverse":
        kl = _sum((log_p.exp() * (log_p - log_q)).sum(-1), p.group)
    elif p.estimator == "forward":
        kl = _sum((log_q.exp() * (log_q - log_p)).sum(-1), p.group)
    else:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
        kl = _sum(0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1), p.group)
    return (p.weight * (policy + kl)).sum()


def trl(p: Problem) -> Tensor:
    """TRL's generalised JSD loss (GKD) on the logits of both models."""
    from trl.experimental.gkd import GKDTrainer

    student = p.hidden @ p.head.t()
    student.register_hook(p.at_gradients)
    with torch.no_grad():
        teacher = p.teacher_hidden @ p.teacher_head.t()
    labels = torch.zeros(1, len(p.targets), dtype=torch.long, device=p.head.device)
    return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], labels=labels, beta=BETA[p.estimator])


def liger(p: Problem) -> Tensor:
    """Liger's fused linear JSD (Triton)."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=BETA[p.estimator], accum_dtype=torch.float32)
    return loss(p.hidden, p.head, p.teacher_hidden, p.teacher_head, None)


BETA = {"forward": 0.0, "jsd": 0.5, "reverse": 1.0}  # TRL's and Liger's weight of the teacher in the mixture
IMPORTS = {"trl": "trl.experimental.gkd", "liger": "liger_kernel.transformers.fused_linear_jsd"}  # before the clock starts
METHODS = {"dense": dense, "single_pass": single_pass, "two_pass": two_pass, "trl": trl, "liger": liger}


def unavailable(method: str, s: dict) -> str | None:
    """Why ``method`` cannot run with these settings here, or None."""
    from importlib.util import find_spec

    if method in ("trl", "liger") and s["estimator"] not in BETA:
        return f"has no {s['estimator']} estimator"
    if method in ("trl", "liger") and s["tensor"] > 1:
        return "is not tensor-parallel"
    if method == "trl" and find_spec("trl") is None:
        return "is not installed here (make test-trl has an environment for it)"
    if method == "liger" and (s["device"] != "cuda" or find_spec("liger_kernel") is None):
        return "needs CUDA and liger-kernel"
    return None


class _Reduce(torch.autograd.Function):
    """Sum over ranks.  The gradient of what all ranks use alike is passed on; of what each uses for its rows, summed."""

    @staticmethod
    def forward(ctx, rows: Tensor, group, used_by_rows: bool):
        ctx.group, ctx.used_by_rows, rows = group, used_by_rows, rows.clone()
        dist.all_reduce(rows, group=group)
        return rows

    @staticmethod
    def backward(ctx, gradient: Tensor):
        if ctx.used_by_rows:
            gradient = gradient.clone()
            dist.all_reduce(gradient, group=ctx.group)
        return gradient, None, None


def _sum(rows: Tensor, group, used_by_rows: bool = False) -> Tensor:
    return rows if group is None else _Reduce.apply(rows, group, used_by_rows)


def _log_softmax(logits: Tensor, group) -> Tensor:
    if group is None:
        return torch.log_softmax(logits, dim=-1)
    top = logits.detach().amax(-1)
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    norm = _sum((logits - top[:, None]).exp().sum(-1), group, used_by_rows=True).log() + top
    return logits - norm[:, None]


def _at(log_p: Tensor, p: Problem) -> Tensor:
    column = p.targets - p.start
    here = (column >= 0) & (column < log_p.shape[1])
    return _sum(log_p.gather(1, column.clamp(0, log_p.shape[1] - 1)[:, None]).squeeze(1) * here, p.group)
